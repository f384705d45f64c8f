"""Parts of messages that are the same everywhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_LONGEST = 1000  # a message may quote a whole file


def one_line(error: BaseException) -> str:
    """The text of an error as one printable line; the name of its class if it has no text.

    For a system error it is the reason alone, since our messages name the file.

    Examples
    --------
    >>> one_line(ValueError("first\\nsecond")), one_line(MemoryError())
    ('first second', 'MemoryError')
    >>> one_line(FileNotFoundError(2, "No such file or directory", "a.npz"))
    'No such file or directory'
    """
    text = getattr(error, "strerror", None) or str(error)
    text = " ".join(text.split())[:_LONGEST] or type(error).__name__
    return printable(text)


def printable(text: str) -> str:
    """The text with ``?`` in the place of control characters and lone surrogates.

    >>> printable("a\\tb\\x1b[2J")
    'a?b?[2J'
    """
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def shown(value: Any) -> str:
    """A value as text for a message: one line, shortened.

    >>> shown("a" * 99)
    "'aaa..."
    """
    try:
        text = " ".join(repr(value).split())
    except Exception:  # an integer of more digits than Python writes
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def kind_of(value: Any) -> str:
    """The name of a value's class, or for a class ``the class ...``.

    Examples
    --------
    >>> kind_of(3), kind_of(int)
    ('int', 'the class int')
    """
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``": did you mean X?"`` with the known word most similar to ``word``; "" if none is.

    Examples
    --------
    >>> did_you_mean("modle", ("model", "layers")), did_you_mean("colour", ("model", "layers"))
    (': did you mean model?', '')
    """
    from difflib import get_close_matches

    near = get_close_matches(word, [*known], 1, cutoff=0.7)
    return f": did you mean {near[0]}?" if near else ""


def html_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table for notebooks, a line for each mapping, with the keys of the first one as its head.

    Examples
    --------
    >>> html_table([{"epoch": 1, "loss": 0.25}])
    '<table><tr><th>epoch</th><th>loss</th></tr><tr><td>1</td><td>0.25</td></tr></table>'
    """
    from html import escape  # here, so that importing the package stays short

    def line(kind: str, cells: Iterable[Any]) -> str:
        texts = ("" if cell is None else _short(cell) for cell in cells)
        return f"<tr>{''.join(f'<{kind}>{escape(text)}</{kind}>' for text in texts)}</tr>"

    lines = (line("td", map(row.get, rows[0])) for row in rows)
    return f"<table>{line('th', rows[0]) if rows else ''}{''.join(lines)}</table>"


def _short(cell: Any) -> str:
    """Integers in groups of three digits, other numbers with four digits, shapes with crosses."""
    if isinstance(cell, tuple):
        return " × ".join(map(str, cell))
    if type(cell) is int:
        return f"{cell:,}"
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def layout_hint(shape: Sequence[int], channels: int | None, dims: int) -> str:
    """How to convert x to (N, C, *S) with ``dims`` spatial axes, if its layout is recognised.

    ``channels`` is the expected number, None for any. Otherwise the text is empty.

    Examples
    --------
    >>> layout_hint((8, 32, 32, 3), 3, 2)
    ', which looks like NHWC: transpose with x.transpose(0, 3, 1, 2)'
    >>> layout_hint((3, 32, 32), None, 2)
    ', without a batch axis: add it with x[None]'
    """
    axes = len(shape)
    batch = axes - dims - 1  # 1 with a batch axis, 0 without
    if batch not in (0, 1):
        return ""
    if channels is not None and shape[batch] != channels == shape[-1]:
        name = ("NWC", "NHWC", "NDHWC")[dims - 1][1 - batch :]
        order = ", ".join(map(str, (*range(batch), axes - 1, *range(batch, axes - 1))))
        add = "" if batch else "[None]"
        return f", which looks like {name}: transpose with x.transpose({order}){add}"
    if not batch and channels in (None, shape[0]):
        return ", without a batch axis: add it with x[None]"
    return ""
