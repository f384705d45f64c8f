"""The arrays of a state under plain names: found in checkpoints, without wrappers and counters."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import numpy as np

from invocupy.arrays import Array, readable
from invocupy.autograd import Tensor
from invocupy.messages import one_line
from invocupy.weights.pickles import Placeholder, WeightsError

_PLACES = (
    "state_dict", "model_state_dict", "model_state", "model", "net_state_dict", "net", "network",
    "module", "weights", "params", "checkpoint", "backbone",
    # averages of weights, used only if there is nothing else
    "ema_state_dict", "state_dict_ema", "model_ema", "ema_model", "ema", "params_ema",
)  # fmt: skip
"""Keys under which programs store weights, in order of preference."""
_OUTER = {
    "state_dict", "model", "net", "network", "backbone", "encoder", "ema", "ema_model", "model_ema",
    "averaged_model",
}  # fmt: skip
"""Names under which other modules keep the network."""
_ANYWHERE = {
    "module", "_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module",
}  # fmt: skip
"""Names under which PyTorch and Lightning keep the modules that they wrap."""
_COUNTERS = {"n_averaged", "initted", "step"}
"""Names of counters that averages of weights have."""
_FIRST = {
    "stem", "conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc", "head", "linear",
    "layers", "blocks", "weights0", "BN", "weights1", "kernel_generator", "reduce", "norm", "span",
}  # fmt: skip
"""Names that the networks and layers themselves begin with."""
Renamed = Iterable[tuple[str, str, Any]]
"""Arrays with their new names and the old ones."""

_DEPTH = 8  # of dictionaries
_LONGEST = 1000  # characters of a name: prefixes are cut off one after another
_WAY_OUT = "save model.state_dict(), in float32, float16 or bfloat16"


def plain(state: Any, own: Collection[str] = ()) -> dict[str, Any]:
    """The arrays of a state, or of a checkpoint that has one, under their network's names.

    The names in ``own``, those of the model's arrays, are kept as they are. ValueError if there are
    no arrays, one cannot be read, or two different ones would have the same name.

    >>> list(plain({"n_averaged": np.array(3), "module._orig_mod.fc.bias": np.zeros(2)}))
    ['fc.bias']
    """
    if isinstance(state, str | os.PathLike):
        raise WeightsError(
            f"state must be a mapping of names to arrays, got the path {os.fspath(state)}: read "
            "the file with invocupy.weights.read"
        )
    try:
        found = find(state, lambda v: isinstance(v, list | tuple) or hasattr(v, "shape"))
    except WeightsError as error:
        raise WeightsError(f"state is refused: {error}") from error
    found = {name: value for name, value in found.items() if name not in _COUNTERS - set(own)}
    cut = _shared(found, _FIRST | {name.partition(".")[0] for name in own})
    return merge(
        (_short(".".join(name.split(".")[cut:]), own), name, _array(name, value))
        for name, value in found.items()
    )


def merge(renamed: Renamed) -> dict[str, Any]:
    """Names to arrays; duplicates, as in the article, must be equal."""
    merged: dict[str, Any] = {}
    for name, origin, value in renamed:
        if name in merged and not np.array_equal(merged[name], value, equal_nan=True):
            raise ValueError(f"state has two different arrays for {name}: the second is {origin}")
        merged[name] = value
    return merged


def _shared(names: Iterable[str], known: Collection[str]) -> int:
    """The number of leading components shared by all names, before a known one."""
    for depth, parts in enumerate(zip(*(name.split(".") for name in names), strict=False)):
        if not set(parts).isdisjoint(known):
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


def _array(name: str, value: Any) -> Array:
    """The value as a NumPy array, also if it is a tensor of PyTorch."""
    try:
        if type(value).__module__.partition(".")[0] == "torch":
            value = value.detach().cpu()
            # NumPy has no bfloat16
            value = value.float() if str(value.dtype) == "torch.bfloat16" else value
        return readable(value.data if isinstance(value, Tensor) else value)
    except Exception as error:  # each library has its own
        raise ValueError(f"{name}: {one_line(error)}") from error


def find(content: Any, is_array: Callable[[Any], bool], key: str | None = None) -> dict[str, Any]:
    """The arrays of a checkpoint: of the first dictionary under ``_PLACES`` that has any.

    ``key`` replaces these places: a key, several joined by dots, or a prefix of names. Values that
    are not arrays are skipped, unless the name has a dot, like the names of weights: that is a
    WeightsError, and so is a checkpoint without arrays.

    >>> file = {"epoch": 3, "checkpoint": {"state_dict": {"fc.bias": np.zeros(2)}}}
    >>> list(find(file, lambda value: isinstance(value, np.ndarray)))
    ['fc.bias']
    """
    content = _under(content, key)
    found = _weights(content, is_array, set(), _DEPTH)
    if found is None:
        if isinstance(content, Mapping) and not content:
            return {}
        raise WeightsError(_without_arrays(content, is_array))
    arrays = {}
    for name, value in found.items():
        if is_array(value):
            if not isinstance(name, str) or not name.isprintable() or len(name) > _LONGEST:
                raise WeightsError(
                    f"it has an array under {_text(name)}: names must be plain text of at most "
                    f"{_LONGEST} characters"
                )
            arrays[name] = value
        elif (isinstance(value, Placeholder) and value.is_array) or (
            isinstance(name, str) and "." in name and not name.endswith("_extra_state")
        ):
            raise WeightsError(
                f"it has {_kind(value)} under {_text(name)}, where a weight is needed: {_WAY_OUT}"
            )
    return arrays


def _weights(
    content: Any, is_array: Callable[[Any], bool], seen: set[int], depth: int
) -> Mapping[Any, Any] | None:
    """The first dictionary with arrays; each dictionary is visited once."""
    if not isinstance(content, Mapping) or id(content) in seen or not depth:
        return None
    seen.add(id(content))
    for name in _PLACES:
        found = _weights(content.get(name), is_array, seen, depth - 1)
        if found is not None:
            return found
    return content if any(map(is_array, content.values())) else None


def _under(content: Any, key: str | None) -> Any:
    """The value of a key or, without nested dictionaries, the items whose names start with it."""
    while key is not None:
        if not isinstance(content, Mapping):
            raise WeightsError(f"key asks for {key!r} in {_kind(content)}")
        first, _, rest = (key, "", "") if key in content else key.partition(".")
        if first in content:
            content, key = content[first], rest or None
            continue
        start = f"{key}."
        named = [name for name in content if isinstance(name, str) and name.startswith(start)]
        if not named:
            there = ", ".join(map(_text, list(content)[:20]))
            raise WeightsError(f"it has nothing under key={key!r}, but under {there}")
        return {name.removeprefix(start): content[name] for name in named}
    return content


def _without_arrays(content: Any, is_array: Callable[[Any], bool]) -> str:
    """The message if nothing was found: the reason, and what there is."""
    if not isinstance(content, Mapping):
        kind = "one array" if is_array(content) else _kind(content)
        return f"it holds {kind}: {_WAY_OUT}"
    inner = [
        _text(name)
        for name, value in content.items()
        if isinstance(value, Mapping) and any(map(is_array, value.values()))
    ]
    if inner:
        return f"it has arrays under {', '.join(inner[:20])}: say which with key="
    for _ in range(_DEPTH):
        wrapped = (content.get(name) for name in _PLACES)
        content = next((v for v in wrapped if isinstance(v, Mapping) and v), content)
    some = "; ".join(f"{_text(name)}: {_kind(value)}" for name, value in list(content.items())[:5])
    return f"it has no array, but {some}: {_WAY_OUT}"


def _kind(value: Any) -> str:
    if isinstance(value, Placeholder):
        what = value.what if value.is_array else f"an object of {value.what}"
        return f"{what} (not read, and nothing of it was run)"
    return f"a value of type {type(value).__name__}"


def _text(name: Any) -> str:
    return repr(name[:80]) if isinstance(name, str) else f"a key of type {type(name).__name__}"
