"""Sections that are made from a signature."""

from __future__ import annotations

import inspect
from typing import Any

from invocupy.docstrings import documented


def test_sections_are_those_of_the_signature() -> None:
    @documented
    def scaled(x: float, factor: float = 2.0, *rest: Any) -> float:
        """A number times a factor.

        The rest is left out.

        Parameters
        ----------
        factor, rest
            One by which it is multiplied,
            and others.

        >>> scaled(3)
        6.0
        """
        return x * factor

    assert inspect.getdoc(scaled) == (
        "A number times a factor.\n\nThe rest is left out.\n\n"
        "Parameters\n----------\nx : float\n    Of any shape.\nfactor : float, default 2.0\n"
        "    One by which it is multiplied,\n    and others.\nrest : Any\n"
        "    One by which it is multiplied,\n    and others.\n\n"
        "Returns\n-------\nfloat\n\n"
        "Examples\n--------\n>>> scaled(3)\n6.0"
    )


def test_errors_stand_between_results_and_examples() -> None:
    @documented
    def half(n: int) -> int:
        """Half of a number.

        Raises
        ------
        ValueError
            If it is odd.

        >>> half(4)
        2
        """
        return n // 2

    assert inspect.getdoc(half) == (
        "Half of a number.\n\n"
        "Parameters\n----------\nn : int\n\n"
        "Returns\n-------\nint\n\n"
        "Raises\n------\nValueError\n    If it is odd.\n\n"
        "Examples\n--------\n>>> half(4)\n2"
    )


def test_nothing_is_added_that_the_signature_does_not_have() -> None:
    @documented
    def quiet() -> None:
        """Do nothing.

        >>> quiet()
        """

    assert inspect.getdoc(quiet) == "Do nothing.\n\nExamples\n--------\n>>> quiet()"


def test_a_function_without_an_example_stays_as_it_is() -> None:
    @documented
    def plain(x: int) -> int:
        return x

    assert plain.__doc__ is None
    assert plain(3) == 3
