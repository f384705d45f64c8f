"""The PyTorch operators under transforms: forward mode, torch.func, vmap, tracing and export.

Each value is that of the same formula in PyTorch's own operators.
"""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
interop = pytest.importorskip("invocupy.interop.torch")
F = torch.nn.functional
Tensor = Any

OPTIONS = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}
SHAPES = {
    "plain": [(1, 4, 5, 4), (1, 2, 3, 3, 3, 4)],
    "fused": [(1, 4, 5, 4), (1, 3, 3, 4), (18, 3), (18,)],
}
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # PyTorch's own
NAMES = pytest.mark.parametrize("name", SHAPES)


def unfolded(
    x: Tensor, kernel: Tensor, stride: Any = 1, padding: Any = 1, dilation: Any = 1
) -> Tensor:
    (n, channels), (groups, u, v, h, w) = x.shape[:2], kernel.shape[1:]
    patches = F.unfold(x, (u, v), dilation, padding, stride)
    patches = patches.view(n, groups, channels // groups, u, v, h, w)
    return (kernel[:, :, None] * patches).sum((3, 4)).reshape(n, channels, h, w)


def functions(name: str) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """Ours and the formula."""
    if name == "plain":
        return partial(interop.involution, **OPTIONS), partial(unfolded, **OPTIONS)

    def formula(x: Tensor, features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        flat = torch.einsum("kf,nfhw->nkhw", weight, features) + bias[:, None, None]
        return unfolded(x, flat.unflatten(1, (2, 3, 3)), **OPTIONS)

    return partial(interop.fused_involution, kernel_size=3, **OPTIONS), formula


def draw(name: str, *front: int, seed: int = 0, grad: bool = False) -> list[Tensor]:
    rng = np.random.default_rng(seed)
    return [
        torch.tensor(rng.standard_normal((*front, *s)), requires_grad=grad) for s in SHAPES[name]
    ]


def cubes(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *tensors: (function(*tensors) ** 3).sum()


def agree(transform: Callable[[Callable[..., Tensor]], Any], name: str) -> None:
    torch.testing.assert_close(*map(transform, functions(name)), rtol=1e-10, atol=1e-10)


# ---------------------------------------------------------------------------- forward mode


@NAMES
@pytest.mark.parametrize("grad", [False, True])
def test_tangents_along_any_of_the_tensors(name: str, grad: bool) -> None:
    tensors, along = draw(name, grad=grad), draw(name, seed=1)
    agree(lambda f: torch.func.jvp(f, tuple(tensors), tuple(along)), name)
    for i, tangent in enumerate(along):

        def dual_numbers(f: Any, i: int = i, tangent: Tensor = tangent) -> Any:
            with torch.autograd.forward_ad.dual_level():
                dual = torch.autograd.forward_ad.make_dual(tensors[i], tangent)
                out = f(*tensors[:i], dual, *tensors[i + 1 :])
                primal, tangent = torch.autograd.forward_ad.unpack_dual(out)
                if not grad:
                    return primal, tangent
                others = [t for j, t in enumerate(tensors) if j != i]
                return (
                    primal,
                    tangent,
                    *torch.autograd.grad(
                        tangent.sum() + primal.sum(), others, materialize_grads=True
                    ),
                )

        agree(dual_numbers, name)


@NAMES
def test_linearize_and_jacobians(name: str) -> None:
    tensors, along = draw(name), draw(name, seed=1)
    everything = tuple(range(len(tensors)))
    warnings.filterwarnings("ignore", "Attempted to insert a get_attr Node")  # linearize's own
    agree(lambda f: torch.func.linearize(f, *tensors)[1](*along), name)
    agree(lambda f: torch.func.jacfwd(f, argnums=everything)(*tensors), name)
    agree(lambda f: torch.func.jacrev(f, argnums=everything)(*tensors), name)
    agree(lambda f: torch.func.vjp(f, *tensors)[1](f(*tensors)), name)


@NAMES
@pytest.mark.parametrize("outer", ["jacfwd", "jacrev"])
@pytest.mark.parametrize("inner", ["jacfwd", "jacrev"])
def test_second_derivatives_in_any_nesting(name: str, outer: str, inner: str) -> None:
    outside, inside = getattr(torch.func, outer), getattr(torch.func, inner)
    tensors = draw(name)
    agree(lambda f: outside(inside(cubes(f), argnums=-1), argnums=(0, 1))(*tensors), name)


@NAMES
def test_a_third_derivative(name: str) -> None:
    x, *others = draw(name)
    along = draw(name, seed=1)[0]

    def third(f: Any) -> Any:
        def curvature(x: Tensor) -> Tensor:
            slope = torch.func.grad(lambda x: cubes(f)(x, *others))
            return torch.func.jvp(slope, (x,), (along,))[1]

        return torch.func.jvp(curvature, (x,), (along,))

    agree(third, name)


@NAMES
def test_gradcheck_of_both_modes_and_batched(name: str) -> None:
    ours, _ = functions(name)
    tensors = draw(name, grad=True)
    check = {"fast_mode": True, "check_batched_grad": True}
    assert torch.autograd.gradcheck(ours, tensors, check_forward_ad=True, **check)
    assert torch.autograd.gradgradcheck(ours, tensors, check_fwd_over_rev=True, fast_mode=True)


@NAMES
def test_operators_called_directly_have_tangents_too(name: str) -> None:
    """Those that are gradients, along each of their tensors, against differences of values."""
    operators, numbers = interop.operators, tuple(OPTIONS.values())
    x, *others = draw(name)
    grad = functions(name)[0](x, *others)
    calls = {
        "plain": [
            (operators.grad_x, (grad, *others), ((5, 4),)),
            (operators.grad_kernel, (grad, x), ((2, 3, 3),)),
        ],
        "fused": [
            (operators.fused_grad_x, (grad, *others), ((5, 4), (3, 3))),
            (operators.fused_grad_span, (grad, x, *others[:2]), ((3, 3),)),
        ],
    }[name]
    for operator, tensors, sizes in calls:

        def call(*tensors: Tensor, operator: Any = operator, sizes: Any = sizes) -> Any:
            return operator(*tensors, *sizes, *numbers)

        given = [t.clone().requires_grad_() for t in tensors]
        assert torch.autograd.gradcheck(call, given, check_forward_ad=True, fast_mode=True)


@NAMES
def test_compiled_transforms(name: str) -> None:
    tensors, along = draw(name), draw(name, seed=1)
    many = draw(name, 3)

    def compiled(f: Any, grad: bool = False) -> Any:
        torch._dynamo.reset()
        return torch.compile(f, fullgraph=True, backend="aot_eager")

    for given in (tensors, draw(name, grad=True)):
        step = compiled(
            lambda *t: torch.func.jvp(functions(name)[0], t[: len(along)], t[len(along) :])
        )
        wanted = torch.func.jvp(functions(name)[1], tuple(tensors), tuple(along))
        torch.testing.assert_close(step(*given, *along), wanted)
    per_sample = torch.func.vmap(torch.func.grad(cubes(functions(name)[1])))(*many)
    step = compiled(lambda *t: torch.func.vmap(torch.func.grad(cubes(functions(name)[0])))(*t))
    torch.testing.assert_close(step(*many), per_sample)


@NAMES
def test_transforms_of_what_was_compiled(name: str) -> None:
    """Compiled once, then seen by several transforms: none gets another's code."""
    torch._dynamo.reset()
    ours, formula = functions(name)
    compiled = torch.compile(lambda *t: ours(*t), backend="eager")
    tensors, along, many = draw(name), draw(name, seed=1), draw(name, 3)
    for transform in (
        lambda f: torch.func.jvp(f, tuple(tensors), tuple(along)),
        lambda f: torch.func.grad(cubes(f))(*tensors),
        lambda f: torch.func.vmap(f)(*many),
    ):
        torch.testing.assert_close(transform(compiled), transform(formula))


# ---------------------------------------------------------------------------- vmap


@NAMES
@pytest.mark.parametrize("size", [0, 1, 3])
def test_vmap_over_any_of_the_tensors(name: str, size: int) -> None:
    ours, formula = functions(name)
    tensors, many = draw(name), draw(name, size)
    for i in range(len(tensors)):
        for axis in (0, 1, -1):
            mapped = [*tensors[:i], many[i].movedim(0, axis), *tensors[i + 1 :]]
            in_dims = tuple(axis if j == i else None for j in range(len(tensors)))
            out = torch.vmap(ours, in_dims, out_dims=1)(*mapped)
            assert out.shape == (1, size, 4, 3, 4)
            for j in range(size):
                one = [*tensors[:i], many[i][j], *tensors[i + 1 :]]
                torch.testing.assert_close(out[:, j], formula(*one))


@NAMES
def test_nested_vmap_and_gradients_of_samples(name: str) -> None:
    many = draw(name, 3)
    everything = tuple(range(len(many)))
    agree(lambda f: torch.vmap(torch.func.grad(cubes(f), argnums=everything))(*many), name)
    agree(
        lambda f: torch.func.grad(lambda *t: torch.vmap(cubes(f))(*t).sum(), everything)(*many),
        name,
    )
    grid = [torch.stack([t, 2 * t]) for t in many]
    agree(lambda f: torch.vmap(torch.vmap(f, in_dims=0), in_dims=0)(*grid), name)
    one = [t[:, 0] for t in grid[1:]]
    in_dims = (0, *(None for _ in one))
    agree(lambda f: torch.vmap(torch.vmap(f, in_dims), in_dims=(2, *(0 for _ in one)))(
        grid[0].movedim(0, 2), *one), name)  # fmt: skip


# ---------------------------------------------------------------------------- layers

LAYERS = [
    pytest.param(
        partial(kind, 16, 3, stride=stride, fused=fused), id=f"{kind.__name__}-{stride}-{fused}"
    )
    for kind in (interop.Involution, interop.RedNetInvolution)
    for stride in (1, 2)
    for fused in (False, True)
]


def image(batch: int = 2, size: int = 7) -> Tensor:
    return torch.from_numpy(
        np.random.default_rng(size).standard_normal((batch, 16, size, size + 1))
    )


def plainly(layer: Any, stride: int) -> Callable[[Tensor], Tensor]:
    """The layer with the formula in place of the operators."""
    if isinstance(layer, interop.Involution):
        reduce, span = (
            torch.nn.Sequential(layer.weights0, layer.BN, torch.nn.ReLU()),
            layer.weights1,
        )
    else:
        reduce, span = layer.conv1, layer.conv2
    return lambda x: unfolded(x, span(reduce(layer.pool(x))).unflatten(1, (1, 3, 3)), stride)


@pytest.mark.parametrize("make", LAYERS)
def test_layers_under_transforms(make: Any) -> None:
    layer = make().double().eval()
    x, along = image(), image(size=7) + 1
    formula = plainly(layer, layer.stride)
    torch.testing.assert_close(
        torch.func.jvp(layer, (x,), (along,)), torch.func.jvp(formula, (x,), (along,))
    )
    parameters = dict(layer.named_parameters())
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}

    def loss(parameters: Any, sample: Tensor) -> Tensor:
        return (torch.func.functional_call(layer, parameters, (sample[None],)) ** 2).sum()

    per_sample = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for i, sample in enumerate(x):
        wanted = torch.autograd.grad((formula(sample[None]) ** 2).sum(), list(parameters.values()))
        for name, gradient in zip(parameters, wanted, strict=True):
            torch.testing.assert_close(per_sample[name][i], gradient)
    torch.func.functional_call(layer, {n: 2 * p for n, p in parameters.items()}, (x,))
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())


@pytest.mark.parametrize("make", LAYERS)
def test_traced_exported_and_copied_layers(make: Any) -> None:
    warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)  # torch.export's own
    layer = make().double().eval()
    x, other = image(), image(3, 9)
    torch.testing.assert_close(torch.fx.symbolic_trace(layer)(other), layer(other))
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):  # noqa: S301
        torch.testing.assert_close(twin(x), layer(x))
    memory = io.BytesIO()
    torch.jit.save(torch.jit.trace(layer, (x,)), memory)
    memory.seek(0)
    traced = torch.jit.load(memory)
    seen = [other.clone().requires_grad_() for _ in range(2)]
    for f, tensor in zip((traced, layer), seen, strict=True):
        f(tensor).square().sum().backward()
    torch.testing.assert_close(traced(other), layer(other))
    torch.testing.assert_close(seen[0].grad, seen[1].grad)
    auto = torch.export.Dim.AUTO
    exported = torch.export.export(layer, (x,), dynamic_shapes={"x": {0: auto, 2: auto, 3: auto}})
    torch.testing.assert_close(exported.module()(other), layer(other))
    plain = exported.run_decompositions(interop.decompositions)
    assert not any("invocupy" in str(node.target) for node in plain.graph.nodes)
    torch.testing.assert_close(plain.module()(other), layer(other))


@pytest.mark.parametrize("make", LAYERS)
def test_onnx_exporters_meet_standard_operators_only(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = make().eval()
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    exported = torch.export.export(layer, (image().float(),), strict=False)
    assert not any("invocupy" in str(node.target) for node in exported.graph.nodes)
    monkeypatch.undo()
    torch.testing.assert_close(exported.module()(image().float()), layer(image().float()))


def test_functions_are_seen_by_symbolic_trace() -> None:
    class User(torch.nn.Module):
        def forward(self, x: Tensor, kernel: Tensor, features: Tensor, weight: Tensor) -> Tensor:
            first = interop.involution(x, kernel)
            return interop.fused_involution(first, features, weight, kernel_size=3)

    given = [
        torch.randn(shape) for shape in ((1, 2, 4, 4), (1, 1, 3, 3, 4, 4), (1, 3, 4, 4), (9, 3))
    ]
    torch.testing.assert_close(torch.fx.symbolic_trace(User())(*given), User()(*given))


def test_safetensors_files_of_a_layer_and_either_name(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    layer, twin = interop.Involution(16, 3), interop.Involution(16, 3)
    layer(torch.randn(2, 16, 4, 4))
    save_file(layer.state_dict(), tmp_path / "layer.safetensors")
    state = load_file(tmp_path / "layer.safetensors")
    second = {name: t for name, t in state.items() if name.startswith("kernel_generator")}
    first = {name: t for name, t in state.items() if name not in second}
    assert len(first) == len(second) == len(state) // 2
    for some in (state, first, second):
        twin = interop.Involution(16, 3)
        twin.load_state_dict(some)
        for tensor, wanted in zip(
            twin.state_dict().values(), layer.state_dict().values(), strict=True
        ):
            assert torch.equal(tensor, wanted)
    twin.load_state_dict({name: tensor.to("meta") for name, tensor in state.items()}, assign=True)
    assert all(parameter.is_meta for parameter in twin.parameters())
    state["weights0.bias"][0] = state["kernel_generator.0.bias"][0] = torch.nan
    twin = interop.Involution(16, 3)
    twin.load_state_dict(state)
    assert twin.weights0.bias[0].isnan()
    for other in (state["weights0.weight"] + 1, state["weights0.weight"].half()):
        with pytest.raises(RuntimeError, match="are one parameter, but their values differ"):
            twin.load_state_dict(state | {"kernel_generator.0.weight": other})


def test_initial_weights_are_the_official_layers() -> None:
    torch.manual_seed(0)
    layer = interop.RedNetInvolution(256, 3)
    for convolution in (layer.conv1.conv, layer.conv2.conv):
        outputs = convolution.out_channels
        deviation = float(convolution.weight.detach().std()) * (outputs / 2) ** 0.5
        # The deviation of n normal numbers is off by 1/sqrt(2n); five of these.
        assert abs(deviation - 1) < 5 / (2 * convolution.weight.numel()) ** 0.5
    assert not layer.conv2.conv.bias.any()
    article, plain = interop.Involution(256, 3).weights1.weight, torch.nn.Conv2d(64, 144, 1).weight
    assert abs(float((article.abs().max() / plain.abs().max()).detach()) - 1) < 0.01


def test_other_layouts_are_refused() -> None:
    x, kernel = torch.ones(1, 2, 4, 4), torch.ones(1, 1, 3, 3, 4, 4)
    with pytest.raises(TypeError, match=r"x has layout torch\.sparse_coo.*\.to_dense"):
        interop.involution(x.to_sparse(), kernel)
    torch.testing.assert_close(
        interop.involution(torch._neg_view(x), kernel), -interop.involution(x, kernel)
    )
