"""What the modules of all machines agree on."""

from __future__ import annotations

from typing import NamedTuple

from invocupy.arrays import Array


class Perceptron(NamedTuple):
    """The parameters of a perceptron at each pixel, or their gradients."""

    first: Array  # (D, C): the hidden layer, D channels in groups
    offset: Array  # (D,)
    dense: Array  # (F, D): reads all hidden channels
    bias: Array  # (F,)
    grouped: Array  # (O, D): reads each group by itself
