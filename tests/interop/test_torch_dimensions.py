"""The PyTorch functions and layers in one, two and three dimensions, against the unfold form."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
interop = pytest.importorskip("invocupy.interop.torch")
F = torch.nn.functional
Tensor = Any

SIZES: dict[int, dict[str, tuple[int, ...]]] = {
    1: {"x": (7,), "kernel": (4,), "out": (4,)},
    2: {"x": (5, 4), "kernel": (3, 2), "out": (3, 6)},
    3: {"x": (4, 3, 5), "kernel": (2, 3, 1), "out": (5, 3, 3)},
}
OPTIONS: dict[int, dict[str, tuple[int, ...]]] = {
    1: {"stride": (2,), "padding": (3,), "dilation": (2,)},
    2: {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)},
    3: {"stride": (1, 1, 2), "padding": (1, 2, 0), "dilation": (1, 2, 1)},
}
LAYERS = {1: interop.Involution1d, 2: interop.Involution2d, 3: interop.Involution3d}
CASES = pytest.mark.parametrize(
    ("name", "dims"), [(name, dims) for name in ("plain", "fused") for dims in SIZES]
)
DIMS = pytest.mark.parametrize("dims", SIZES)
pytestmark = [  # PyTorch's own
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
]


def unfolded(
    x: Tensor, kernel: Tensor, stride: Any = 1, padding: Any = 1, dilation: Any = 1
) -> Tensor:
    """The sum over the taps of all windows, in PyTorch's own operators."""
    dims, patches = x.ndim - 2, F.pad(x, [p for p in padding[::-1] for _ in range(2)])
    for axis, (k, s, d) in enumerate(zip(kernel.shape[2:], stride, dilation, strict=False), 2):
        patches = patches.unfold(axis, d * (k - 1) + 1, s)[..., ::d]
    patches = patches.unflatten(1, (kernel.shape[1], -1))  # (N, G, C/G, *O, *K)
    taps = tuple(range(3, 3 + dims))
    patches = patches.movedim(tuple(range(-dims, 0)), taps)
    return (kernel[:, :, None] * patches).sum(taps).flatten(1, 2)


def functions(name: str, dims: int) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """Ours and the formula."""
    size = SIZES[dims]["kernel"]
    if name == "plain":
        formula = partial(unfolded, **OPTIONS[dims])
        return partial(interop.involution, **OPTIONS[dims]), formula

    def generated(x: Tensor, features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        flat = torch.einsum("kf,nf...->nk...", weight, features)
        flat = flat + bias.view(-1, *(1 for _ in size))
        return unfolded(x, flat.unflatten(1, (2, *size)), **OPTIONS[dims])

    return partial(interop.fused_involution, kernel_size=size, **OPTIONS[dims]), generated


def draw(name: str, dims: int, *front: int, seed: int = 0, dtype: Any = None) -> list[Tensor]:
    rng, s = np.random.default_rng(seed), SIZES[dims]
    rows = 2 * int(np.prod(s["kernel"]))
    shapes = {
        "plain": [(2, 4, *s["x"]), (2, 2, *s["kernel"], *s["out"])],
        "fused": [(2, 4, *s["x"]), (2, 3, *s["out"]), (rows, 3), (rows,)],
    }[name]
    drawn = (torch.tensor(rng.standard_normal((*front, *shape)), dtype=dtype) for shape in shapes)
    return [tensor.requires_grad_() for tensor in drawn]


def agree(transform: Callable[[Callable[..., Tensor]], Any], name: str, dims: int) -> None:
    # some ten roundings of sums of a few units, in float64
    torch.testing.assert_close(*map(transform, functions(name, dims)), rtol=1e-10, atol=1e-10)


@CASES
def test_values_and_derivatives_are_those_of_the_unfold_form(name: str, dims: int) -> None:
    tensors, along = draw(name, dims), tuple(draw(name, dims, seed=1))
    every = tuple(range(len(tensors)))
    agree(lambda f: f(*tensors), name, dims)
    agree(lambda f: torch.autograd.grad((f(*tensors) ** 3).sum(), tensors), name, dims)
    agree(lambda f: torch.func.jvp(f, tuple(tensors), along), name, dims)
    slope = partial(torch.func.grad, argnums=every)
    agree(
        lambda f: torch.func.jvp(slope(lambda *t: (f(*t) ** 3).sum()), tuple(tensors), along),
        name,
        dims,
    )


@CASES
def test_gradcheck_to_the_second_order(name: str, dims: int) -> None:
    ours, tensors = functions(name, dims)[0], draw(name, dims)
    assert torch.autograd.gradcheck(ours, tensors, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(ours, tensors, check_fwd_over_rev=True, fast_mode=True)


@CASES
def test_vmap_over_any_of_the_tensors(name: str, dims: int) -> None:
    tensors, many = draw(name, dims), draw(name, dims, 3)
    for i, mapped in enumerate(many):
        given = [*tensors[:i], mapped, *tensors[i + 1 :]]
        in_dims = tuple(0 if j == i else None for j in range(len(tensors)))
        agree(lambda f, g=given, d=in_dims: torch.vmap(f, d)(*g), name, dims)


@CASES
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_whole_forward_and_backward(name: str, dims: int, dynamic: bool) -> None:
    torch._dynamo.reset()

    def step(*tensors: Tensor) -> Tensor:
        return functions(name, dims)[0](*(2 * t for t in tensors)).relu()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    tensors = draw(name, dims)
    out, expected = compiled(*tensors), step(*tensors)
    assert torch.equal(out, expected)
    got, wanted = (torch.autograd.grad(y.sum(), tensors) for y in (out, expected))
    assert all(map(torch.equal, got, wanted))


@CASES
def test_autocast_and_meta_tensors(name: str, dims: int) -> None:
    ours, tensors = functions(name, dims)[0], draw(name, dims, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = ours(*tensors)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, ours(*(t.bfloat16() for t in tensors)))
    assert ours(*(t.to("meta") for t in tensors)).shape == out.shape


# ---------------------------------------------------------------------------- layers


@DIMS
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("fused", [False, True])
def test_layers_are_their_formula_and_compile_whole(dims: int, stride: int, fused: bool) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    size = (3, 5, 1)[:dims]
    layer = LAYERS[dims](16, size, stride=stride, dilation=2, fused=fused).double().eval()
    x = torch.randn(2, 16, *(7, 5, 4)[:dims], dtype=torch.float64)
    features = torch.relu(layer.BN(layer.weights0(layer.pool(x))))
    kernel = layer.weights1(features).unflatten(1, (1, *size))
    same = tuple(2 * (k - 1) // 2 for k in size)
    wanted = unfolded(x, kernel, (stride,) * dims, same, (2,) * dims)
    torch.testing.assert_close(layer(x), wanted)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), wanted)
    exported = torch.export.export(layer, (x,)).run_decompositions(interop.decompositions)
    assert not any("invocupy" in str(node.target) for node in exported.graph.nodes)
    torch.testing.assert_close(exported.module()(x), wanted)


def test_a_layer_of_fewer_dimensions_is_one_with_sizes_of_one() -> None:
    torch.manual_seed(0)
    for dims, (low, wide) in {1: (7, (1, 7)), 2: ((3, 5), (1, 3, 5))}.items():
        small, large = LAYERS[dims](16, low), LAYERS[dims + 1](16, wide)
        state = {
            name: t.unsqueeze(2) if t.ndim > 2 else t for name, t in small.state_dict().items()
        }
        large.load_state_dict(state)
        x = torch.randn(2, 16, *(6, 9)[:dims])
        torch.testing.assert_close(small(x), large(x[:, :, None])[:, :, 0])
    assert interop.Involution2d is interop.Involution


# ---------------------------------------------------------------------------- errors

BAD = [
    ((1, 1, 2, 2, 2, 2), (1, 1, 3, 3, 2, 2), {}, r"x must have .*dimensions"),
    ((1, 1), (1, 1, 3, 3, 2, 2), {}, r"x must have .*dimensions"),
    ((1, 1, 4, 4, 4), (1, 1, 3, 3, 4, 4), {}, "must have . dimensions"),
    ((1, 1, 4), (1, 1, 3, 3, 4), {}, r"kernel must have 4 dimensions \(N, G, Kw, Wo\)"),
    ((1, 1, 4), (1, 1, 3, 4), {"stride": (1, 1)}, "stride must be an integer >= 1 or a tuple of"),
    ((1, 1, 4, 4), (1, 1, 3, 3, 4, 4), {"padding": (1,)}, "padding must be an integer >= 0 or a p"),
    ((1, 1, *(4, 4, 4)), (1, 1, *(3, 3, 3), *(4, 4, 4)), {"dilation": (1, 1)}, "or a triple of"),
    ((1, 1, *(4, 4, 4)), (1, 1, *(3, 2, 3), *(4, 4, 4)), {}, "needs an odd kernel size, got 3x2x3"),
]


@pytest.mark.parametrize(("x", "kernel", "options", "words"), BAD)
def test_what_does_not_fit_is_said_in_one_line(
    x: tuple[int, ...], kernel: tuple[int, ...], options: dict[str, Any], words: str
) -> None:
    for grad in (False, True):
        with pytest.raises(ValueError, match=words) as caught:
            interop.involution(torch.ones(x, requires_grad=grad), torch.ones(kernel), **options)
        assert "\n" not in str(caught.value)


def test_layers_say_what_does_not_fit() -> None:
    for make, words in (
        (lambda: interop.Involution3d(16, (3, 3)), "kernel_size must be .* or a triple of them"),
        (lambda: interop.Involution1d(16, 4), "kernel_size must be odd, got 4"),
        (lambda: interop.Involution3d(16, (3, 2, 3)), "kernel_size must be odd"),
        (lambda: interop.Involution1d(16, stride=(1, 2)), "stride must be .* a tuple of one"),
        (lambda: interop.Involution3d(16, dilation=(1, 2)), "dilation must be .* a triple of them"),
        (
            lambda: interop.Involution1d(16)(torch.ones(1, 16, 4, 4)),
            r"x must be \(N, C, W\), got",
        ),
        (lambda: interop.Involution2d(16, stride=2)(torch.ones(1, 16)), r"\(N, C, H, W\), got"),
        (
            lambda: interop.fused_involution(
                torch.ones(1, 4, 5), torch.ones(1, 2, 5), torch.ones(3, 2, 1), kernel_size=3
            ),
            r"F\) with Kw = 3, got \(3, 2, 1\)",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            make()
