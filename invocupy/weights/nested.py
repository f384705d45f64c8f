"""Finding the dictionary of a checkpoint that has the weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from invocupy.weights.pickles import Placeholder, WeightsError

WRAPPERS = (
    "state_dict", "model_state_dict", "model_state", "model", "net_state_dict", "net", "network",
    "module", "weights", "params", "checkpoint", "backbone",
    # averages of weights, which are taken where there is nothing else
    "ema_state_dict", "state_dict_ema", "model_ema", "ema_model", "ema", "params_ema",
)  # fmt: skip
"""Keys under which programs store weights, in order of preference."""
_DEPTH = 8
_LONGEST = 1000  # characters of a name: prefixes are cut off one after another
_WAY_OUT = "save model.state_dict(), in float32, float16 or bfloat16"


def find(content: Any, is_array: Callable[[Any], bool], key: str | None = None) -> dict[str, Any]:
    """The arrays of a checkpoint, without its other content.

    Parameters
    ----------
    content
        What the file holds.
    is_array : callable
        Whether something is an array.
    key : str, optional
        Where to look: a key, or several with dots between them; or what names begin with.

    Returns
    -------
    dict of str to array
        Those of the first dictionary under ``WRAPPERS``, however deep, that has any; else those of
        ``content`` itself. What is no array is left out, unless its name has a dot, as those of
        weights have.

    Raises
    ------
    WeightsError
        If there are no arrays, or something that is no array is where weights are.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy.weights.nested import find
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
        elif _is_needed(name, value):
            raise WeightsError(
                f"it has {_kind(value)} under {_text(name)}, where a weight is needed: {_WAY_OUT}"
            )
    return arrays


def _weights(
    content: Any, is_array: Callable[[Any], bool], seen: set[int], depth: int
) -> Mapping[Any, Any] | None:
    """The first dictionary with arrays; each dictionary is looked at once."""
    if not isinstance(content, Mapping) or id(content) in seen or not depth:
        return None
    seen.add(id(content))
    for name in WRAPPERS:
        found = _weights(content.get(name), is_array, seen, depth - 1)
        if found is not None:
            return found
    return content if any(map(is_array, content.values())) else None


def _under(content: Any, key: str | None) -> Any:
    """What is under a key, or under several with dots between them."""
    while key is not None:
        if not isinstance(content, Mapping):
            raise WeightsError(f"key asks for {key!r} in {_kind(content)}")
        first, _, rest = (key, "", "") if key in content else key.partition(".")
        if first not in content:
            return _below(content, key)
        content, key = content[first], rest or None
    return content


def _below(content: Mapping[Any, Any], key: str) -> dict[str, Any]:
    """What has names that begin with a key and a dot, in files without nested dictionaries."""
    named = {name: value for name, value in content.items() if isinstance(name, str)}
    inner = {name: value for name, value in named.items() if name.startswith(f"{key}.")}
    if not inner:
        there = ", ".join(map(_text, list(content)[:20]))
        raise WeightsError(f"it has nothing under key={key!r}, but under {there}")
    return {name.removeprefix(f"{key}."): value for name, value in inner.items()}


def _is_needed(name: Any, value: Any) -> bool:
    """Whether this, which is no array, stands where a weight is."""
    if isinstance(value, Placeholder) and value.is_array:
        return True
    return isinstance(name, str) and "." in name and not name.endswith("_extra_state")


def _without_arrays(content: Any, is_array: Callable[[Any], bool]) -> str:
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
        wrapped = (content.get(name) for name in WRAPPERS)
        content = next(
            (value for value in wrapped if isinstance(value, Mapping) and value), content
        )
    some = "; ".join(f"{_text(name)}: {_kind(value)}" for name, value in list(content.items())[:5])
    return f"it has no array, but {some}: {_WAY_OUT}"


def _kind(value: Any) -> str:
    if isinstance(value, Placeholder):
        what = value.what if value.is_array else f"an object of {value.what}"
        return f"{what} (not read, and nothing of it was run)"
    return f"a value of type {type(value).__name__}"


def _text(name: Any) -> str:
    return repr(name[:80]) if isinstance(name, str) else f"a key of type {type(name).__name__}"
