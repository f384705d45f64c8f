"""Common layers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np

from invocupy import functional as F  # noqa: N812
from invocupy.arrays import Array, check_array, is_cupy
from invocupy.autograd import Tensor, apply, is_recording
from invocupy.geometry import (
    IntOrTuple,
    Padding,
    integer,
    number,
    padding_per_axis,
    per_axis,
)
from invocupy.messages import shown
from invocupy.nn.misfit import Takes, misfit
from invocupy.nn.module import Input, Module
from invocupy.nn.parameter import Buffer, Parameter
from invocupy.ops.expansion import expansion, runs_expanded
from invocupy.ops.normalization import merged_moments, running_moments, without_bias
from invocupy.ops.ranks import Comm


class Identity(Module):
    """``x`` itself."""

    def forward(self, x: Any) -> Any:
        """Anything."""
        return x


class ReLU(Module):
    """``max(x, 0)``."""

    def forward(self, x: Input) -> Any:
        """Any shape."""
        return F.relu(x)


class Flatten(Module):
    """Join all axes but the first."""

    def forward(self, x: Input) -> Any:
        """(N, ...) to (N, product of the rest)."""
        return F.flatten(x)


@dataclass(eq=False, repr=False)
class Softmax(Module):
    """Softmax along ``axis``.

    Parameters
    ----------
    axis : int
        The axis of the classes.
    """

    axis: int = 1

    def forward(self, x: Input) -> Any:
        """Any shape."""
        return F.softmax(x, self.axis)


class CrossEntropyLoss(Module):
    """:func:`invocupy.functional.cross_entropy` with these options.

    Parameters
    ----------
    label_smoothing, weight, ignore_index, reduction
        As there; ``weight`` is a buffer.
    """

    def __init__(
        self, label_smoothing: float = 0.0, *, weight: Array | None = None,
        ignore_index: int | None = -100, reduction: str = "mean",
    ) -> None:  # fmt: skip
        self.label_smoothing = number("label_smoothing", label_smoothing, 0, 1)
        self.ignore_index, self.reduction = ignore_index, reduction
        if weight is not None:
            check_array("weight", weight)
        self.weight = None if weight is None else Buffer(weight, least=0)

    def forward(self, logits: Input, labels: Input) -> Tensor:
        """Logits (N, K, *S) and labels (N, *S) to a scalar; an array for plain arrays."""
        options: dict[str, Any] = {"ignore_index": self.ignore_index, "reduction": self.reduction}
        weight = None if self.weight is None else self.weight.data
        loss = F.cross_entropy(logits, labels, self.label_smoothing, weight=weight, **options)
        return cast("Tensor", loss)


def _uniform(rng: np.random.Generator | None, shape: tuple[int, ...], fan_in: int) -> Parameter:
    """PyTorch's default for weights and biases: uniform in +-1/sqrt(fan_in), float32."""
    if not (rng is None or isinstance(rng, np.random.Generator)):
        raise TypeError(
            f"rng must be a numpy.random.Generator, got {shown(rng)}: use default_rng(seed)"
        )
    bound = 1 / math.sqrt(fan_in)
    drawn = np.random.default_rng(rng).uniform(-bound, bound, shape)
    return Parameter(drawn.astype(np.float32))


class Linear(Module):
    """``x @ weight.T + bias``.

    Parameters
    ----------
    in_features, out_features : int
        The lengths of the vectors.
    bias : bool
        Whether there is a bias; else it is None.
    rng : numpy.random.Generator, optional
        Draws weight and bias, uniform in ±1/sqrt(in_features).

    Raises
    ------
    ValueError
        If a size is not an integer, or below 1.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import nn
    >>> nn.Linear(3, 2)(np.ones((5, 3), np.float32)).shape
    (5, 2)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        rng: np.random.Generator | None = None,
    ) -> None:
        in_features = integer("in_features", in_features, 1)
        out_features = integer("out_features", out_features, 1)
        self.weight = _uniform(rng, (out_features, in_features), in_features)
        self.bias = _uniform(rng, (out_features,), in_features) if bias else None

    def _takes(self) -> Takes:
        return "in_features", self.weight.shape[1], (0,)

    def forward(self, x: Input) -> Tensor:
        """(N, in_features) to (N, out_features)."""
        return F.linear(x, self.weight, self.bias)


class Conv2d(Module):
    """:func:`invocupy.functional.conv2d` by weights and biases of its own.

    Parameters
    ----------
    in_channels, out_channels : int
        C and O.
    kernel_size : int or tuple
        K; a tuple has an integer for each spatial axis.
    stride, padding, dilation, groups
        As in :func:`invocupy.functional.conv2d`.
    bias : bool
        Whether there is a bias; else it is None.
    rng : numpy.random.Generator, optional
        Draws weight and bias, uniform in ±1/sqrt(in_channels/groups*taps).

    Raises
    ------
    ValueError
        If ``groups`` does not divide the channels, or a size is not an integer (or pair) above 0.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import nn
    >>> nn.Conv2d(3, 8, 3, stride=2, padding=1)(np.ones((1, 3, 8, 8), np.float32)).shape
    (1, 8, 4, 4)
    """

    dims: ClassVar[int] = 2

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrTuple,
        stride: IntOrTuple = 1,
        padding: Padding = 0,
        dilation: IntOrTuple = 1,
        groups: int = 1,
        bias: bool = True,
        rng: np.random.Generator | None = None,
    ) -> None:
        in_channels = integer("in_channels", in_channels, 1)
        out_channels = integer("out_channels", out_channels, 1)
        groups = integer("groups", groups, 1)
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f"groups must divide in_channels and out_channels, got groups={groups}, "
                f"in_channels={in_channels}, out_channels={out_channels}"
            )
        size = per_axis("kernel_size", kernel_size, 1, self.dims)
        self.stride = per_axis("stride", stride, 1, self.dims)
        self.dilation = per_axis("dilation", dilation, 1, self.dims)
        self.padding = padding_per_axis(padding, size, self.dilation)
        self.groups = groups
        fan_in = in_channels // groups * math.prod(size)
        self.weight = _uniform(rng, (out_channels, in_channels // groups, *size), fan_in)
        self.bias = _uniform(rng, (out_channels,), fan_in) if bias else None

    def _takes(self) -> Takes:
        return "in_channels", self.weight.shape[1] * self.groups, (self.dims,)

    def forward(self, x: Input, biased: bool = True) -> Tensor:
        """(N, in_channels, *S) to (N, out_channels, *O); not ``biased``, without the bias."""
        out: Tensor = getattr(F, f"conv{self.dims}d")(
            x, self.weight, self.bias if biased else None,
            stride=self.stride, padding=self.padding, dilation=self.dilation, groups=self.groups,
        )  # fmt: skip
        return out


class Conv1d(Conv2d):
    """:func:`invocupy.functional.conv1d`, as :class:`Conv2d`."""

    dims = 1


class Conv3d(Conv2d):
    """:func:`invocupy.functional.conv3d`, as :class:`Conv2d`."""

    dims = 3


class BatchNorm2d(Module):
    """Batch normalisation with running statistics.

    Training uses the mean and biased variance of the batch, and updates
    ``running = (1 - momentum) * running + momentum * batch`` with the *unbiased* variance, like
    PyTorch; evaluation uses the running statistics.

    Parameters
    ----------
    num_features : int
        Channels, at least 1.
    eps : float
        At least 0.
    momentum : float, optional
        In [0, 1]. With None the running statistics are averages over all batches.
    affine : bool
        Whether there are ``weight`` and ``bias``; else they are None.
    track_running_stats : bool
        Whether there are running statistics; else they are None, and evaluation also uses those of
        the batch.

    Attributes
    ----------
    comm : communicator or None
        If set (by :func:`invocupy.distributed.synchronise`), training uses the batch of all ranks
        together, with one message forward and one backward. The share of a rank may be empty.
        Gradients of weight and bias are those of the rank's share; their sum is the batch's.

    Raises
    ------
    ValueError
        If ``eps`` or ``momentum`` is out of range, also when it is assigned later; if x does not
        have ``num_features`` channels; if a batch for statistics has a single value per channel.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import nn
    >>> norm = nn.BatchNorm2d(1)
    >>> norm(np.array([-1.0, 1.0]).reshape(2, 1, 1, 1)).data.round(3).ravel()
    array([-1.,  1.])
    >>> norm.running_var.data
    array([1.1], dtype=float32)
    """

    dims: ClassVar[tuple[int, ...]] = (2,)

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1,
        affine: bool = True, track_running_stats: bool = True,
    ) -> None:  # fmt: skip
        self.num_features = n = integer("num_features", num_features, 1)
        self.eps, self.momentum = eps, momentum
        self.comm: Comm | None = None
        no: Any = None
        ones, zeros = np.ones(n, np.float32), np.zeros(n, np.float32)
        self.weight: Parameter = Parameter(ones) if affine else no
        self.bias: Parameter = Parameter(zeros) if affine else no
        tracks = track_running_stats
        self.running_mean = Buffer(zeros.copy(), least=-math.inf) if tracks else no
        self.running_var = Buffer(ones.copy(), least=0) if tracks else no
        self.num_batches_tracked = Buffer(np.zeros((), np.int64), least=0) if tracks else no

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "eps" or (name == "momentum" and value is not None):
            value = number(name, value, 0, 1 if name == "momentum" else math.inf)
        super().__setattr__(name, value)

    def _takes(self) -> Takes:
        return "num_features", self.num_features, self.dims

    def of(self, conv: Conv2d, x: Input, relu: bool = False) -> Tensor:
        """The norm of ``conv(x)``, optionally with ReLU.

        On a GPU the bias of ``conv`` is left out, because a norm subtracts it again: that saves a
        pass over the result, and one over its gradient. A 1x1 convolution from at most 8 channels
        to more is trained as one operator with norm and ReLU: the moments follow from those of x,
        so that the result is written once, and its gradient read once.
        """
        array = x.data if isinstance(x, Tensor) else x
        if self._has_in_one(conv, array):
            options = {"eps": self.eps, "relu": relu, "observe": self.observe}
            given = conv.weight, conv.bias, self.weight, self.bias
            return cast("Tensor", apply(expansion, x, *given, **options))
        if conv.bias is None or not is_cupy(array) or (not self.training and is_recording()):
            return self(conv(x), relu=relu)
        y = apply(without_bias, conv(x, biased=False), conv.bias)
        return self(y, relu=relu, offset=conv.bias.data)

    def _has_in_one(self, conv: Conv2d, x: Array) -> bool:
        """Whether an operator has ``conv``, the norm by the batch and a ReLU in one."""
        given = conv.weight, conv.bias, self.weight, self.bias
        return (
            is_cupy(x)
            and self.training and self.comm is None and self.weight is not None
            and type(conv).forward is Conv2d.forward and conv.groups == 1
            and x.ndim - 2 in self.dims
            and conv.weight.shape == (self.num_features, x.shape[1], *[1] * (x.ndim - 2))
            and set(conv.stride) == {1} and not np.any(conv.padding)
            and all(p is None or p.data.dtype == x.dtype for p in given)
            and runs_expanded(x, self.num_features)
        )  # fmt: skip

    def forward(
        self, x: Input, residual: Input | None = None, relu: bool = False,
        offset: Array | None = None,
    ) -> Tensor:  # fmt: skip
        """(N, C, *S) to the same; optionally adds a residual and applies ReLU in the same pass.

        With ``offset`` (C,), the norm is that of ``x + offset``.
        """
        if x.ndim - 2 not in self.dims or x.shape[1] != self.num_features:
            raise ValueError(misfit(x, *self._takes()))
        options: dict[str, Any] = {"eps": self.eps, "residual": residual, "relu": relu}
        if self.training or self.running_mean is None:
            comm = self.comm if self.training else None
            if comm is None:
                moments = (*F.batch_moments(x), x.size // max(x.shape[1], 1))
            else:
                moments = merged_moments(x.data if isinstance(x, Tensor) else x, comm)
            mean, var, count = moments
            self.observe(mean if offset is None else mean + offset, var, count)
            options |= {"training": True, "moments": moments, "comm": comm}
        else:
            mean = self.running_mean.data
            options["running_mean"] = mean if offset is None else mean - offset
            options["running_var"] = self.running_var.data
        return cast("Tensor", F.batch_norm(x, weight=self.weight, bias=self.bias, **options))

    def observe(self, mean: Array, var: Array, count: int | Array) -> None:
        """Update the running moments by those (C,) of a batch with ``count`` values per channel."""
        if not is_cupy(count) and count == 1:
            raise ValueError(
                "x must have more than one value per channel, whose variance is taken, got one: "
                "give larger batches, also as the last of an epoch (eval() uses running statistics)"
            )
        if self.running_mean is None:
            return
        running = self.running_mean.data, self.running_var.data
        batches = self.num_batches_tracked.data + 1
        momentum = 1 / batches if self.momentum is None else self.momentum
        rooms = self.running_mean.room(), self.running_var.room()
        self.running_mean.data, self.running_var.data = running_moments(
            *running, mean, var, momentum, count, rooms
        )
        if self.num_batches_tracked.fixed:
            self.num_batches_tracked.data += 1
        else:
            self.num_batches_tracked.data = batches


class BatchNorm1d(BatchNorm2d):
    """:class:`BatchNorm2d` of x (N, C) or (N, C, W)."""

    dims = 0, 1


class BatchNorm3d(BatchNorm2d):
    """:class:`BatchNorm2d` of x (N, C, D, H, W)."""

    dims = (3,)
