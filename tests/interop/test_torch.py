"""The PyTorch operators: the same bits as for arrays, gradients, autocast, errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import invocupy
from invocupy import reference
from invocupy.testing import tolerance

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
interop = pytest.importorskip("invocupy.interop.torch")
Tensor = Any

OPERATORS = ["forward", "grad_x", "grad_kernel", "fused_forward", "fused_grad_x", "fused_grad_span"]
PLAIN = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}
X, KERNEL = (2, 4, 7, 6), (2, 2, 3, 3, 4, 6)
FEATURES, WEIGHT = (2, 3, 4, 6), (18, 3)


def draw(*shape: int, seed: int = 0, dtype: Any = torch.float64, grad: bool = True) -> Tensor:
    numbers = np.random.default_rng(seed + sum(shape)).standard_normal(shape)
    return torch.tensor(numbers, dtype=dtype, requires_grad=grad)


def plain_operands(**how: Any) -> tuple[Tensor, Tensor]:
    return draw(*X, **how), draw(*KERNEL, **how)


def fused_operands(**how: Any) -> tuple[Tensor, ...]:
    return draw(*X, **how), draw(*FEATURES, **how), draw(*WEIGHT, **how), draw(18, **how)


def plain(x: Tensor, kernel: Tensor) -> Tensor:
    return interop.involution(x, kernel, **PLAIN)


def fused(x: Tensor, features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return interop.fused_involution(x, features, weight, bias, kernel_size=3, **PLAIN)


# ---------------------------------------------------------------------------- values


def lay_out(tensor: Tensor, layout: str) -> Tensor:
    match layout:
        case "reversed axes":
            return (
                tensor.permute(*range(tensor.ndim)[::-1])
                .contiguous()
                .permute(*range(tensor.ndim)[::-1])
            )
        case "sliced":
            larger = torch.full([2 * n + 1 for n in tensor.shape], torch.nan, dtype=tensor.dtype)
            view = larger[(slice(1, None, 2),) * tensor.ndim]
            return view.copy_(tensor)
        case "unaligned":
            memory = np.empty(tensor.numpy().nbytes + 1, np.uint8)[1:]
            return torch.frombuffer(memory, dtype=tensor.dtype).view(tensor.shape).copy_(tensor)
    return tensor


@pytest.mark.parametrize("layout", ["plain", "reversed axes", "sliced"])
@pytest.mark.parametrize(
    ("x_dtype", "kernel_dtype"), [(torch.float32, torch.float32), (torch.float64, torch.float32)]
)
@pytest.mark.parametrize("batch", [0, 2])
def test_same_bits_as_for_arrays(x_dtype: Any, kernel_dtype: Any, layout: str, batch: int) -> None:
    x, kernel = draw(batch, *X[1:], dtype=x_dtype), draw(batch, *KERNEL[1:], dtype=kernel_dtype)
    seen = [lay_out(t.detach(), layout).requires_grad_() for t in (x, kernel)]
    out = plain(*seen)
    arrays = [t.detach().numpy() for t in (x, kernel)]
    assert out.is_contiguous()
    assert out.dtype == torch.promote_types(x_dtype, kernel_dtype)
    np.testing.assert_array_equal(out.detach().numpy(), invocupy.involution(*arrays, **PLAIN))

    grad = draw(*out.shape, seed=1, dtype=out.dtype, grad=False)
    got = torch.autograd.grad(out, seen, lay_out(grad, layout))
    wanted = invocupy.involution_backward(grad.numpy(), *arrays, **PLAIN)
    for tensor, array, like in zip(got, wanted, seen, strict=True):
        assert tensor.dtype == like.dtype
        np.testing.assert_array_equal(tensor.numpy(), array)


@pytest.mark.parametrize("bias", [True, False])
def test_fused_has_the_same_bits_as_for_arrays(bias: bool) -> None:
    tensors = fused_operands(dtype=torch.float32)[: 4 if bias else 3]
    arrays = [tensor.detach().numpy() for tensor in tensors]
    out = interop.fused_involution(*tensors, kernel_size=3, **PLAIN)
    np.testing.assert_array_equal(
        out.detach().numpy(), invocupy.fused_involution(*arrays, kernel_size=3, **PLAIN)
    )
    grad = draw(*out.shape, seed=1, dtype=torch.float32, grad=False)
    got = torch.autograd.grad(out, tensors, grad)
    wanted = invocupy.fused_involution_backward(grad.numpy(), *arrays, kernel_size=3, **PLAIN)
    for tensor, array in zip(got, wanted, strict=bias):
        np.testing.assert_array_equal(tensor.numpy(), array)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The arrays that the backend's forward gets, result included."""
    arrays: list[Any] = []
    module = invocupy.backends.of("involution", np.ones(1))
    forward = module.forward

    def spy(x: Any, kernel: Any, g: Any, out: Any) -> None:
        arrays.extend((x, kernel, out))
        forward(x, kernel, g, out)

    monkeypatch.setattr(module, "forward", spy)
    return arrays


def test_unaligned_memory_is_copied(seen: list[Any]) -> None:
    x, kernel = plain_operands(grad=False)
    x = lay_out(x, "unaligned")
    plain(x, kernel)
    assert not x.numpy().flags.aligned
    assert all(array.flags.aligned for array in seen)
    np.testing.assert_array_equal(seen[0], x)


def test_no_copy_of_contiguous_tensors(seen: list[Any]) -> None:
    x, kernel = plain_operands()
    out = plain(x, kernel)
    addresses = [array.ctypes.data for array in seen]
    assert addresses == [x.data_ptr(), kernel.data_ptr(), out.data_ptr()]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_on_the_cpu_are_computed_in_float32(dtype: Any) -> None:
    x, kernel = plain_operands(dtype=dtype)
    out = plain(x, kernel)
    wide = plain(x.detach().float(), kernel.detach().float())
    assert torch.equal(out, wide.to(dtype))
    out.sum().backward()
    assert x.grad.dtype == kernel.grad.dtype == dtype


# ---------------------------------------------------------------------------- gradients


def test_gradcheck_to_the_second_order() -> None:
    assert torch.autograd.gradcheck(plain, plain_operands())
    assert torch.autograd.gradgradcheck(plain, plain_operands())
    assert torch.autograd.gradcheck(fused, fused_operands())
    assert torch.autograd.gradgradcheck(fused, fused_operands())


@pytest.mark.parametrize("wanted", range(2))
def test_gradients_nobody_wants_are_not_computed(
    wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = invocupy.backends.of("involution", np.ones(1))
    monkeypatch.delattr(module, ["grad_kernel", "grad_x"][wanted])
    tensors = plain_operands(grad=False)
    tensors[wanted].requires_grad_()
    plain(*tensors).sum().backward()
    assert tensors[wanted].grad is not None


# ---------------------------------------------------------------------------- compile, opcheck


def arguments(name: str) -> tuple[Any, ...]:
    numbers = tuple(list(option) for option in PLAIN.values())
    x, kernel = plain_operands()
    _, features, weight, bias = fused_operands()
    grad = draw(2, 4, 4, 6, seed=1)
    return {
        "forward": (x, kernel),
        "grad_x": (grad, kernel, [7, 6]),
        "grad_kernel": (grad, x, [2, 3, 3]),
        "fused_forward": (x, features, weight, bias, [3, 3]),
        "fused_grad_x": (grad, features, weight, bias, [7, 6], [3, 3]),
        "fused_grad_span": (grad, x, features, weight, [3, 3]),
    }[name] + numbers


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # its own
@pytest.mark.parametrize("name", OPERATORS)
def test_opcheck(name: str) -> None:
    results = torch.library.opcheck(getattr(interop.operators, name), arguments(name))
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("function", [plain, fused], ids=["plain", "fused"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_whole_forward_and_backward(function: Any, dynamic: bool) -> None:
    """Without graph breaks; Inductor itself is run once below."""
    torch._dynamo.reset()
    operands = plain_operands if function is plain else fused_operands

    def step(*tensors: Tensor) -> Tensor:
        return function(*(2 * t for t in tensors)).relu()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for seed in range(2):
        tensors = operands(seed=seed)
        out = compiled(*tensors)
        expected = step(*tensors)
        assert torch.equal(out, expected)
        grad = draw(*out.shape, seed=9, grad=False)
        got, wanted = (torch.autograd.grad(y, tensors, grad) for y in (out, expected))
        for one, other in zip(got, wanted, strict=True):
            assert torch.equal(one, other)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's own, when Inductor loads
def test_inductor() -> None:
    torch._dynamo.reset()
    x, kernel = plain_operands(dtype=torch.float32)

    def step(x: Tensor, kernel: Tensor) -> Tensor:
        return plain(2 * x, kernel)

    out, expected = torch.compile(step, fullgraph=True)(x, kernel), step(x, kernel)
    assert torch.equal(out, expected)
    grad = draw(*out.shape, seed=1, dtype=torch.float32, grad=False)
    got, wanted = (torch.autograd.grad(y, (x, kernel), grad) for y in (out, expected))
    assert all(map(torch.equal, got, wanted))


def test_a_layer_compiles_whole() -> None:
    torch._dynamo.reset()
    layer = interop.Involution(32, 3, stride=2).double()
    x = draw(2, 32, 7, 5)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))


# ---------------------------------------------------------------------------- autocast


def test_autocast_is_that_of_conv2d() -> None:
    x, kernel = plain_operands(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = plain(x, kernel)
        fused_out = fused(*fused_operands(dtype=torch.float32))
        double = plain(*plain_operands())
        like = torch.nn.functional.conv2d(x, x.new_ones(1, 4, 1, 1))
    assert out.dtype == fused_out.dtype == like.dtype == torch.bfloat16
    assert double.dtype == torch.float64
    expected = plain(x.detach().bfloat16(), kernel.detach().bfloat16())
    assert torch.equal(out, expected)
    out.float().sum().backward()
    assert x.grad.dtype == kernel.grad.dtype == torch.float32


# ---------------------------------------------------------------------------- errors


def test_errors_say_what_to_do() -> None:
    x, kernel = plain_operands()
    with pytest.raises(TypeError, match=r"x must be a torch\.Tensor, got ndarray"):
        interop.involution(x.detach().numpy(), kernel)
    with pytest.raises(TypeError, match=r"kernel has dtype torch\.int64"):
        interop.involution(x, kernel.long())
    with pytest.raises(ValueError, match="kernel must have 6 dimensions"):
        interop.involution(x, kernel.flatten(1, 3))
    with pytest.raises(ValueError, match="kernel has 4x6 positions, but x of 7x6"):
        interop.involution(x, kernel)
    with pytest.raises(ValueError, match="needs an odd kernel size"):
        interop.involution(x, draw(2, 2, 2, 2, 7, 6))
    with pytest.raises(ValueError, match="grad must have shape"):
        interop.operators.grad_x(x, kernel, [7, 6], *map(list, PLAIN.values()))
    with pytest.raises(ValueError, match="x is on cpu and kernel on meta"):
        interop.involution(x, kernel.to("meta"))
    with pytest.raises(ValueError, match="channels must be a multiple of 16, got 24"):
        interop.Involution(24)


def test_meta_tensors_give_shapes() -> None:
    x, kernel = (t.to("meta") for t in plain_operands())
    assert plain(x, kernel).shape == (2, 4, 4, 6)


# ---------------------------------------------------------------------------- on a device


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["float32", "float64", "float16", "bfloat16"])
def test_on_cuda(name: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("PyTorch finds no CUDA device")
    dtype = getattr(torch, name)
    host = plain_operands(dtype=dtype)
    tensors = [t.detach().cuda().requires_grad_() for t in host]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        out = plain(*tensors)
    torch.cuda.current_stream().wait_stream(side)
    assert out.dtype == dtype
    assert out.device == tensors[0].device
    exact = [t.detach().double().numpy() for t in host]
    allowed = tolerance(reference.involution, *exact, terms=9, dtype=name, **PLAIN)
    error = abs(out.detach().cpu().double().numpy() - reference.involution(*exact, **PLAIN))
    assert (error <= allowed).all()
    out.sum().backward()
    for tensor in tensors:
        assert tensor.grad.dtype == dtype
        assert tensor.grad.isfinite().all()


@pytest.mark.gpu
def test_on_cuda_with_gradcheck_compile_and_the_last_device() -> None:
    if not torch.cuda.is_available():
        pytest.skip("PyTorch finds no CUDA device")
    device = torch.device("cuda", torch.cuda.device_count() - 1)  # another than the current one
    tensors = [t.detach().to(device).requires_grad_() for t in plain_operands()]
    assert torch.autograd.gradcheck(plain, tensors)
    assert torch.autograd.gradgradcheck(plain, tensors)
    others = [t.detach().to(device).requires_grad_() for t in fused_operands()]
    assert torch.autograd.gradcheck(fused, others)
    compiled = torch.compile(plain, fullgraph=True)
    assert torch.equal(compiled(*tensors), plain(*tensors))
