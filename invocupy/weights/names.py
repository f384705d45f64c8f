"""Names of arrays in other programs, mapped to ours."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np

from invocupy.arrays import Array
from invocupy.models import RedNet, ResNet, SimpleModel
from invocupy.nn import Involution, Module
from invocupy.weights.states import Renamed, merge, plain

_ARTICLE = {
    r"^layers\.(\d+)\.0\.": r"blocks.\1.expand.",
    r"^layers\.(\d+)\.1\.": r"blocks.\1.expand_norm.",
    r"^layers\.(\d+)\.3\.": r"blocks.\1.involution.",
    r"^layers\.(\d+)\.4\.": r"blocks.\1.project.",
    r"^layers\.(\d+)\.5\.": r"blocks.\1.project_norm.",
    # each layer of the kernel generator is registered twice: by itself and in a Sequential
    r"\b(weights0|kernel_generator\.0)\.(?=\w+$)": "reduce.",
    r"\b(BN|kernel_generator\.1)\.(?=\w+$)": "norm.",
    r"\b(weights1|kernel_generator\.3)\.(?=\w+$)": "span.",
}
_IN_BLOCK = re.compile(r"layers\.\d+\.[01345]\..+")
# From the authors' names, which Paddle's conversions keep, and Paddle's for batch norm.
_NETWORK = {
    r"^(backbone|head)\.": "",
    r"^stem\.0\.(conv|bn)\.": r"stem.\g<1>1.",
    r"^stem\.1\.": "stem.conv2.",
    r"^stem\.2\.": "stem.bn2.",
    r"^stem\.4\.(conv|bn)\.": r"stem.\g<1>3.",
    r"\bconv2\.conv1\.conv\.": "conv2.reduce.",
    r"\bconv2\.conv1\.bn\.": "conv2.norm.",
    r"\bconv2\.conv2\.conv\.": "conv2.span.",
    # of ResNets for CIFAR-10
    r"\bshortcut\.": "downsample.",
    r"^linear\.": "fc.",
    r"\._mean$": ".running_mean",
    r"\._variance$": ".running_var",
}
_SOURCES = {"article": (SimpleModel, Involution), "rednet": (RedNet,), "torchvision": (ResNet,)}


def import_state(
    model: Module,
    state: Mapping[str, Any],
    source: Literal["auto", "article", "rednet", "torchvision", "invocupy"] = "auto",
    strict: bool = True,
) -> Fit:
    """Load weights with the names of another program.

    Parameters
    ----------
    model : Module
        The network, whose arrays are replaced.
    state : mapping of str to array
        NumPy arrays, PyTorch's tensors, or anything ``numpy.asarray`` accepts; floating point
        except counters. It may be part of a checkpoint, as for :func:`read`.
        Prefixes of wrappers (``module.``, ``_orig_mod.``, ``model.``, ``backbone.``, ``ema_model.``
        in any order, or one that all names share) are removed, and counters of averages
        (``n_averaged``) are ignored. A missing ``num_batches_tracked`` is 0.
    source : str
        The origin of the names; ``"auto"`` follows from the model and the names.

        - ``"article"``: of the article's PyTorch classes (``layers.0.3.weights0.weight``, with
          duplicates under ``kernel_generator``), for :class:`~invocupy.models.SimpleModel` and
          :class:`~invocupy.nn.Involution`. Dense layers are found by their order. A gap between
          numbers (``dense_network.0``, ``.2``) is an activation: ``model.head_relu`` must say the
          same, and decides where names (``fc1``) do not.
        - ``"rednet"``: of the authors' checkpoints (``backbone.stem.0.conv.weight``) or of Paddle's
          conversions (``stem.0.bn._mean``, and ``fc.weight`` the other way round), for
          :class:`~invocupy.models.RedNet`.
        - ``"torchvision"``: of its ResNets, for :class:`~invocupy.models.ResNet`.
        - ``"invocupy"``: :meth:`~invocupy.nn.Module.state_dict`'s, for any module.
    strict : bool
        Whether missing or left-over names are errors. If not, the others are loaded.

    Returns
    -------
    Fit
        ``missing``, names of the model that are not in ``state``, and ``left_over``, names in
        ``state`` that are not in the model; both are empty if ``strict``.

    Raises
    ------
    ValueError
        Listing every name that is missing, left over, doubled with another value, of another
        shape or dtype; or if nothing fits; or naming the option in which a network of these weights
        differs from ``model``. Then nothing is loaded.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import nn, weights
    >>> layer = nn.Involution(16)
    >>> article = {"weights1.weight": np.ones((9, 4, 1, 1)), "weights1.bias": np.zeros(9)}
    >>> weights.import_state(layer, article, strict=False).left_over
    []
    >>> float(layer.span.weight.data.sum())
    36.0
    """
    own = model.state_dict()
    arrays = plain(state, own)
    if source == "auto":
        source = _source(model, own, arrays)
    if source == "invocupy":
        return _load(model, own, arrays, strict)
    if source not in _SOURCES:
        names = ", ".join(map(repr, ("auto", *_SOURCES, "invocupy")))
        raise ValueError(f"source must be one of {names}, got {source!r}")
    if not isinstance(model, _SOURCES[source]):
        names = " and ".join(kind.__name__ for kind in _SOURCES[source])
        raise ValueError(f"source={source!r} knows {names}, got {type(model).__name__}")
    if isinstance(model, SimpleModel):
        arrays = article_state(arrays, model.head_relu)
    elif isinstance(model, Involution):
        arrays = merge(_renamed(arrays, _ARTICLE))
    else:
        arrays = network_state(arrays)
        _check_options(own, arrays)
    for name in own:
        # Paddle and old versions of PyTorch do not have it.
        if name.removesuffix("num_batches_tracked") + "running_mean" in arrays:
            arrays.setdefault(name, np.array(0))
    return _load(model, own, arrays, strict)


class Fit(NamedTuple):
    """Names of a model and a state that have no counterpart in the other."""

    missing: list[str]
    left_over: list[str]


def _load(model: Module, own: Mapping[str, Array], arrays: dict[str, Any], strict: bool) -> Fit:
    if not strict and not own.keys() & arrays.keys():
        raise ValueError(
            f"state has none of the module's names: it has {', '.join(list(arrays)[:3])}, ..., and "
            f"the module {', '.join(list(own)[:3])}, ..."
        )
    model.load_state_dict(arrays, strict)
    return Fit([n for n in own if n not in arrays], [n for n in arrays if n not in own])


def _source(model: Module, own: Mapping[str, Array], arrays: Mapping[str, Any]) -> Any:
    """The origin of the names; names of our own networks are kept."""
    ours = any(name in arrays for name in own) and not any(map(_IN_BLOCK.fullmatch, arrays))
    if ours and not isinstance(model, RedNet | ResNet):
        return "invocupy"
    return next((name for name, kinds in _SOURCES.items() if isinstance(model, kinds)), "article")


def network_options(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a RedNet or ResNet that follow from the shapes of its arrays, under our names."""
    shapes = {name: np.shape(array) for name, array in arrays.items()}
    options: dict[str, Any] = {}
    # The other axes must be those of a network, so that a small file cannot demand a large one.
    shape = shapes.get("fc.weight", ())
    if shape[1:] in ((512,), (2048,)):
        options["num_classes"] = shape[0]
    for name, stem in ("stem.conv1.weight", (32, 3, 3)), ("conv1.weight", (64, 7, 7)):
        shape = shapes.get(name, ())
        if shape[:1] + shape[2:] in (stem, (64, 3, 3)):
            options["in_channels"] = shape[1]
            if name == "conv1.weight":
                options["stem"] = "imagenet" if shape[2] == 7 else "cifar"
    shape = shapes.get("stem.conv2.span.weight", ())
    if shape[1:] == (8, 1, 1):  # of two groups of 16 channels
        options["stem_kernel_size"] = math.isqrt(shape[0] // 2)
    return options


def _check_options(own: Mapping[str, Array], arrays: Mapping[str, Any]) -> None:
    """Raise an error that names the option in which the network of the weights differs."""
    has = network_options(own)
    for name, value in network_options(arrays).items():
        if has.get(name, value) != value:
            raise ValueError(
                f"the shapes are those of a network with {name}={value!r}, and this one has "
                f"{name}={has[name]!r}: build it with {name}={value!r}"
            )


def network_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays of a RedNet or ResNet under our names, whether from its authors, Paddle or us."""
    theirs = plain(state)
    arrays = merge(_renamed(theirs, _NETWORK))
    if any(name.endswith("._mean") for name in theirs) and "fc.weight" in arrays:
        arrays["fc.weight"] = arrays["fc.weight"].T  # (in, out) in Paddle
    return arrays


def _renamed(arrays: Mapping[str, Any], patterns: Mapping[str, str]) -> Renamed:
    for origin, array in arrays.items():
        name = origin
        for pattern, new in patterns.items():
            name = re.sub(pattern, new, name)
        yield name, origin, array


def article_state(state: Mapping[str, Any], head_relu: bool | None = None) -> dict[str, Any]:
    """The arrays of the article's network under our names, whether from its classes or from us."""
    arrays = plain(state)
    if any(name.startswith("blocks.") for name in arrays):
        return arrays
    head = {name: name.rpartition(".") for name in arrays if not _IN_BLOCK.fullmatch(name)}
    places = _places([*dict.fromkeys(layer for layer, _, _ in head.values())], head_relu)
    ours = {name: f"head.{places[layer]}.{kind}" for name, (layer, _, kind) in head.items()}
    renamed = _renamed(arrays, _ARTICLE)
    return merge((ours.get(origin, name), origin, array) for name, origin, array in renamed)


def _places(layers: list[str], head_relu: bool | None) -> dict[str, int]:
    """The number of each dense layer in our head."""
    if len(layers) > 3:
        raise ValueError(
            f"state has {len(layers)} layers besides blocks of the article's network "
            f"({', '.join(layers[:3])}, ...), which has three: it is of another network"
        )
    if len(layers) < 2:
        return dict.fromkeys(layers, 0)
    found = [match for layer in layers if (match := re.fullmatch(r"(.+\.)?(\d+)", layer))]
    if len(found) == len(layers) and len({match[1] for match in found}) == 1:
        numbers = {match[0]: int(match[2]) for match in found}
        layers = sorted(layers, key=numbers.__getitem__)
        gaps = {numbers[after] - numbers[before] > 1 for before, after in pairwise(layers)}
        if len(gaps) == 2:
            raise ValueError(
                f"the dense layers have the places {', '.join(layers)}: with an activation between "
                "two of them only, they are none of SimpleModel's, which has two or none"
            )
        (head_relu,) = gaps
    if head_relu is None:
        raise ValueError(
            f"the names of the dense layers ({', '.join(layers)}) do not say whether ReLUs stand "
            "between them: give head_relu"
        )
    return {layer: number * (2 if head_relu else 1) for number, layer in enumerate(layers)}
