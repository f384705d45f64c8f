"""Dropout as a layer, whose random numbers are state like running statistics."""

from __future__ import annotations

from typing import cast

import numpy as np

from invocupy import functional as F  # noqa: N812
from invocupy.autograd import Tensor
from invocupy.geometry import number
from invocupy.messages import shown
from invocupy.nn.module import Input, Module
from invocupy.nn.parameter import Buffer

_STEPS = 0x9E3779B9  # between the keys of two calls; odd, so that 2**32 of them differ
_APART = 0x85EBCA6B  # between those of two ranks


class Dropout(Module):
    """:func:`invocupy.functional.dropout` in training; in evaluation ``x`` itself.

    Parameters
    ----------
    p : float
        In [0, 1], the probability of 0. It may be set before any step.
    rng : numpy.random.Generator, optional
        Draws the first keys.

    Attributes
    ----------
    keys : Buffer (2,), uint32
        The keys of the next mask. They are part of ``state_dict``, so a resumed run continues with
        the masks that it would have had. Weights of other programs lack them: load those with
        ``strict=False``.
    rank : int
        Makes the masks of ranks with equal keys differ: ``fit`` and
        :func:`invocupy.distributed.synchronise` set it.

    Raises
    ------
    TypeError
        For an ``rng`` that is not a Generator.
    ValueError
        For ``p`` outside of [0, 1], also when it is assigned later.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import nn
    >>> layer = nn.Dropout(0.5, rng=np.random.default_rng(0))
    >>> layer(np.ones(6)), layer(np.ones(6))
    (array([2., 0., 0., 2., 2., 0.]), array([2., 0., 2., 0., 2., 2.]))
    >>> layer.eval()(np.ones(2))
    array([1., 1.])
    """

    def __init__(self, p: float = 0.5, rng: np.random.Generator | None = None) -> None:
        if not (rng is None or isinstance(rng, np.random.Generator)):
            raise TypeError(
                f"rng must be a numpy.random.Generator, got {shown(rng)}: use default_rng(seed)"
            )
        self.p, self.rank = p, 0
        self.keys = Buffer(np.random.default_rng(rng).integers(0, 1 << 32, 2, np.uint32))

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, number("p", value, 0, 1) if name == "p" else value)

    def forward(self, x: Input) -> Tensor:
        """Any shape to the same."""
        keys = self.keys.data
        if self.training:  # new arrays: others may hold the old ones
            self.keys.data = keys + _STEPS
            keys = keys ^ (self.rank * _APART % 2**32)
        return F.dropout(cast("Tensor", x), self.p, self.training, keys)
