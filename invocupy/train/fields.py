"""Fields of ``Config``, from which the checks, flags and documentation are generated.

A new setting is one field of ``Config``; then ``python docs/write_settings.py`` updates the page.
"""

from __future__ import annotations

import math
import os
import re
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import Field, field
from typing import Any, NamedTuple

import numpy as np


class Rule(NamedTuple):
    """A rule for a setting, in words that follow "must be"."""

    text: str
    holds: Callable[[Any], bool]


def at_least(low: int, high: int | None = None) -> Rule:
    """Integers from ``low``, to ``high`` if given."""
    if high is None:
        return Rule(f"at least {low}", lambda value: bool(value >= low))
    return Rule(f"at least {low} and at most {high}", lambda value: bool(low <= value <= high))


def within(interval: str) -> Rule:
    """Numbers of an interval such as ``"[0, 1)"``."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    ends = [end for end, bracket in ((low, interval[0]), (high, interval[-1])) if bracket in "[]"]
    return Rule(f"in {interval}", lambda value: low < value < high or value in ends)


POSITIVE = Rule("a finite number above 0", lambda value: 0 < value < math.inf)
NOT_NEGATIVE = Rule("a finite number from 0 on", lambda value: 0 <= value < math.inf)
SHARES = Rule("shares in [0, 1]", lambda values: all(0 <= value <= 1 for value in values))
SEED = Rule("at least 0 and below 2**128", lambda value: 0 <= value < 1 << 128)
FOLDER = Rule(
    "the path of a folder: not empty, without NUL", lambda path: bool(path) and "\0" not in path
)
GRAPH = Rule("auto, True (on) or False (off)", lambda value: value in ("auto", True, False))
DEVICE = Rule(
    "auto, cpu, cuda or cuda:i",
    lambda name: re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,9})?", name) is not None,
)


def setting(
    default: Any, group: str, help: str, rule: Rule | None = None, *,  # noqa: A002
    choices: Iterable[str] = (), unit: str = "", free: bool = False,
) -> Any:  # fmt: skip
    """A field of ``Config``.

    The first sentence of ``help`` is that of the flag; ``choices`` are its values, or ``rule``
    checks them. ``unit`` is the placeholder of a value on the command line; a run may be resumed
    with another value if ``free``.
    """
    choices = tuple(choices)
    about = {
        "group": group, "help": help, "rule": rule, "choices": choices, "unit": unit, "free": free,
    }  # fmt: skip
    return field(default=default, metadata=about)


def values(item: Field[Any]) -> str:
    """The valid values of a setting, in words; empty for any of its type."""
    rule = item.metadata["rule"]
    return ", ".join(item.metadata["choices"]) or (rule.text if rule else "")


def parameters(items: Iterable[Field[Any]]) -> str:
    """The section "Parameters" of a docstring."""
    lines = ["Parameters", "----------"]
    for item in items:
        choices = ", ".join(f'"{name}"' for name in item.metadata["choices"])
        kind = f"{{{choices}}}" if choices else item.type
        rule = "" if choices or not values(item) else f"; {values(item)}"
        text = item.metadata["help"]
        text = f"{text[0].upper()}{text[1:]}.{rule and f' Must be{rule[1:]}.'}"
        lines += [f"{item.name} : {kind}, default {item.default!r}"]
        lines += textwrap.wrap(text, 92, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def problem(item: Field[Any], value: Any) -> str:
    """The rule that a value of a setting violates; empty if it is valid."""
    if not _accepts(str(item.type), value):
        return f"of type {item.type}"
    if type(value) is int and value >= 1 << 31 and item.metadata["rule"] is not SEED:
        return "below 2**31"
    if item.metadata["choices"] and value not in item.metadata["choices"]:
        return f"one of {values(item)}"
    rule = item.metadata["rule"]
    return "" if value is None or rule is None or rule.holds(value) else rule.text


def plain(value: Any) -> Any:
    """A value in Python's own types: numbers, paths as text, lists as tuples."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, np.ndarray):
        value = value[()] if value.ndim == 0 else list(value)
    if isinstance(value, (list, tuple)):  # JSON and TOML have no tuples
        return tuple(map(plain, value))
    if isinstance(value, np.floating):
        return float(value)  # item() of a longdouble is one
    return value.item() if isinstance(value, np.generic) else value


def _accepts(annotation: str, value: Any) -> bool:
    """Whether a value has the type of a setting; an int is also a float, a bool is neither."""
    if annotation == "tuple[float, ...]":
        return isinstance(value, tuple) and all(_accepts("float", v) for v in value)
    name = type(value).__name__.replace("NoneType", "None")
    return name in [*annotation.split(" | "), *(["int"] if "float" in annotation else [])]
