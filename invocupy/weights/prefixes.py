"""Removing what training programs add to states: wrappers, prefixes, counters."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Set
from typing import Any

import numpy as np

from invocupy.arrays import readable
from invocupy.autograd import Tensor
from invocupy.messages import one_line
from invocupy.weights.nested import find
from invocupy.weights.pickles import WeightsError

_OUTER = frozenset((
    "state_dict", "model", "net", "network", "backbone", "encoder", "ema", "ema_model", "model_ema",
    "averaged_model",
))  # fmt: skip
"""Names under which other modules keep the network."""
_ANYWHERE = frozenset((
    "module", "_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module",
))  # fmt: skip
"""Names under which PyTorch and Lightning keep the modules that they wrap."""
_COUNTERS = frozenset(("n_averaged", "initted", "step"))
"""Names of counters that averages of weights have."""
_FIRST = frozenset((
    "stem", "conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc", "head", "linear",
    "layers", "blocks", "weights0", "BN", "weights1", "kernel_generator", "reduce", "norm", "span",
))  # fmt: skip
"""Names that the networks and layers themselves begin with."""


def plain(state: Any, own: Collection[str] = ()) -> dict[str, Any]:
    """The arrays of a state under the names that its network gives them.

    Parameters
    ----------
    state : mapping of str to array
        Or a checkpoint that has one (:func:`invocupy.weights.nested.find`).
    own : collection of str
        Names of the model's arrays, of which nothing is cut off.

    Raises
    ------
    ValueError
        If there are no arrays, one cannot be read, or two with other values have one name then.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy.weights.prefixes import plain
    >>> list(plain({"n_averaged": np.array(3), "module._orig_mod.fc.bias": np.zeros(2)}))
    ['fc.bias']
    """
    try:
        found = find(state, _is_array)
    except WeightsError as error:
        raise WeightsError(f"state is refused: {error}") from error
    found = {name: value for name, value in found.items() if name not in _COUNTERS - set(own)}
    cut = _shared(found, _FIRST | {name.partition(".")[0] for name in own})
    return merge(
        (_short(".".join(name.split(".")[cut:]), own), name, _array(name, value))
        for name, value in found.items()
    )


def merge(renamed: Iterable[tuple[str, str, Any]]) -> dict[str, Any]:
    """Names to arrays; several of one name, as the article has them, must agree."""
    merged: dict[str, Any] = {}
    for name, origin, value in renamed:
        if name in merged and not np.array_equal(merged[name], value, equal_nan=True):
            raise ValueError(f"state has two different arrays for {name}: the second is {origin}")
        merged[name] = value
    return merged


def _shared(names: Iterable[str], known: Set[str]) -> int:
    """How many components all names share before one that is known follows."""
    for depth, parts in enumerate(zip(*(name.split(".") for name in names), strict=False)):
        if not known.isdisjoint(parts):
            return depth
        if len(set(parts)) > 1:
            break
    return 0


def _short(name: str, own: Collection[str]) -> str:
    """A name without the components of wrappers; a name of the model if one matches."""
    parts = name.split(".")
    for start, part in enumerate(parts):
        if (rest := ".".join(parts[start:])) in own:
            return rest
        if part not in _OUTER | _ANYWHERE:
            break
    *path, last = parts
    inner = [part for part in path if part not in _ANYWHERE]
    while inner and inner[0] in _OUTER and ".".join([*inner, last]) not in own:
        del inner[0]
    return ".".join([*inner, last])


def _is_array(value: Any) -> bool:
    return isinstance(value, list | tuple) or hasattr(value, "shape")


def _array(name: str, value: Any) -> Any:
    """The value as a NumPy array, also if it is a tensor of PyTorch."""
    try:
        if type(value).__module__.partition(".")[0] == "torch":
            value = value.detach().cpu()
            # NumPy has no bfloat16
            value = value.float() if str(value.dtype) == "torch.bfloat16" else value
        return readable(value.data if isinstance(value, Tensor) else value)
    except Exception as error:  # each library has its own
        raise ValueError(f"{name}: {one_line(error)}") from error
