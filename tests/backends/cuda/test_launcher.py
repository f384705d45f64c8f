"""The seam between the launcher and CuPy: modules, options, arguments, devices, host memory.

Each with mistakes planted in the Python source that must be seen.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cuda_proof import host, table

import invocupy
from invocupy import backends, nn, optim
from invocupy.arrays import require_cupy
from invocupy.backends import cuda
from invocupy.backends.cuda import pointwise, sgd

pytestmark = pytest.mark.gpu
Plant = Callable[..., None]


@pytest.fixture(scope="module")
def cp() -> Any:
    return require_cupy()


@pytest.fixture
def plant(cp: Any, monkeypatch: pytest.MonkeyPatch) -> Plant:
    """A function of a module, with text substituted in its source."""
    if not hasattr(cp.cuda, "recording"):
        pytest.skip("mistakes are planted on the stand-in only")

    def plant(module: Any, name: str, *replacements: tuple[str, str]) -> None:
        function = getattr(module, name)
        source = textwrap.dedent(inspect.getsource(inspect.unwrap(function)))
        scope = dict(vars(module))
        exec(compile(host.substituted(source, replacements), name, "exec"), scope)  # noqa: S102
        monkeypatch.setattr(module, name, scope[name])

    return plant


@pytest.fixture
def modules(cp: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The modules that are made from here on: options, and the functions taken from each."""
    made: list[Any] = []

    class RawModule(cp.RawModule):  # type: ignore[misc, name-defined]
        def __init__(self, **given: Any) -> None:
            super().__init__(**given)
            self.given, self.taken = given, []
            made.append(self)

        def get_function(self, name: str) -> Any:
            self.taken.append(name)
            return super().get_function(name)

    monkeypatch.setattr(cp, "RawModule", RawModule)
    cuda._compile.cache_clear()
    return made


def involve(cp: Any, height: int = 4) -> Any:
    x, kernel = cp.ones((1, 2, height, 4)), cp.ones((1, 1, 3, 3, height, 4))
    return invocupy.involution(x, kernel)


def test_a_module_is_made_once(cp: Any, modules: list[Any]) -> None:
    """For all sizes of images, and on each device."""
    involve(cp)
    involve(cp, 6)
    if cp.cuda.runtime.getDeviceCount() > 1:
        with cp.cuda.Device(1):
            involve(cp)
    assert [module.taken for module in modules] == [["forward"]]


def test_planted_modules_for_each_launch_are_seen(
    cp: Any, modules: list[Any], plant: Plant
) -> None:
    plant(cuda, "_compile", ("@cache\n", ""))
    involve(cp)
    involve(cp, 6)
    assert len(modules) == 2


def test_options_are_those_of_the_table(cp: Any, modules: list[Any]) -> None:
    involve(cp)
    table.load()  # which fails if it was made with other options
    assert [module.given["options"] for module in modules] == [cuda.OPTIONS]


def test_planted_options_are_seen(cp: Any, modules: list[Any], plant: Plant) -> None:
    plant(cuda, "_compile", ("options=OPTIONS", "options=()"))
    involve(cp)
    assert modules[0].given["options"] != cuda.OPTIONS


def test_planted_options_that_nvrtc_refuses_are_seen(cp: Any, plant: Plant) -> None:
    plant(cuda, "_compile", ("options=OPTIONS", "options=(*OPTIONS, '-no-such-option')"))
    with pytest.raises(RuntimeError, match=r"NVRTC refuses .*-no-such-option"):
        involve(cp)


def test_planted_arguments_are_refused(cp: Any, plant: Plant) -> None:
    """A structure as NumPy's scalar."""
    plant(cuda, "_compile", ("np.asarray(a) if isinstance(a, np.void) else a", "a"))
    with pytest.raises(TypeError, match=r"Unsupported type .*numpy.void"):
        involve(cp)


def test_planted_numbers_of_python_are_refused(cp: Any, plant: Plant) -> None:
    """CuPy would pass 8 bytes."""
    plant(cuda, "_argument", ("return np.int32(value)", "return value"))
    with pytest.raises(host.LaunchError, match="int for a value; give a NumPy scalar"):
        backends.of("batch_norm", cp.ones(1)).forward(
            cp.ones((1, 1, 2, 2)), cp.ones(1), cp.ones(1), None, False, cp.ones((1, 1, 2, 2))
        )


def test_the_switch_waits_at_each_launch(cp: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(cp.cuda, "waits"):
        pytest.skip("only the stand-in counts how often the host waits")
    involve(cp)
    monkeypatch.setenv("INVOCUPY_CUDA_SYNC", "1")
    before = cp.cuda.waits
    involve(cp)
    assert cp.cuda.waits == before + 1


# devices


def on_two_devices(cp: Any) -> list[Any]:
    """Parameters of device 0 and 1, one after another; the current device is 0."""
    if cp.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("needs two devices")
    parameters = []
    for i in range(4):
        with cp.cuda.Device(i % 2):
            parameter = nn.Parameter(cp.full(3, float(i)))
            parameter.grad = cp.ones(3)
        parameters.append(parameter)
    return parameters


def test_sgd_on_two_devices(cp: Any) -> None:
    parameters = on_two_devices(cp)
    step = optim.SGD(parameters, 0.5, momentum=0.9)
    step.step()
    step.step()
    for i, parameter in enumerate(parameters):
        assert parameter.data.device.id == i % 2
        np.testing.assert_allclose(parameter.data.get(), i - 0.5 - 0.95)
    assert cp.cuda.Device().id == 0


def test_planted_launch_for_two_devices_is_refused(cp: Any, plant: Plant) -> None:
    parameters = on_two_devices(cp)
    plant(sgd, "update", ("(p.dtype, device_of(p))", "(p.dtype, 0)"))
    with pytest.raises(ValueError, match="The device where the array resides"):
        optim.SGD(parameters, 0.5).step()


@pytest.mark.parametrize("fused", [False, True])
def test_out_has_memory_of_its_own_on_the_device_of_x(cp: Any, fused: bool) -> None:
    memory = cp.ones(4 * 128)
    x, features, out = (memory[128 * i :][: 2 * 32].reshape(1, 2, 4, 8) for i in range(3))
    kernel = cp.ones((1, 1, 3, 3, 4, 8))
    weight = memory[3 * 128 :][:18].reshape(9, 2)
    inputs = (x, features, weight) if fused else (x, kernel)
    call = invocupy.fused_involution if fused else invocupy.involution
    options = {"kernel_size": 3} if fused else {}
    assert call(*inputs, out=out, **options) is out
    for name, array in {"x": x, **({"features": features} if fused else {})}.items():
        for overlap in (array, array[..., ::-1]):
            with pytest.raises(ValueError, match=f"out overlaps {name}"):
                call(*inputs, out=overlap, **options)
    if cp.cuda.runtime.getDeviceCount() > 1:
        with cp.cuda.Device(1):
            far = cp.empty_like(out)
        with pytest.raises(ValueError, match="out is on <CUDA Device 1>, but x is on"):
            call(*inputs, out=far, **options)


# host memory


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_planted_factors_that_are_freed_before_cublas_reads_them(
    cp: Any, plant: Plant, dtype: str
) -> None:
    x, weight, out = (cp.ones(s, dtype) for s in ((2, 2, 5), (3, 2), (2, 3, 5)))
    pointwise.forward(x, weight, None, out)
    plant(pointwise, "_product", ("one.ctypes.data", "one.copy().ctypes.data"))
    with pytest.raises(AssertionError, match="alpha and beta are"):
        pointwise.forward(x, weight, None, out)
