"""The kernel at each pixel of an image, for a page in the browser."""

from __future__ import annotations

import json
import math
from base64 import b64encode
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

import numpy as np
from numpy.typing import NDArray

from invocupy import nn
from invocupy.arrays import Array, to_device
from invocupy.autograd import Tensor
from invocupy.checkpoint import CheckpointError
from invocupy.report.kernels import watch


class Explored(dict[str, Any]):
    """The data of the explorer, as JSON: ``images`` and ``layers``; see :func:`explore`."""

    def _repr_html_(self) -> str:
        """The explorer itself, where a notebook shows HTML."""
        from invocupy.report.page import explorer_page

        page = escape(explorer_page(self, "notebook"))
        style = "width: 100%; height: 46rem; border: 0"
        whole = "this.style.height = this.contentDocument.documentElement.offsetHeight + 'px'"
        return (
            f'<iframe title="The kernel at each pixel" style="{style}" onload="{whole}" '
            f'srcdoc="{page}"></iframe>'
        )


_LARGEST = 9999  # of the integers that stand for decimals; int16 holds them


def explore(
    model: nn.Module,
    images: NDArray[np.uint8],
    titles: Sequence[str],
    names: Sequence[str],
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    convolutions: nn.Module | None = None,
) -> Explored:
    """The kernels of involution layers at each pixel, with their inputs and outputs.

    Numbers are stored as 16-bit integers times a power of ten, one for each image, layer and group,
    with up to four digits: the page shows the model's numbers, rounded to these digits.

    Parameters
    ----------
    model, images
        A network, and its images: uint8 (n, C, H, W).
    titles
        Of the images.
    names
        Of involution layers, as ``model.named_modules()`` has them; those that ``model(x)`` does
        not call are left out.
    mean, std
        As in :class:`invocupy.data.Batches`.
    convolutions
        A network with convolutions under the same names, to compare kernels. For layers without
        such a convolution, the mean of the kernels of all pixels is shown.

    Returns
    -------
    dict
        For :func:`invocupy.report.write_explorer`. A notebook shows the explorer itself.

    Raises
    ------
    invocupy.checkpoint.CheckpointError
        If a number is not finite, or the network calls none of the layers.

    Examples
    --------
    >>> from invocupy.models import SimpleModel
    >>> model, images = SimpleModel(num_layers=1, rng=0), np.zeros((1, 3, 32, 32), np.uint8)
    >>> name = "blocks.0.involution"
    >>> explored = explore(model, images, ["black"], [name], mean=(0,) * 3, std=(1,) * 3)
    >>> explored["layers"][0]["groups"], explored["layers"][0]["kernel_size"]
    (4, (3, 3))
    """
    others = dict(convolutions.named_modules()) if convolutions is not None else {}

    def note(layer: nn.Involution, x: Any, out: Any) -> tuple[nn.Involution, Array, Array, Array]:
        kernel, seen, result = map(_values, (layer.kernel(x), x, out))
        return layer, kernel.transpose(0, 1, 4, 5, 2, 3), seen, result  # (n, G, Ho, Wo, Kh, Kw)

    found = watch(model, images, names, note, mean=mean, std=std)
    if not found:
        raise CheckpointError(f"{', '.join(names)} cannot be explored: model(x) calls none of them")
    layers = []
    for name in filter(found.__contains__, names):
        layer, kernel, seen, result = found[name]
        channels = _largest(result, layer.groups)
        fixed = _fixed(others.get(name), channels)
        means = kernel.mean(axis=(2, 3)) if fixed is None else np.stack([fixed] * len(images))
        arrays = {
            "kernel": kernel, "x": seen[:, channels], "out": result[:, channels], "fixed": means,
        }  # fmt: skip
        layers.append({
            "name": name, "groups": layer.groups, "kernel_size": layer.kernel_size,
            "channels": channels.tolist(), "dilation": layer.dilation, "stride": layer.stride,
            "size": seen.shape[2:], "out": result.shape[2:], "mean": fixed is None,
            "scale": [*map(_scale, images.shape[2:], seen.shape[2:])],
            "arrays": [
                {what: [_packed(group, name) for group in array[i]]
                 for what, array in arrays.items()}
                for i in range(len(images))
            ],
        })  # fmt: skip
    pictures = [
        {"title": title, "pixels": _text(coloured(image))}
        for title, image in zip(titles, images, strict=True)
    ]
    return Explored(size=images.shape[2:], images=pictures, layers=layers)


def fragment(explored: Explored) -> str:
    """The explorer as part of an HTML page."""
    text = json.dumps(explored, separators=(",", ":")).replace("<", "\\u003c")
    page = files("invocupy.report").joinpath("explorer.html").read_text(encoding="utf-8")
    return Template(page).substitute(data=text)


def coloured(image: Array) -> Array:
    """(C, H, W) as colours (H, W, 3); other than three channels as their mean in grey."""
    if len(image) != 3:
        image = np.repeat(image.mean(axis=0, keepdims=True).astype(np.uint8), 3, axis=0)
    return image.transpose(1, 2, 0)


def _values(array: Tensor | Array) -> NDArray[np.float64]:
    data = array.data if isinstance(array, Tensor) else array
    return np.asarray(to_device(data, "cpu"), np.float64)


def _largest(out: NDArray[np.float64], groups: int) -> NDArray[np.int64]:
    """The channel with the largest values of each group, since many are zero after a ReLU."""
    sizes = np.abs(out).sum(axis=(0, 2, 3)).reshape(groups, -1)
    return np.asarray(sizes.argmax(axis=1) + sizes.shape[1] * np.arange(groups))


def _fixed(other: nn.Module | None, channels: NDArray[np.int64]) -> NDArray[np.float64] | None:
    """A convolution's kernels (G, Kh, Kw) from these channels to themselves, if it has them."""
    if not isinstance(other, nn.Conv2d) or channels[-1] >= len(other.weight):
        return None
    weight = _values(other.weight)  # (O, C/groups, Kh, Kw)
    return np.asarray(weight[channels, channels % weight.shape[1]])


def _scale(image: int, size: int) -> int:
    """Pixels of the image for each position of a layer's input."""
    halved = (2**n for n in range(image.bit_length()))
    return next((scale for scale in halved if -(-image // scale) == size), -(-image // size))


def _packed(values: NDArray[np.float64], layer: str) -> dict[str, Any]:
    """Decimals with as many places as ``int16`` can hold, and four digits at most."""
    largest = float(np.abs(values).max(initial=0))
    if not math.isfinite(largest):
        raise CheckpointError(f"{layer} cannot be explored: its numbers are not finite")
    places = math.floor(math.log10(_LARGEST / largest)) if largest else 0
    return {"places": places, "data": _text(np.rint(values * 10.0**places).astype("<i2"))}


def _text(array: Array) -> str:
    return b64encode(np.ascontiguousarray(array).tobytes()).decode()
