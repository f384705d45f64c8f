"""The kernels that a network's involution layers generate over images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from invocupy import nn
from invocupy.arrays import device_of, on_device, to_device
from invocupy.autograd import no_grad
from invocupy.data import Batches
from invocupy.train import ConfigError

_LAYERS = 4  # of heat maps, by default

Noted = TypeVar("Noted")


class HeatMap(NamedTuple):
    """The kernels that one layer generates for some images, each summed over its taps."""

    layer: str
    values: NDArray[np.float64]  # (n, G, Ho, Wo)


def involution_layers(
    model: nn.Module, numbers: Sequence[int] | None = None, most: int | None = _LAYERS
) -> list[str]:
    """Names of a model's layers for images: the given ones, or ``most`` evenly over the depth."""
    every = ((n, m) for n, m in model.named_modules() if isinstance(m, nn.Involution))
    names = [name for name, module in every if module.dims == 2]  # others have no image to show
    if numbers is None:
        count = len(names) if most is None else min(most, len(names))
        return [names[i] for i in np.linspace(0, len(names) - 1, count).round().astype(int)]
    wrong = [number for number in numbers if not 0 <= number < len(names)]
    if wrong:
        rule = f"numbers below {len(names)}, the layers of this model"
        rule = rule if names else "left out, as this model has none that can be shown"
        raise ConfigError(f"involutions must be {rule}, got {', '.join(map(str, wrong))}")
    return [names[number] for number in dict.fromkeys(numbers)]


def heat_maps(
    model: nn.Module,
    images: NDArray[np.uint8],
    names: Sequence[str],
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> list[HeatMap]:
    """The kernels that involution layers generate for images, each summed over its K x K taps.

    As in Li et al., arXiv 2103.06255, section 4.4.

    Parameters
    ----------
    model, images
        A network, and its images: uint8 (n, C, H, W).
    names
        Of involution layers, as ``model.named_modules()`` has them.
    mean, std
        As in :class:`invocupy.data.Batches`.

    Returns
    -------
    list of HeatMap
        In the order of ``names``, of those that ``model(x)`` calls.

    Examples
    --------
    >>> from invocupy.models import SimpleModel
    >>> model = SimpleModel(num_layers=1, rng=0)
    >>> images = np.zeros((2, 3, 32, 32), np.uint8)
    >>> (heat,) = heat_maps(model, images, ["blocks.0.involution"], mean=(0,) * 3, std=(1,) * 3)
    >>> heat.values.shape
    (2, 4, 32, 32)
    """

    def sums(layer: nn.Involution, x: Any, _: Any) -> NDArray[np.float64]:
        over_taps = layer.kernel(x).data.sum(axis=(2, 3))  # (n, G, Kh, Kw, Ho, Wo)
        return np.asarray(to_device(over_taps, "cpu"), np.float64)

    seen = watch(model, images, names, sums, mean=mean, std=std)
    return [HeatMap(name, seen[name]) for name in names if name in seen]


def watch(
    model: nn.Module,
    images: NDArray[np.uint8],
    names: Sequence[str],
    note: Callable[[nn.Involution, Any, Any], Noted],
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> dict[str, Noted]:
    """Run a model on images; results of ``note(layer, x, out)`` of its involutions, by name."""
    seen = {}

    def noting(name: str, layer: nn.Involution) -> Callable[[Any], Any]:
        def forward(x: Any) -> Any:
            out = type(layer).forward(layer, x)
            seen[name] = note(layer, x, out)
            return out

        return forward

    device = device_of(next(iter(model.parameters())).data)
    images, nothing = to_device(images, device), to_device(np.zeros(len(images), int), device)
    batches = Batches(images, nothing, max(len(images), 1), shuffle=False, mean=mean, std=std)
    with nn.keep_modes(model), no_grad(), on_device(images), ExitStack() as undo:
        model.eval()
        for name, layer in model.named_modules(remove_duplicate=False):
            if isinstance(layer, nn.Involution):
                undo.callback(setattr, layer, "fused", layer.fused)
                layer.fused = False  # a block that runs as one would not call its layer
            if isinstance(layer, nn.Involution) and name in names:
                undo.callback(vars(layer).pop, "forward", None)
                vars(layer)["forward"] = noting(name, layer)
        for x, _ in batches.epoch(0):
            model(x)
    return seen
