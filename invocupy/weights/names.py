"""Other programs' names for the same arrays, mapped to ours."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from invocupy.arrays import readable
from invocupy.models import RedNet, ResNet, SimpleModel
from invocupy.nn import Involution, Module

# The article registers each layer of its kernel generator twice: by itself and in a Sequential.
_GENERATOR = {
    "weights0": "reduce",
    "BN": "norm",
    "weights1": "span",
    "kernel_generator.0": "reduce",
    "kernel_generator.1": "norm",
    "kernel_generator.3": "span",
}
_BLOCK = {
    "0": "expand",
    "1": "expand_norm",
    "3": "involution",
    "4": "project",
    "5": "project_norm",
}
# From the authors' names, which Paddle's conversions keep, and Paddle's for batch norm.
_NETWORK = {
    r"^(backbone|head)\.": "",
    r"^stem\.0\.conv\.": "stem.conv1.",
    r"^stem\.0\.bn\.": "stem.bn1.",
    r"^stem\.1\.": "stem.conv2.",
    r"^stem\.2\.": "stem.bn2.",
    r"^stem\.4\.conv\.": "stem.conv3.",
    r"^stem\.4\.bn\.": "stem.bn3.",
    r"\bconv2\.conv1\.conv\.": "conv2.reduce.",
    r"\bconv2\.conv1\.bn\.": "conv2.norm.",
    r"\bconv2\.conv2\.conv\.": "conv2.span.",
    r"\._mean$": ".running_mean",
    r"\._variance$": ".running_var",
}
_SOURCES = {"article": (SimpleModel, Involution), "rednet": (RedNet,), "torchvision": (ResNet,)}


def import_state(
    model: Module,
    state: Mapping[str, Any],
    source: Literal["auto", "article", "rednet", "torchvision", "invocupy"] = "auto",
) -> None:
    """Load weights that another program has named.

    Parameters
    ----------
    model : Module
    state : mapping of str to array
        NumPy arrays, or anything ``numpy.asarray`` takes (PyTorch's CPU tensors among them). It
        may lie under ``state_dict``, and all names may begin with ``state_dict.`` or ``module.``.
    source : str
        Whose names they are.

        - ``"article"``: of the article's PyTorch classes (``layers.0.3.weights0.weight``, with
          duplicates under ``kernel_generator``), for :class:`~invocupy.models.SimpleModel` and
          :class:`~invocupy.nn.Involution`.
        - ``"rednet"``: of the authors' checkpoints (``backbone.stem.0.conv.weight``) or of Paddle's
          conversions (``stem.0.bn._mean``, and ``fc.weight`` the other way round), for
          :class:`~invocupy.models.RedNet`.
        - ``"torchvision"``: of its ResNets, for :class:`~invocupy.models.ResNet`.
        - ``"invocupy"``: :meth:`~invocupy.nn.Module.state_dict`'s, for any module.
        - ``"auto"``: what the model and the names say.

    Raises
    ------
    ValueError
        Listing every name that is missing, left over, doubled with another value or of another
        shape; nothing is loaded then.

    Notes
    -----
    The article's head is found by its order, whatever its names. Where these count positions in
    a ``Sequential`` and leave one out between two dense layers, an activation stood there, and
    ``model.head_relu`` is set accordingly.

    Of RedNets and ResNets ``num_batches_tracked``, which counts steps of training, may be missing:
    Paddle and old versions of PyTorch do not have it. It is 0 then.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import nn, weights
    >>> layer = nn.Involution(16)
    >>> article = {
    ...     "weights0.weight": np.ones((4, 16, 1, 1)),
    ...     "weights0.bias": np.zeros(4),
    ...     "BN.weight": np.ones(4),
    ...     "BN.bias": np.zeros(4),
    ...     "BN.running_mean": np.zeros(4),
    ...     "BN.running_var": np.ones(4),
    ...     "BN.num_batches_tracked": np.array(0),
    ...     "weights1.weight": np.ones((9, 4, 1, 1)),
    ...     "weights1.bias": np.zeros(9),
    ... }
    >>> weights.import_state(layer, article)
    >>> float(layer.span.weight.data.sum())
    36.0
    """
    arrays = _plain(state)
    if source == "auto":
        source = _source(model, arrays)
    if source == "invocupy":
        model.load_state_dict(arrays)
        return
    if source not in _SOURCES:
        names = ", ".join(map(repr, ("auto", *_SOURCES, "invocupy")))
        raise ValueError(f"source must be one of {names}, got {source!r}")
    if not isinstance(model, _SOURCES[source]):
        names = " and ".join(kind.__name__ for kind in _SOURCES[source])
        raise ValueError(f"source={source!r} knows {names}, got {type(model).__name__}")
    if isinstance(model, SimpleModel):
        arrays, head_relu = _article_model(arrays)
        model.load_state_dict(arrays)
        model.head_relu = head_relu
    elif isinstance(model, Involution):
        renamed = ((_generator_name(name), name, value) for name, value in arrays.items())
        model.load_state_dict(_merge(renamed))
    else:
        counts = (name for name in model.state_dict() if name.endswith(".num_batches_tracked"))
        model.load_state_dict(dict.fromkeys(counts, np.array(0)) | network_state(arrays))


def _source(model: Module, arrays: Mapping[str, Any]) -> Any:
    """Whose names these are."""
    # A network's own names are translated to themselves.
    own = any(name in arrays for name in model.state_dict())
    if own and not isinstance(model, RedNet | ResNet):
        return "invocupy"
    return next((name for name, kinds in _SOURCES.items() if isinstance(model, kinds)), "article")


def network_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays of a RedNet or ResNet under our names, whether from its authors, Paddle or us.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy.weights.names import network_state
    >>> list(network_state({"backbone.stem.1.conv2.conv.bias": np.ones(18)}))
    ['stem.conv2.span.bias']
    """
    renamed = []
    for name, value in _plain(state).items():
        ours = name
        for pattern, new in _NETWORK.items():
            ours = re.sub(pattern, new, ours)
        renamed.append((ours, name, value))
    arrays = _merge(renamed)
    if any(name.endswith("._mean") for _, name, _ in renamed) and "fc.weight" in arrays:
        arrays["fc.weight"] = arrays["fc.weight"].T  # (in, out) in Paddle
    return arrays


def _plain(state: Mapping[str, Any]) -> dict[str, Any]:
    """NumPy arrays, without the prefixes that training programs leave."""
    inner = state.get("state_dict")
    arrays = dict(inner if isinstance(inner, Mapping) else state)
    for prefix in ("state_dict.", "module."):
        if all(name.startswith(prefix) for name in arrays):
            arrays = {name.removeprefix(prefix): value for name, value in arrays.items()}
    read, problems = {}, []
    for name, value in arrays.items():
        try:
            read[name] = readable(value)
        except ValueError as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise ValueError("state cannot be read: " + "; ".join(problems))
    return read


def _article_model(arrays: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    renamed, head = [], []
    for name, value in arrays.items():
        match = re.fullmatch(r"layers\.(\d+)\.([01345])\.(.+)", name)
        if match:
            block, position, rest = match.groups()
            rest = _generator_name(rest) if position == "3" else rest
            renamed.append((f"blocks.{block}.{_BLOCK[position]}.{rest}", name, value))
        else:
            head.append((name, value))
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name, _ in head))
    for name, value in head:
        layer, _, kind = name.rpartition(".")
        renamed.append((f"head.{layers.index(layer)}.{kind}", name, value))
    positions = [int(layer.rpartition(".")[2]) for layer in layers if re.search(r"\.\d+$", layer)]
    gaps = [after - before > 1 for before, after in pairwise(positions)]
    return _merge(renamed), len(positions) == len(layers) and bool(gaps) and all(gaps)


def _generator_name(name: str) -> str:
    layer, _, kind = name.rpartition(".")
    return f"{_GENERATOR.get(layer, layer)}.{kind}"


def _merge(renamed: Iterable[tuple[str, str, Any]]) -> dict[str, Any]:
    """Names to arrays; the article's duplicates must agree."""
    merged: dict[str, Any] = {}
    for name, origin, value in renamed:
        if name in merged and not np.array_equal(merged[name], value, equal_nan=True):
            raise ValueError(f"state has two different arrays for {name}: the second is {origin}")
        merged[name] = value
    return merged
