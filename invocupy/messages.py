"""How messages name errors and values, the same everywhere."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

_LONGEST = 1000  # a message may quote a whole file


def one_line(error: BaseException) -> str:
    """The text of an error as one printable line; the name of its class if it has no text.

    Of a system error it is the reason alone: the message that is built names the file.

    Examples
    --------
    >>> one_line(ValueError("first\\nsecond")), one_line(MemoryError())
    ('first second', 'MemoryError')
    >>> one_line(FileNotFoundError(2, "No such file or directory", "a.npz"))
    'No such file or directory'
    """
    text = getattr(error, "strerror", None) or str(error)
    text = " ".join(text.split())[:_LONGEST] or type(error).__name__
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def kind_of(value: Any) -> str:
    """What a value is: the name of its class, or for a class ``the class ...``.

    Examples
    --------
    >>> kind_of(3), kind_of(int)
    ('int', 'the class int')
    """
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``": did you mean X?"`` with the known word nearest to another; empty if none is near.

    Examples
    --------
    >>> did_you_mean("modle", ("model", "layers")), did_you_mean("colour", ("model", "layers"))
    (': did you mean model?', '')
    """
    from difflib import get_close_matches

    near = get_close_matches(word, [*known], 1, cutoff=0.7)
    return f": did you mean {near[0]}?" if near else ""
