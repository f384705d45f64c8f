"""Weights from elsewhere: other programs' names for the same arrays, mapped to ours.

A state is a mapping of names to arrays. A name that is missing or left over is an error, so a
checkpoint either fits exactly or changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from invocupy.models import SimpleModel
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


def import_state(
    model: Module,
    state: Mapping[str, Any],
    source: Literal["auto", "article", "invocupy"] = "auto",
) -> None:
    """Load weights that another program has named.

    Parameters
    ----------
    model : Module
        :class:`~invocupy.models.SimpleModel` or :class:`~invocupy.nn.Involution` for the
        article's names; any module for our own.
    state : mapping of str to array
        NumPy arrays, or anything ``numpy.asarray`` takes (PyTorch's CPU tensors among them).
    source : "auto", "article" or "invocupy"
        Whose names they are: the article's PyTorch classes (``layers.0.3.weights0.weight``, with
        duplicates under ``kernel_generator``), or :meth:`~invocupy.nn.Module.state_dict`'s.
        ``"auto"`` sees it from the names.

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
    arrays = {name: np.asarray(value) for name, value in state.items()}
    if source == "auto":
        own = any(name in arrays for name in model.state_dict())
        source = "invocupy" if own else "article"
    if source == "article":
        if isinstance(model, SimpleModel):
            arrays, head_relu = _article_model(arrays)
            model.load_state_dict(arrays)
            model.head_relu = head_relu
            return
        if not isinstance(model, Involution):
            raise ValueError(
                f"source='article' knows SimpleModel and Involution, got {type(model).__name__}"
            )
        arrays = _merge((_generator_name(name), name, value) for name, value in arrays.items())
    elif source != "invocupy":
        raise ValueError(f"source must be 'auto', 'article' or 'invocupy', got {source!r}")
    model.load_state_dict(arrays)


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


def _merge(renamed: Any) -> dict[str, Any]:
    """Names to arrays; the article's duplicates must agree."""
    merged: dict[str, Any] = {}
    for name, origin, value in renamed:
        if name in merged and not np.array_equal(merged[name], value, equal_nan=True):
            raise ValueError(f"state has two different arrays for {name}: the second is {origin}")
        merged[name] = value
    return merged
