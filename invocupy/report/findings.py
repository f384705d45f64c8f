"""What there is to see of a run, as arrays."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from invocupy import nn
from invocupy.arrays import Array, device_of, on_device, to_device
from invocupy.autograd import no_grad
from invocupy.checkpoint import CheckpointError
from invocupy.data import Batches
from invocupy.data.own import Images
from invocupy.paths import AnyPath, existing, expand
from invocupy.train import Config, ConfigError, open_run, pick_device, predict
from invocupy.train.saved import measured_on, read
from invocupy.train.sets import read_test_set

_NUMBERS = "epoch", "train_loss", "train_accuracy", "seconds", "images_per_second", "lr"
_SHOWN = 24  # images in a grid
_MAPPED = 3  # images with heat maps
_LAYERS = 4  # of heat maps, by default


class Shots(NamedTuple):
    """Some test images with what the model says of them."""

    images: NDArray[np.uint8]  # (n, C, H, W)
    labels: NDArray[np.int64]  # (n,)
    probabilities: NDArray[np.float64]  # (n, K)

    def take(self, index: Array | slice) -> Shots:
        """Those of the given numbers."""
        return Shots(self.images[index], self.labels[index], self.probabilities[index])


class HeatMap(NamedTuple):
    """The kernels that one layer makes over some images, each summed over its taps."""

    layer: str
    values: NDArray[np.float64]  # (n, G, Ho, Wo)


class Findings(NamedTuple):
    """What :func:`gather` finds."""

    name: str  # of the run's folder
    epoch: int  # of the checkpoint
    config: Config
    history: list[dict[str, Any]]
    machine: dict[str, Any]  # {} for runs from before it was noted
    classes: tuple[str, ...]
    dataset: str  # its name
    images: int  # in the test set
    accuracy: float
    confusion: NDArray[np.int64]  # (K, K), rows: the label, columns: the model's answer
    samples: Shots
    mistakes: Shots  # the most certain ones first; maybe none
    mapped: Shots
    maps: list[HeatMap]


def gather(
    folder: AnyPath,
    *,
    which: str = "best",
    involutions: Sequence[int] | None = None,
    device: str = "auto",
    data_dir: str | None = None,
    model: nn.Module | None = None,
    data: Images | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Findings:
    """Run a trained model over its test set, and keep what is worth a look.

    Parameters
    ----------
    folder
        Of the run.
    which : "best" or "last"
    involutions : sequence of int, optional
        Layers to map, counted from 0; by default up to four, evenly over the depth.
    device, data_dir
        As in :class:`invocupy.train.Config`, for here and now.
    model
        One to take the weights, where :func:`invocupy.train.fit` was given a model.
    data
        Test images and labels, where it was given arrays.
    progress
        Called with the batches done and all batches.

    Returns
    -------
    Findings

    Raises
    ------
    invocupy.checkpoint.CheckpointError, invocupy.data.DataError, invocupy.train.ConfigError
        If the run or its data cannot be read, or there is no such involution layer.

    Examples
    --------
    >>> import tempfile
    >>> from invocupy.train import fit
    >>> with tempfile.TemporaryDirectory() as run:
    ...     _ = fit(Config(layers=1, epochs=1, limit=20, device="cpu"), run)
    ...     found = gather(run)
    >>> found.confusion.sum(), [heat.layer for heat in found.maps]
    (np.int64(20), ['blocks.0.involution'])
    """
    folder = expand(folder)
    config, model, history, about = open_run(folder, which, model)
    epoch = len(history)
    # what was stopped between saving the best and the last has an epoch more in the best
    history = max(read(folder / "last.safetensors", model).state.history, history, key=len)
    _check(folder, history)
    machine = _machine(folder / "machine.json")
    names, classes = involution_layers(model, involutions), len(about.classes)
    model.to(pick_device(device))
    images, labels = data or read_test_set(config, about, data_dir)
    probabilities = predict(model, images, **about.style(), progress=progress)
    answers = probabilities.argmax(axis=1)
    shots = Shots(images, labels, probabilities)
    certainty = probabilities.max(axis=1)
    wrong = np.flatnonzero((answers != labels) & np.isfinite(certainty))
    worst = wrong[np.argsort(-certainty[wrong], kind="stable")][:_SHOWN]
    mapped = shots.take(_of_many_classes(labels, _MAPPED))
    counts = np.bincount(labels * classes + answers, minlength=classes**2)
    return Findings(
        name=os.fsencode(folder.resolve().name).decode(errors="replace"),
        epoch=epoch,
        config=replace(config, device=device, data_dir=data_dir or config.data_dir),
        history=history,
        machine=machine,
        classes=about.classes,
        dataset=about.dataset,
        images=len(images),
        accuracy=float((answers == labels).mean()),
        confusion=counts.reshape(-1, classes),
        samples=shots.take(_of_many_classes(labels, _SHOWN)),
        mistakes=shots.take(worst),
        mapped=mapped,
        maps=heat_maps(model, mapped.images, names, **about.style()),
    )


def _check(folder: Path, history: list[dict[str, Any]]) -> None:
    if not history:
        raise CheckpointError(f"{folder} has no whole epoch to show: resume the run")
    for row in history:
        measured = measured_on(row)
        for name in *_NUMBERS, f"{measured}_loss", f"{measured}_accuracy":
            value = row.get(name, "missing")
            finite = isinstance(value, int | float) and math.isfinite(value)
            if not finite and (name, value) != (f"{measured}_loss", None):
                raise CheckpointError(
                    f"{folder} cannot be shown: {name} of an epoch must be a number, got {value!r}"
                )


def _machine(path: Path) -> dict[str, Any]:
    """The content of ``machine.json``; {} for older runs, which have none."""
    try:
        about: dict[str, Any] = json.loads(existing(path).read_text(encoding="utf-8-sig"))
        named = all(isinstance(about[name], dict) for name in ("packages", "devices"))
        if named and {"invocupy", "python", "threads"} <= about.keys():
            return about
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        pass
    raise CheckpointError(f"{path} is damaged: remove it, or resume the run, which writes it")


def involution_layers(model: nn.Module, numbers: Sequence[int] | None = None) -> list[str]:
    """Names of a model's involution layers: the given ones, or up to four evenly over the depth."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Involution)]
    if numbers is None:
        count = min(_LAYERS, len(names))
        return [names[i] for i in np.linspace(0, len(names) - 1, count).round().astype(int)]
    wrong = [number for number in numbers if not 0 <= number < len(names)]
    if wrong:
        raise ConfigError(
            f"involutions must be numbers below {len(names)}, the layers of this model, "
            f"got {', '.join(map(str, wrong))}"
        )
    return [names[number] for number in dict.fromkeys(numbers)]


def heat_maps(
    model: nn.Module,
    images: NDArray[np.uint8],
    names: Sequence[str],
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> list[HeatMap]:
    """The kernels that involution layers make over images, each summed over its K x K taps.

    As in Li et al., arXiv 2103.06255, section 4.4.

    Parameters
    ----------
    model, images
        A network, and what it sees: uint8 (n, C, H, W).
    names
        Of involution layers, as ``model.named_modules()`` has them.
    mean, std
        As in :class:`invocupy.data.Batches`.

    Returns
    -------
    list of HeatMap
        In the order of ``names``.

    Examples
    --------
    >>> from invocupy.models import SimpleModel
    >>> model = SimpleModel(num_layers=1, rng=0)
    >>> images = np.zeros((2, 3, 32, 32), np.uint8)
    >>> (heat,) = heat_maps(model, images, ["blocks.0.involution"], mean=(0,) * 3, std=(1,) * 3)
    >>> heat.values.shape
    (2, 4, 32, 32)
    """
    seen = {}

    def note(name: str, layer: Any) -> Callable[[Any], Any]:
        def noted(x: Any) -> Any:
            sums = layer.kernel(x).data.sum(axis=(2, 3))  # (n, G, Kh, Kw, Ho, Wo) over the taps
            seen[name] = np.asarray(to_device(sums, "cpu"), np.float64)
            return type(layer).forward(layer, x)

        return noted

    device = device_of(next(iter(model.parameters())).data)
    images, nothing = to_device(images, device), to_device(np.zeros(len(images), int), device)
    batches = Batches(images, nothing, max(len(images), 1), shuffle=False, mean=mean, std=std)
    with nn.keep_modes(model), no_grad(), on_device(images), ExitStack() as undo:
        model.eval()
        for name, layer in model.named_modules(remove_duplicate=False):
            if isinstance(layer, nn.Involution):
                undo.callback(setattr, layer, "fused", layer.fused)
                layer.fused = False  # a block that runs as one would not call its layer
            if name in names:
                undo.callback(vars(layer).pop, "forward", None)
                vars(layer)["forward"] = note(name, layer)
        for x, _ in batches.epoch(0):
            model(x)
    return [HeatMap(name, seen[name]) for name in names]


def _of_many_classes(labels: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Numbers of the first images of the classes in turn: one of each, then a second one, ..."""
    turn = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        of_class = np.flatnonzero(labels == label)
        turn[of_class] = np.arange(len(of_class))
    return np.lexsort((labels, turn))[:count]
