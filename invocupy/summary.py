"""Shapes, parameters, multiply-adds and memory of a model, before it is trained.

There are no formulas for particular models: the code of the model runs on a few images with
backends that do nothing (:func:`invocupy.backends.dry_run`), and shapes and allocations are
recorded. So the figures include fusion and recomputation.
"""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import numpy as np

from invocupy import backends, nn, optim
from invocupy import functional as F  # noqa: N812
from invocupy.arrays import Array, device_of, is_cupy, namespace, on_device, to_device
from invocupy.autograd import Tensor, no_grad
from invocupy.backends import memory
from invocupy.messages import html_table

Shape = tuple[int, ...]

Phases = tuple[Callable[[Array, Array], None], ...]
"""The parts of a step: functions of a batch and its labels."""

Counter = tuple[Callable[[], object], Callable[[], int]]
"""Functions to start counting, and for the peak since, in bytes."""

_SIZES = 8, 24  # batch sizes of the two measurements; others are extrapolated


class Layer(NamedTuple):
    """A module of a model, from :func:`layers`; numbers are for one image."""

    name: str  # dotted; "" is the model
    kind: str
    shape: Shape  # of its last result, without the batch; () if that was not an array
    parameters: int  # its own and its submodules'
    macs: int  # multiply-adds of products with weights and kernels: its own and its submodules'


class Layers(list[Layer]):
    """Layers that a notebook shows as a table."""

    def _repr_html_(self) -> str:
        return html_table([layer._asdict() for layer in self])


class StepMemory(NamedTuple):
    """Peak memory of a step in bytes: the largest of ``fixed + images * per_image``."""

    phases: tuple[tuple[int, int], ...]  # (fixed, per_image) of the gradients, of the update

    @property
    def fixed(self) -> int:
        """Weights, and in training gradients and velocities."""
        return max(fixed for fixed, _ in self.phases)

    @property
    def per_image(self) -> int:
        """Bytes for each image of a batch."""
        return max(per_image for _, per_image in self.phases)

    def of(self, images: int) -> int:
        """Bytes for a batch (or part of one) of this size."""
        return max(fixed + images * per_image for fixed, per_image in self.phases)

    def images(self, available: int) -> int:
        """The largest batch that fits into these bytes; 0 if not even one image fits."""
        return max(min((available - fixed) // max(each, 1) for fixed, each in self.phases), 0)

    def plus(self, more: int) -> StepMemory:
        """The same with more fixed memory."""
        return StepMemory(tuple((fixed + more, per_image) for fixed, per_image in self.phases))


def layers(model: nn.Module, shape: Shape = (3, 32, 32)) -> Layers:
    """Every module of a model in the order of its attributes, with its costs for one image.

    Blocks that are computed as one operator are listed as their layers. Multiply-adds are those of
    convolutions, linear maps and involutions (``reduce`` and ``span`` generate the kernel); norms,
    ReLU and pooling are not counted.

    Parameters
    ----------
    model : Module
        Not changed.
    shape : tuple of int
        Of one image, (C, H, W).

    Returns
    -------
    list of Layer
        Which a notebook shows as a table.

    Examples
    --------
    >>> from invocupy import nn
    >>> from invocupy.summary import layers
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
    >>> for layer in layers(model, (3, 10, 10)):
    ...     print(layer)
    Layer(name='', kind='Sequential', shape=(8, 10, 10), parameters=224, macs=21600)
    Layer(name='0', kind='Conv2d', shape=(8, 10, 10), parameters=224, macs=21600)
    Layer(name='1', kind='ReLU', shape=(8, 10, 10), parameters=0, macs=0)
    """
    modules = dict(model.named_modules())  # one that stands at two places counts at its first
    shapes: dict[str, Shape] = {}
    own = dict.fromkeys(modules, 0)

    def note(name: str, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*inputs: Any, **options: Any) -> Any:
            result = forward(*inputs, **options)
            if hasattr(result, "shape"):
                shapes[name] = tuple(result.shape[1:])
                own[name] += _macs(module, result.shape)
            return result

        return noted

    x = to_device(np.zeros((1, *shape), np.float32), device_of(_like(model)))
    with _dry(model, training=False), no_grad(), ExitStack() as undo:
        for name, module in modules.items():
            undo.callback(vars(module).update, dict(vars(module)))
            undo.callback(vars(module).pop, "forward")
            if isinstance(module, nn.Involution):
                module.fused = False
            module.forward = note(name, module, module.forward)
        model(x)

    return Layers(
        Layer(
            name,
            type(module).__name__,
            shapes.get(name, ()),
            sum(parameter.size for parameter in module.parameters()),
            sum(own[n] for n in modules if not name or f"{n}.".startswith(f"{name}.")),
        )
        for name, module in modules.items()
    )


def training_memory(
    model: nn.Module, shape: Shape = (3, 32, 32), **options: float | bool
) -> StepMemory:
    """The memory of training steps of :class:`invocupy.optim.SGD`.

    Parameters
    ----------
    model : Module
        Not changed; on the device whose memory is measured.
    shape : tuple of int
        Of one image, (C, H, W).
    **options
        Of :class:`invocupy.optim.SGD`.

    Returns
    -------
    StepMemory
        Without the program, the images of the data set, and the temporary memory of backends, which
        does not depend on the batch.

    Examples
    --------
    >>> from invocupy.models import SimpleModel
    >>> from invocupy.summary import training_memory
    >>> step = training_memory(SimpleModel(num_layers=1), momentum=0.9)
    >>> step.fixed > 3 * 4 * 1_589_879  # weights, velocities and gradients, in float32
    True
    """

    def prepare() -> Phases:
        sgd = optim.SGD(model.parameters(), 1e-3, **options)  # type: ignore[arg-type]

        def gradients(x: Array, labels: Array) -> None:
            sgd.zero_grad()
            F.cross_entropy(_logits(model, Tensor(x)), labels).backward()

        return gradients, lambda *_: sgd.step()

    with _dry(model, training=True):
        return _measure(model, shape, prepare)


def evaluation_memory(model: nn.Module, shape: Shape = (3, 32, 32)) -> StepMemory:
    """The memory of evaluating batches of images.

    Parameters
    ----------
    model, shape
        As in :func:`training_memory`.

    Returns
    -------
    StepMemory

    Examples
    --------
    >>> from invocupy.models import SimpleModel
    >>> from invocupy.summary import evaluation_memory, training_memory
    >>> model = SimpleModel(num_layers=3)
    >>> evaluation_memory(model).of(100) < training_memory(model).of(100)
    True
    """

    def forward(x: Array, labels: Array) -> None:
        F.cross_entropy(_logits(model, x), labels)

    with _dry(model, training=False), no_grad():
        step = _measure(model, shape, lambda: (forward,))
    return step.plus(sum(array.nbytes for array in model.state_dict().values()))


def dry_forward(model: nn.Module, shape: Shape, images: int) -> None:
    """Raise what a forward pass in training raises for so many images, without computing.

    Parameters
    ----------
    model, shape
        As in :func:`training_memory`.
    images : int
        The size of the batch.

    Examples
    --------
    >>> from invocupy.models import SmallNet
    >>> from invocupy.summary import dry_forward
    >>> dry_forward(SmallNet(width=32), (3, 8, 8), 1)
    Traceback (most recent call last):
    ValueError: layer blocks.4... (BatchNorm2d): x must have more than one value per channel, ...
    """
    x = to_device(np.zeros((images, *shape), np.float32), device_of(_like(model)))
    with _dry(model, training=True):
        _logits(model, Tensor(x))


def _macs(module: nn.Module, result: Shape) -> int:
    """Multiply-adds of a module without its submodules."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        return math.prod(result) * math.prod(module.weight.shape[1:])
    if isinstance(module, nn.Involution):
        return math.prod(result) * math.prod(module.kernel_size)
    return 0


def _like(model: nn.Module) -> Array:
    """An array on the device of the model; a NumPy array if it has no parameters."""
    return next((parameter.data for parameter in model.parameters()), np.zeros(0))


def _logits(model: nn.Module, x: nn.Input) -> Any:
    return getattr(model, "logits", model)(x)


@contextmanager
def _dry(model: nn.Module, training: bool) -> Iterator[None]:
    """Backends do nothing; afterwards the model is as it was."""
    state = [(holder, holder.data) for _, holder in model.named_state()]
    grads = [(p, p.grad) for p in model.parameters()]
    try:
        with (
            nn.keep_modes(model), backends.dry_run(), np.errstate(all="ignore"),
            on_device(_like(model)),
        ):  # fmt: skip
            model.train(training)
            yield
    finally:
        for holder, array in state:
            holder.data = array
        for parameter, grad in grads:
            parameter.grad = grad


def _measure(model: nn.Module, shape: Shape, prepare: Callable[[], Phases]) -> StepMemory:
    """The straight lines through the peaks of two runs, with few and with many images.

    An uncounted run before them imports the modules that are needed.
    """
    like = _like(model)
    xp = namespace(like)

    def peaks(images: int) -> list[int]:
        """Bytes that each phase of the second step adds to those before the first step."""
        with _counting_in_a_pool(xp) if is_cupy(like) else _counting() as (begin, peak):
            phases = prepare()
            for _ in range(2):
                found = []
                x, labels = xp.zeros((images, *shape), np.float32), xp.zeros(images, np.int64)
                for phase in phases:
                    begin()
                    phase(x, labels)
                    found.append(peak())
        return found

    few, many = _SIZES
    _, *runs = map(peaks, (few, few, many))
    lines = []
    for small, large in zip(*runs, strict=True):
        per_image = max(-(-(large - small) // (many - few)), 0)
        lines.append((max(small - few * per_image, 0), per_image))
    return StepMemory(tuple(lines))


@contextmanager
def _counting() -> Iterator[Counter]:
    """Of Python's and NumPy's memory."""
    memory.release_memory()
    started = tracemalloc.is_tracing()
    if not started:
        tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    try:
        yield tracemalloc.reset_peak, lambda: tracemalloc.get_traced_memory()[1] - before
    finally:
        if not started:
            tracemalloc.stop()
        memory.release_memory()


@contextmanager
def _counting_in_a_pool(cupy: Any) -> Iterator[Counter]:
    """Of a separate pool: bytes taken from the device since its free blocks were released."""
    pool = cupy.cuda.MemoryPool()
    with cupy.cuda.using_allocator(pool.malloc):
        yield pool.free_all_blocks, lambda: int(pool.total_bytes())
