"""The article's network, with the errors of its listing corrected."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import chain, pairwise
from typing import Any

import numpy as np

from invocupy import functional as F  # noqa: N812
from invocupy import nn
from invocupy.arrays import Array, is_cupy
from invocupy.autograd import Tensor, apply
from invocupy.geometry import integer
from invocupy.messages import layout_hint
from invocupy.ops.block import involution_block
from invocupy.ops.block_whole import running_statistics, runs_whole


class SimpleBlock(nn.Module):
    """1x1 conv to the hidden width, norm, ReLU, involution, 1x1 conv back, norm, ReLU; plus x.

    Parameters
    ----------
    channels, hidden_channels : int
        Channels between blocks, and inside: a multiple of 16.
    fused : bool or "auto"
        False runs layer by layer. Otherwise the whole block is one operator on the CPU, several
        times faster and with a fraction of the memory; on the GPU see
        :class:`invocupy.nn.Involution`.
    signed : bool
        Leave out the last ReLU (with it, as in the article, a block can only add to x) and start
        with scale 0 in the last norm, so that y = x. That norm is named ``signed_norm`` instead of
        ``project_norm``, so that weights of one kind of block do not fit the other.
    rng : numpy.random.Generator, optional
        Draws the initial weights.
    recompute : bool
        Where the block is one operator, recompute its wide part for the gradients; False stores it,
        which takes less time and more memory. An attribute that may be changed at any time; results
        are bit-identical.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy.models import SimpleBlock
    >>> SimpleBlock(3, 64)(np.ones((2, 3, 8, 8), np.float32)).shape
    (2, 3, 8, 8)
    """

    def __init__(
        self,
        channels: int,
        hidden_channels: int,
        fused: nn.FusedOption = "auto",
        signed: bool = False,
        rng: np.random.Generator | None = None,
        recompute: bool = True,
    ) -> None:
        self.recompute = recompute
        self.expand = nn.Conv2d(channels, hidden_channels, 1, rng=rng)
        self.expand_norm = nn.BatchNorm2d(hidden_channels)
        self.involution = nn.Involution(hidden_channels, fused=fused, rng=rng)
        self.project = nn.Conv2d(hidden_channels, channels, 1, rng=rng)
        if signed:
            self.signed_norm = nn.BatchNorm2d(channels)
            self.signed_norm.weight.data = np.zeros(channels, np.float32)
        else:
            self.project_norm = nn.BatchNorm2d(channels)

    @property
    def signed(self) -> bool:
        """Whether the last ReLU is left out."""
        return hasattr(self, "signed_norm")

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The norm after ``project``: ``signed_norm`` or ``project_norm``."""
        return self.signed_norm if self.signed else self.project_norm

    def forward(self, x: nn.Input) -> Tensor:
        """(N, channels, H, W) to the same; x is added after the last ReLU."""
        if self._runs_as_one(x):
            return self._as_one(x)
        hidden = self.expand_norm.of(self.expand, x, relu=True)
        y = self.last_norm.of(self.project, self.involution(hidden), relu=not self.signed)
        return F.add(y, x)

    def _runs_as_one(self, x: nn.Input) -> bool:
        """Whether one operator can compute the block: one dtype, fitting sizes, plain norms."""
        if any(norm.weight is None or norm.running_mean is None for norm in self._norms()):
            return False
        array = x.data if isinstance(x, Tensor) else x
        comm, training = self.expand_norm.comm, self.expand_norm.training
        return (
            self.involution.fused is not False
            and (isinstance(array, np.ndarray) or (is_cupy(array) and comm is None))
            and array.ndim == 4
            and runs_whole(
                array,
                *(p.data for p in self._weights()),
                kernel_size=self.involution.kernel_size,
                dilation=self.involution.dilation,
            )
            # More than one value per channel; of several ranks all go the same way, even with none.
            and (array.size > array.shape[1] or (training and comm is not None))
            and all(norm.comm is comm and norm.training is training for norm in self._norms())
            and all(p.data.dtype == array.dtype for p in self._weights())
        )

    def _norms(self) -> tuple[nn.BatchNorm2d, ...]:
        return self.expand_norm, self.involution.norm, self.last_norm

    def _weights(self) -> list[Any]:
        """All parameters, in the order of the operator's arguments."""
        middle = self.involution
        layers = (
            self.expand, self.expand_norm, middle.reduce, middle.norm, middle.span,
            self.project, self.last_norm,
        )  # fmt: skip
        return [parameter for layer in layers for parameter in (layer.weight, layer.bias)]

    def _as_one(self, x: nn.Input) -> Tensor:
        """The same by :func:`~invocupy.ops.block.involution_block`: the wide part is not stored."""
        middle, norms = self.involution, self._norms()

        def observe(moments: tuple[tuple[Array, Array], ...], count: int | Array) -> None:
            stats = getattr(moments, "stats", None)
            buffers = [
                (norm.running_mean, norm.running_var, norm.num_batches_tracked) for norm in norms
            ]
            momenta = [norm.momentum for norm in norms if norm.momentum is not None]
            if (
                stats is not None
                and len(momenta) == len(norms)
                and all(mean.data.dtype == stats.dtype for mean, *_ in buffers)
            ):
                old = [tuple(buffer.data for buffer in three) for three in buffers]
                new = [tuple(buffer.room() for buffer in three) for three in buffers]
                running_statistics(old, moments, momenta, count, new)
                for buffer, array in zip(chain(*buffers), chain(*new), strict=True):
                    buffer.data = array
                return
            for norm, (mean, var) in zip(norms, moments, strict=True):
                norm.observe(mean, var, count)

        statistics: dict[str, Any] = {"moments": None, "observe": observe}
        if not self.expand_norm.training:
            moments = tuple((norm.running_mean.data, norm.running_var.data) for norm in norms)
            statistics = {"moments": moments, "observe": None}
        out: Tensor = apply(
            involution_block, x, *self._weights(), **statistics,
            kernel_size=middle.kernel_size, dilation=middle.dilation,
            eps=tuple(norm.eps for norm in norms), recompute=self.recompute,
            relu=not self.signed, comm=self.expand_norm.comm,
        )  # fmt: skip
        return out


class SimpleModel(nn.Module):
    """The article's network: 50 involution blocks on a 3-channel stream, then three dense layers.

    ``model(x)`` returns class probabilities, as in the article. Train on ``model.logits(x)``:
    cross-entropy includes a softmax, and a second one keeps the loss above
    ``log(e + 9) - 1 = 1.461`` and shrinks the gradients.

    Parameters
    ----------
    height, width, in_channels : int
        Of the images.
    hidden_channels, num_layers, num_classes : int
        ``num_layers`` blocks with ``hidden_channels`` inside: a multiple of 16.
    head_relu : bool
        Whether a ReLU follows the first and the second dense layer, as in the article. Without
        them the three layers are one linear map.
    fused, signed, recompute, rng
        See :class:`SimpleBlock`; ``rng`` may also be a seed.

    Raises
    ------
    ValueError
        For sizes below 1 or hidden channels that are not a multiple of 16.

    Notes
    -----
    The names of the weights depend on the options: the dense layers are ``head.0``,
    ``head.2``, ``head.4`` with ReLUs and ``head.0``, ``head.1``, ``head.2`` without. Weights of a
    model with another ``head_relu`` or ``signed`` are refused.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy.models import SimpleModel
    >>> model = SimpleModel(num_layers=2, rng=0)
    >>> probabilities = model(np.zeros((1, 3, 32, 32), np.float32))
    >>> round(float(probabilities.data.sum()), 4)
    1.0
    >>> sum(p.size for p in SimpleModel().parameters())
    1701060
    """

    def __init__(
        self,
        height: int = 32,
        width: int = 32,
        hidden_channels: int = 64,
        num_layers: int = 50,
        num_classes: int = 10,
        head_relu: bool = True,
        fused: nn.FusedOption = "auto",
        signed: bool = False,
        rng: np.random.Generator | int | None = None,
        recompute: bool = True,
        in_channels: int = 3,
    ) -> None:
        height, width = integer("height", height, 1), integer("width", width, 1)
        num_layers = integer("num_layers", num_layers, 0)
        num_classes = integer("num_classes", num_classes, 1)
        rng = np.random.default_rng(rng)
        channels = integer("in_channels", in_channels, 1)
        self.blocks = nn.ModuleList(
            SimpleBlock(channels, hidden_channels, fused, signed, rng, recompute)
            for _ in range(num_layers)
        )
        self.image = channels, height, width
        head: list[nn.Module] = []
        for before, after in pairwise((channels * height * width, 500, 100, num_classes)):
            head += [nn.ReLU()] if head and head_relu else []
            head.append(nn.Linear(before, after, rng=rng))
        self.head = nn.Sequential(*head)

    @property
    def head_relu(self) -> bool:
        """Whether a ReLU follows the first and the second dense layer."""
        return any(isinstance(module, nn.ReLU) for module in self.head)

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """As :meth:`invocupy.nn.Module.load_state_dict`, but names the option of another model.

        Raises
        ------
        ValueError
            If the names say that the state is of a model with another ``head_relu`` or ``signed``.
        """
        own = [name for name, _ in self.named_parameters()]
        names = state if isinstance(state, Mapping) else ()
        for option, (pattern, yes) in _NAMED.items():
            mine, its = _said(own, pattern, yes), _said(names, pattern, yes)
            if None not in (mine, its) and mine != its:
                raise ValueError(
                    f"state has the names of a SimpleModel with {option}={its}, but this one was "
                    f"made with {option}={mine}: load it into SimpleModel({option}={its})"
                )
        super().load_state_dict(state, strict)

    def logits(self, x: nn.Input) -> Tensor:
        """(N, in_channels, height, width) to (N, num_classes), before the softmax."""
        shape = getattr(x, "shape", (0, *self.image))
        if len(shape) != 4 or tuple(shape[1:]) != self.image:
            hint = layout_hint(shape, self.image[0], 2) or (
                ": give such images, or make the model with their height, width and in_channels"
            )
            raise ValueError(
                f"x must have the shape (N, {', '.join(map(str, self.image))}), got {shape}{hint}"
            )
        for block in self.blocks:
            x = block(x)
        return self.head(F.flatten(x))

    def forward(self, x: nn.Input) -> Tensor:
        """(N, in_channels, height, width) to class probabilities (N, num_classes)."""
        return F.softmax(self.logits(x), axis=1)


_NAMED = {
    "head_relu": (r"head\.([14])\.", "4"),
    "signed": (r"blocks\.\d+\.(signed|project)_norm\.", "signed"),
}
"""The part of a weight's name that differs with an option, and what it is where that is True."""


def _said(names: Iterable[str], pattern: str, yes: str) -> bool | None:
    """The value of an option that the names of a state show; None if they show none."""
    matches = (re.match(pattern, str(name)) for name in names)
    found = {match[1] for match in matches if match}
    return yes in found if found else None
