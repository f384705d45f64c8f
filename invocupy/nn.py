"""Layers. Meanings, defaults, initial distributions and running statistics are PyTorch's.

A module finds its parameters, buffers and submodules by walking its attributes in the order of
their assignment: there is no metaclass and no ``__setattr__``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeVar

import numpy as np

from invocupy import arrays
from invocupy import functional as F  # noqa: N812
from invocupy.autograd import Tensor, is_recording
from invocupy.geometry import IntOrPair, Padding, padding_pair, pair
from invocupy.ops.normalization import merged_moments, running_moments
from invocupy.ops.ranks import Comm

M = TypeVar("M", bound="Module")
FusedOption = bool | Literal["auto"]


class Parameter(Tensor):
    """A Tensor that a module learns: always a leaf that requires a gradient.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import nn
    >>> nn.Parameter(np.zeros(3)).requires_grad
    True
    """

    __slots__ = ()

    def __init__(self, data: Any) -> None:
        super().__init__(data, requires_grad=True)


class Buffer:
    """A named array of a module that is state but not learned (running statistics)."""

    __slots__ = ("data",)

    def __init__(self, data: Any) -> None:
        self.data = data


class Module:
    """The base of all layers and models: ``forward`` computes, the rest is bookkeeping.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import nn
    >>> class Twice(nn.Module):
    ...     def __init__(self):
    ...         self.layer = nn.Linear(2, 2, rng=np.random.default_rng(0))
    ...
    ...     def forward(self, x):
    ...         return self.layer(self.layer(x))
    >>> model = Twice()
    >>> [name for name, _ in model.named_parameters()]
    ['layer.weight', 'layer.bias']
    >>> model(np.ones((1, 2), np.float32)).shape
    (1, 2)
    """

    training: bool = True

    def forward(self, x: Any) -> Any:
        """What the module computes; written by subclasses."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(x)")

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        return self.forward(*inputs, **options)

    def children(self) -> Iterator[tuple[str, Module]]:
        """The direct submodules with the names of their attributes."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value

    def modules(self) -> Iterator[tuple[str, Module]]:
        """This module (named ``""``) and all below it, with dotted names."""
        yield "", self
        for name, child in self.children():
            for path, module in child.modules():
                yield f"{name}.{path}" if path else name, module

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Every parameter once, with its dotted name."""
        seen: set[int] = set()
        for name, value in self._state(Parameter):
            if id(value) not in seen:
                seen.add(id(value))
                yield name, value

    def parameters(self) -> Iterator[Parameter]:
        """Every parameter once."""
        for _, parameter in self.named_parameters():
            yield parameter

    def named_buffers(self) -> Iterator[tuple[str, Any]]:
        """Every buffer as an array, with its dotted name."""
        for name, buffer in self._state(Buffer):
            yield name, buffer.data

    def buffers(self) -> Iterator[Any]:
        """Every buffer as an array."""
        for _, array in self.named_buffers():
            yield array

    def _state(self, kind: Any) -> Iterator[tuple[str, Any]]:
        for path, module in self.modules():
            for name, value in vars(module).items():
                if isinstance(value, kind):
                    yield f"{path}.{name}" if path else name, value

    def state_dict(self) -> dict[str, np.ndarray[Any, Any]]:
        """Names to NumPy arrays: parameters and buffers, copied."""
        return {
            name: np.array(arrays.to_device(value.data, "cpu"))
            for name, value in self._state((Parameter, Buffer))
        }

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Take over arrays by name; nothing changes if anything is wrong.

        Parameters
        ----------
        state : mapping of str to array
            Shapes must match; dtypes are converted to the module's.
        strict : bool
            Whether names that are missing or left over are errors.

        Raises
        ------
        ValueError
            Listing every name that is missing, left over or of another shape.
        """
        own = dict(self._state((Parameter, Buffer)))
        problems = [
            f"{name}: shape {tuple(np.shape(state[name]))}, expected {tuple(value.data.shape)}"
            for name, value in own.items()
            if name in state and np.shape(state[name]) != value.data.shape
        ]
        if strict:
            problems += [f"{name}: missing" for name in own if name not in state]
            problems += [f"{name}: left over" for name in state if name not in own]
        if problems:
            raise ValueError("state does not fit the module: " + "; ".join(problems))
        for name, value in own.items():
            if name in state:
                new = np.array(arrays.to_device(state[name], "cpu"), dtype=value.data.dtype)
                value.data = arrays.to_device(new, arrays.device_of(value.data))

    def train(self: M, mode: bool = True) -> M:
        """Set training mode (batch statistics) for this module and all below it."""
        for _, module in self.modules():
            module.training = mode
        return self

    def eval(self: M) -> M:
        """Set evaluation mode (running statistics) for this module and all below it."""
        return self.train(False)

    def to(self: M, device: str) -> M:
        """Move all state to ``"cpu"``, ``"cuda"`` or ``"cuda:i"``; gradients are dropped."""
        for _, value in self._state((Parameter, Buffer)):
            value.data = arrays.to_device(value.data, device)
            if isinstance(value, Parameter):
                value.grad = None
        return self

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters."""
        for parameter in self.parameters():
            parameter.grad = None


class ModuleList(Module):
    """Modules in a list; the names of its members are their numbers.

    Examples
    --------
    >>> from invocupy import nn
    >>> layers = nn.ModuleList([nn.ReLU(), nn.Flatten()])
    >>> len(layers), type(layers[1]).__name__
    (2, 'Flatten')
    """

    def __init__(self, modules: Any = ()) -> None:
        for module in modules:
            self.append(module)

    def append(self, module: Module) -> None:
        """Add one module at the end."""
        setattr(self, str(len(self)), module)

    def __len__(self) -> int:
        return sum(1 for _ in self.children())

    def __iter__(self) -> Iterator[Module]:
        return (child for _, child in self.children())

    def __getitem__(self, index: int) -> Module:
        return list(self)[index]


class Sequential(ModuleList):
    """Modules applied one after another.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import nn
    >>> nn.Sequential(nn.ReLU(), nn.Flatten())(np.full((1, 2, 2), -1.0))
    array([[0., 0., 0., 0.]])
    """

    def __init__(self, *modules: Module) -> None:
        super().__init__(modules)

    def forward(self, x: Any) -> Any:
        """The last module's value."""
        for module in self:
            x = module(x)
        return x


class Identity(Module):
    """Gives back what it gets."""

    def forward(self, x: Any) -> Any:
        """``x``."""
        return x


class ReLU(Module):
    """``max(x, 0)``."""

    def forward(self, x: Any) -> Any:
        """Any shape."""
        return F.relu(x)


class Flatten(Module):
    """All axes but the first joined into one."""

    def forward(self, x: Any) -> Any:
        """(N, ...) to (N, product of the rest)."""
        return F.flatten(x)


class Softmax(Module):
    """Softmax along ``axis``."""

    def __init__(self, axis: int = 1) -> None:
        self.axis = axis

    def forward(self, x: Any) -> Any:
        """Any shape."""
        return F.softmax(x, self.axis)


class MaxPool2d(Module):
    """:func:`invocupy.functional.max_pool2d` as a layer."""

    def __init__(
        self, kernel_size: IntOrPair, stride: IntOrPair | None = None, padding: IntOrPair = 0
    ) -> None:
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding

    def forward(self, x: Any) -> Any:
        """(N, C, H, W) to (N, C, Ho, Wo)."""
        return F.max_pool2d(x, self.kernel_size, self.stride, self.padding)


class AvgPool2d(Module):
    """:func:`invocupy.functional.avg_pool2d` as a layer."""

    def __init__(
        self,
        kernel_size: IntOrPair,
        stride: IntOrPair | None = None,
        padding: IntOrPair = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ) -> None:
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding
        self.ceil_mode, self.count_include_pad = ceil_mode, count_include_pad

    def forward(self, x: Any) -> Any:
        """(N, C, H, W) to (N, C, Ho, Wo)."""
        return F.avg_pool2d(
            x,
            self.kernel_size,
            self.stride,
            self.padding,
            ceil_mode=self.ceil_mode,
            count_include_pad=self.count_include_pad,
        )


class GlobalAvgPool2d(Module):
    """The mean of each channel's image."""

    def forward(self, x: Any) -> Any:
        """(N, C, H, W) to (N, C)."""
        return F.mean(x, axis=(2, 3))


class CrossEntropyLoss(Module):
    """:func:`invocupy.functional.cross_entropy` as a layer; takes logits."""

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing

    def forward(self, logits: Any, labels: Any = None) -> Any:
        """Logits (N, K) and integer labels (N,) to a scalar."""
        return F.cross_entropy(logits, labels, self.label_smoothing)


def _uniform(rng: np.random.Generator | None, shape: tuple[int, ...], fan_in: int) -> Parameter:
    """PyTorch's default for weights and biases: uniform in +-1/sqrt(fan_in), float32."""
    bound = 1 / math.sqrt(fan_in) if fan_in else 0.0
    rng = np.random.default_rng() if rng is None else rng
    return Parameter(rng.uniform(-bound, bound, shape).astype(np.float32))


class Linear(Module):
    """``x @ weight.T + bias``.

    Parameters
    ----------
    in_features, out_features : int
    bias : bool
    rng : numpy.random.Generator, optional
        Where the initial weights are drawn from, uniform in ±1/sqrt(in_features).

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
        self.weight = _uniform(rng, (out_features, in_features), in_features)
        self.bias = _uniform(rng, (out_features,), in_features) if bias else None

    def forward(self, x: Any) -> Any:
        """(N, in_features) to (N, out_features)."""
        return F.linear(x, self.weight, self.bias)


class Conv2d(Module):
    """:func:`invocupy.functional.conv2d` with its weights.

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size, stride, dilation : int or pair
    padding : int, pair, "same" or "valid"
    groups : int
        Divides both channel counts.
    bias : bool
    rng : numpy.random.Generator, optional
        Where the initial weights are drawn from, uniform in ±1/sqrt(in_channels/groups*Kh*Kw).

    Raises
    ------
    ValueError
        If ``groups`` does not divide the channels, or an option is not an integer or pair.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import nn
    >>> nn.Conv2d(3, 8, 3, stride=2, padding=1)(np.ones((1, 3, 8, 8), np.float32)).shape
    (1, 8, 4, 4)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrPair,
        stride: IntOrPair = 1,
        padding: Padding = 0,
        dilation: IntOrPair = 1,
        groups: int = 1,
        bias: bool = True,
        rng: np.random.Generator | None = None,
    ) -> None:
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(
                f"groups must divide in_channels and out_channels, got groups={groups}, "
                f"in_channels={in_channels}, out_channels={out_channels}"
            )
        kernel_h, kernel_w = pair("kernel_size", kernel_size, 1)
        self.stride, self.dilation = pair("stride", stride, 1), pair("dilation", dilation, 1)
        self.padding = padding_pair(padding, (kernel_h, kernel_w), self.dilation)
        self.groups = groups
        fan_in = in_channels // groups * kernel_h * kernel_w
        shape = (out_channels, in_channels // groups, kernel_h, kernel_w)
        self.weight = _uniform(rng, shape, fan_in)
        self.bias = _uniform(rng, (out_channels,), fan_in) if bias else None

    def forward(self, x: Any) -> Any:
        """(N, in_channels, H, W) to (N, out_channels, Ho, Wo)."""
        return F.conv2d(
            x,
            self.weight,
            self.bias,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
        )


class BatchNorm2d(Module):
    """Batch normalisation with running statistics.

    In training the batch's mean and biased variance are used, and
    ``running = (1 - momentum) * running + momentum * batch`` with the *unbiased* variance, as
    PyTorch has it; in evaluation the running statistics are used.

    Parameters
    ----------
    num_features : int
        Channels.
    eps, momentum : float

    Attributes
    ----------
    comm : communicator or None
        With one (:func:`invocupy.distributed.synchronise` sets it), a batch in training is that of
        all ranks together: a message forward, and one backward. The share of a rank may be empty.
        Gradients of weight and bias are those of a rank's share; their sum is the batch's.

    Raises
    ------
    ValueError
        For other channels than ``num_features``, and in training for a batch with a single value a
        channel.

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

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        self.eps, self.momentum = eps, momentum
        self.comm: Comm | None = None
        self.weight = Parameter(np.ones(num_features, np.float32))
        self.bias = Parameter(np.zeros(num_features, np.float32))
        self.running_mean = Buffer(np.zeros(num_features, np.float32))
        self.running_var = Buffer(np.ones(num_features, np.float32))
        self.num_batches_tracked = Buffer(np.zeros((), np.int64))

    def forward(self, x: Any, residual: Any = None, relu: bool = False) -> Any:
        """(N, C, H, W) to the same; adds a residual and applies ReLU in the same pass if asked."""
        if x.ndim != 4 or x.shape[1] != len(self.weight):
            raise ValueError(f"x must be (N, {len(self.weight)}, H, W), got shape {x.shape}")
        options = {"eps": self.eps, "residual": residual, "relu": relu}
        if not self.training:
            running = self.running_mean.data, self.running_var.data
            return F.batch_norm(x, *running, self.weight, self.bias, **options)
        if self.comm is None:
            moments = (*F.batch_moments(x), x.size // max(x.shape[1], 1))
        else:
            moments = merged_moments(x.data if isinstance(x, Tensor) else x, self.comm)
        self.observe(*moments)
        arguments = (None, None, self.weight, self.bias, True)
        return F.batch_norm(x, *arguments, moments=moments, comm=self.comm, **options)

    def observe(self, mean: Any, var: Any, count: Any) -> None:
        """Take the moments (C,) of a batch of ``count`` values a channel into the running ones."""
        if not arrays.is_cupy(count) and count == 1:
            raise ValueError("x must have more than one value a channel in training, got one")
        running = self.running_mean.data, self.running_var.data
        # New arrays: the old ones may be held by somebody.
        self.running_mean.data, self.running_var.data = running_moments(
            *running, mean, var, self.momentum, count
        )
        self.num_batches_tracked.data = self.num_batches_tracked.data + 1


class Involution(Module):
    """The article's involution layer: a generator makes the kernel from x, then involution.

    ``kernel = span(relu(norm(reduce(pool(x)))))`` with 1x1 convolutions ``reduce`` (C to
    C/reduction_ratio) and ``span`` (to G*K*K), both with bias, and ``out = involution(x, kernel)``
    (Li et al., arXiv 2103.06255, section 3; the layout of the article and of the authors' code).
    With a stride s > 1, ``pool`` is an s x s average pool in ceil mode over valid pixels, so that
    odd sizes work; else nothing.

    Parameters
    ----------
    channels : int
        A multiple of ``channels_per_group`` and at least ``reduction_ratio``.
    kernel_size : int or pair
        Odd; padding keeps the size.
    reduction_ratio : int
    channels_per_group : int
        G = channels / channels_per_group.
    stride, dilation : int or pair
    fused : bool or "auto"
        Whether ``span`` and involution run as one, which never stores the kernel; ``"auto"``
        takes it where it is faster or the kernel would be large.
    rng : numpy.random.Generator, optional

    Raises
    ------
    ValueError
        If the channels do not divide, the kernel size is even, or an option is none of its values.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import nn
    >>> layer = nn.Involution(32, kernel_size=7, stride=2)
    >>> layer(np.ones((1, 32, 9, 9), np.float32)).shape
    (1, 32, 5, 5)
    """

    def __init__(
        self,
        channels: int,
        kernel_size: IntOrPair = 3,
        reduction_ratio: int = 4,
        channels_per_group: int = 16,
        stride: IntOrPair = 1,
        dilation: IntOrPair = 1,
        fused: FusedOption = "auto",
        rng: np.random.Generator | None = None,
    ) -> None:
        if channels < 1 or channels_per_group < 1 or channels % channels_per_group:
            raise ValueError(
                f"channels must be a multiple of channels_per_group, got channels={channels}, "
                f"channels_per_group={channels_per_group}"
            )
        if not 1 <= reduction_ratio <= channels:
            raise ValueError(
                f"reduction_ratio must be between 1 and channels={channels}, got {reduction_ratio}"
            )
        if not (isinstance(fused, bool) or fused == "auto"):
            raise ValueError(f"fused must be True, False or 'auto', got {fused!r}")
        self.kernel_size = pair("kernel_size", kernel_size, 1)
        if self.kernel_size[0] % 2 == 0 or self.kernel_size[1] % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        self.stride, self.dilation = pair("stride", stride, 1), pair("dilation", dilation, 1)
        self.groups = channels // channels_per_group
        self.fused = fused
        width = channels // reduction_ratio
        taps = self.kernel_size[0] * self.kernel_size[1]
        self.pool = (
            Identity()
            if self.stride == (1, 1)
            else AvgPool2d(self.stride, self.stride, ceil_mode=True, count_include_pad=False)
        )
        self.reduce = Conv2d(channels, width, 1, rng=rng)
        self.norm = BatchNorm2d(width)
        self.span = Conv2d(width, taps * self.groups, 1, rng=rng)

    def features(self, x: Any) -> Any:
        """What the kernel is made from: (N, C, H, W) to (N, C/reduction_ratio, Ho, Wo)."""
        return self.norm(self.reduce(self.pool(x)), relu=True)

    def kernel(self, x: Any) -> Any:
        """The kernel that the layer makes from x: (N, G, Kh, Kw, Ho, Wo)."""
        flat = self.span(self.features(x))
        n, _, out_h, out_w = flat.shape
        return F.reshape(flat, (n, self.groups, *self.kernel_size, out_h, out_w))

    def forward(self, x: Any) -> Any:
        """(N, C, H, W) to (N, C, ceil(H/stride), ceil(W/stride))."""
        options = {"stride": self.stride, "dilation": self.dilation}
        if not self._fuse(x):
            return F.involution(x, self.kernel(x), **options)
        weight = F.reshape(self.span.weight, self.span.weight.shape[:2])
        features = self.features(x)
        size = self.kernel_size
        return F.fused_involution(x, features, weight, self.span.bias, kernel_size=size, **options)

    def _fuse(self, x: Any) -> bool:
        if self.fused != "auto":
            return bool(self.fused)
        taps = self.kernel_size[0] * self.kernel_size[1]
        n, _, h, w = x.shape
        pixels = n * -(-h // self.stride[0]) * -(-w // self.stride[1])
        # Fused, the kernel is made again for the gradients: the more features, the dearer.
        on_gpu = arrays.is_cupy(x.data if isinstance(x, Tensor) else x)
        narrow = 0 if on_gpu else _NARROW[is_recording()]
        large = pixels * self.groups * taps >= _LARGE_KERNEL
        return bool(large or len(self.reduce.weight) <= narrow)


_LARGE_KERNEL = 2**24  # elements; from there on the stored kernel leaves the caches
_NARROW = {False: 64, True: 32}  # features up to which the CPU fuses, without and with gradients
