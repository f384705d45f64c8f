"""Steps as CUDA graphs: the same bits as without, whatever happens between the steps, or one line.

On a device, or on the stand-in for CuPy, which refuses in a capture what CuPy refuses.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from graph_runs import BLOCK, HEAD, RICH, differences, images, launches, layers
from small_runs import content

from invocupy import functional as F  # noqa: N812
from invocupy import nn, optim
from invocupy.arrays import require_cupy
from invocupy.autograd import no_grad
from invocupy.backends.cuda import graph, pointwise
from invocupy.models import SimpleModel
from invocupy.train import Config, fit, steps
from invocupy.train.average import Average

pytestmark = pytest.mark.gpu

LINE = "the steps run without a CUDA graph: "


@pytest.fixture(scope="module")
def cp() -> Any:
    return require_cupy()


# In graphs are all steps but the first of each shape.
@pytest.mark.parametrize(
    ("config", "given", "launched"),
    [
        (BLOCK, {}, 3 * 3),
        (RICH, {"model": layers}, 3 * 7),
        (replace(HEAD, momentum=0.0, graph="auto"), {"model": layers}, 2 * 7),
    ],
)
def test_the_bits_are_those_of_steps_without(
    config: Config, given: Any, launched: int, cp: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    sizes = launches(cp, monkeypatch)
    assert differences(tmp_path, config, **given) == []
    assert len(sizes) == launched
    assert min(sizes) > 0


def test_a_step_waits_for_nothing_and_takes_few_calls(cp: Any) -> None:
    if not hasattr(cp.cuda, "calls"):
        pytest.skip("only the stand-in counts calls")
    seen = []

    def note(now: Any) -> None:
        if now.row is None:
            seen.append((cp.cuda.calls, cp.cuda.waits))

    fit(replace(HEAD, epochs=1, batch_size=4), data=images(24), progress=note)
    calls, waits = (np.diff(column).tolist() for column in zip(*seen, strict=True))
    # the sheet, two graphs, two numbers that are kept, a learning rate; the last step is read
    assert calls[-2] == 6
    assert waits[:-1] == [0] * 4


def test_averages_take_few_launches(cp: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = launches(cp, monkeypatch)
    fit(replace(RICH, epochs=2), data=images(30), model=layers())
    with_averages = sizes[-1]  # the update of the last step
    fit(replace(RICH, epochs=2, ema=0.0), data=images(30), model=layers())
    # of all floating arrays together, and copies of a number of batches and a seed
    assert with_averages - sizes[-1] <= 3


def test_resumed(tmp_path: Path) -> None:
    config, data = replace(RICH, schedule="constant", validation=0.0), images(24)
    fit(config, tmp_path / "whole", data=data, model=layers())
    fit(replace(config, epochs=1), tmp_path / "parts", data=data, model=layers())
    config = replace(config, graph="auto")
    fit(config, tmp_path / "parts", resume=True, data=data, model=layers())
    whole, parts = (content(tmp_path / name) for name in ("whole", "parts"))
    assert whole == parts


def hook(change: Callable[[int, Any, Any], None]) -> Callable[[], Any]:
    """A new ``before_update`` that also knows the number of the step."""

    def make() -> Any:
        count = 0

        def before_update(model: Any, sgd: Any) -> None:
            nonlocal count
            count += 1
            change(count, model, sgd)

        return before_update

    return make


def scale(count: int, model: Any, sgd: Any) -> None:
    for parameter in model.parameters():
        parameter.grad *= 0.5


def new_gradients(count: int, model: Any, sgd: Any) -> None:
    for parameter in sgd.params[: count % 3]:
        parameter.grad = parameter.grad * 0.5


def no_gradient(count: int, model: Any, sgd: Any) -> None:
    if count % 2:
        sgd.params[0].grad = None


def new_velocities(count: int, model: Any, sgd: Any) -> None:
    if count > 2:
        sgd.load_state_dict({name: v * 0.5 for name, v in sgd.state_dict().items()})


def new_weights(count: int, model: Any, sgd: Any) -> None:
    sgd.params[0].data = sgd.params[0].data * 0.9


def options(count: int, model: Any, sgd: Any) -> None:
    sgd.lr *= 1 + count
    if count > 4:
        sgd.momentum = 0.5


def freeze(count: int, model: Any, sgd: Any) -> None:
    if count == 4:  # the next step would be one of graphs
        sgd.params[0].requires_grad = False


@pytest.mark.parametrize(
    "change", [scale, new_gradients, no_gradient, new_velocities, new_weights, options, freeze]
)
def test_hooks(change: Any, tmp_path: Path) -> None:
    config = replace(HEAD, clip_norm=2.0) if change is scale else HEAD
    assert differences(tmp_path, config, before_update=hook(change)) == []


def numbers(count: int, model: Any, sgd: Any) -> None:
    body, head = sgd, sgd.groups[0]
    body.momentum, body.weight_decay, head.lr = 0.9 / (1 + count % 3), 0.01 * count, 0.02 / count
    head.weight_decay = None if count % 2 else 0.5


def test_numbers_of_the_optimiser_that_change_in_each_step(
    cp: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """The graphs read them: none is recorded again."""
    sizes = launches(cp, monkeypatch)
    assert differences(tmp_path, HEAD, before_update=hook(numbers), model=layers) == []
    assert len(sizes) == 2 * 7
    assert not recwarn.list


def test_evaluation_can_be_recorded(cp: Any) -> None:
    model = SimpleModel(9, 7, num_layers=2, rng=0).to("cuda").eval()
    x = cp.asarray(np.random.default_rng(0).random((2, 3, 9, 7), np.float32))
    recorder = graph.Recorder()
    with no_grad(), recorder.current():
        wanted = model.logits(x)
        start, result = recorder.record(lambda: model.logits(x))
        start()
        assert (result == wanted).all()
        x *= 2
        start()
        assert (result == model.logits(x)).all()


def test_layers_that_change_between_epochs(tmp_path: Path) -> None:
    def make() -> Any:
        def after_epoch(model: Any, row: Any) -> None:
            if row["epoch"] == 1:
                model[2].momentum = 0.5
            else:
                model[4].p = 0.9

        return after_epoch

    assert differences(tmp_path, HEAD, after_epoch=make, model=layers) == []


class Counting(nn.Module):
    """A model of one's own, with a buffer that each step replaces, and a branch of its own."""

    def __init__(self, waits: bool = False) -> None:
        self.layer = nn.Linear(48, 10, rng=np.random.default_rng(0))
        self.seen = nn.Buffer(np.zeros(10, np.float32))
        self.waits = waits

    def forward(self, x: Any) -> Any:
        scores = self.layer(F.flatten(x, 1))
        if self.training:
            self.seen.data = self.seen.data * 0.9 + scores.data.sum(axis=0)
            if self.waits:
                scores.data[0, 0].item()
        return scores


def test_a_module_of_ones_own(tmp_path: Path) -> None:
    assert differences(tmp_path, HEAD, model=Counting) == []
    with pytest.warns(RuntimeWarning, match=f"{LINE}Counting is a module of your own"):
        fit(replace(HEAD, graph="auto", epochs=1), model=Counting(), data=images(24))


def falls_back(line: str, folder: Path, config: Config = HEAD, **given: Any) -> None:
    """The run has the bits of one without graphs, and one line says why."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        assert differences(folder, config, **given) == []
    lines = [str(one.message) for one in found]
    assert len(lines) == 1, lines
    assert lines[0].startswith(LINE)
    assert line in lines[0]
    assert "\n" not in lines[0]


def test_cublas_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pointwise, "SMALL", 0)
    falls_back("cuBLAS", tmp_path, replace(HEAD, clip_norm=1.0, ema=0.5))


def test_a_wait_within_a_step_is_refused(tmp_path: Path) -> None:
    falls_back("transfers are disallowed", tmp_path, model=lambda: Counting(waits=True))


def test_too_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def record(self: Any, work: Any) -> Any:
        raise MemoryError("no room for 8 bytes")

    monkeypatch.setattr(graph.Recorder, "record", record)
    falls_back("no room for 8 bytes", tmp_path)


def test_clipping_that_cannot_be_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the capture has done to the gradients by then is undone."""
    clip = optim.clip_by_norm

    def reading(params: Any, limit: float) -> Any:
        norm = clip(params, limit)
        norm.item()
        return norm

    monkeypatch.setattr(optim, "clip_by_norm", reading)
    falls_back("transfers are disallowed", tmp_path, replace(HEAD, clip_norm=1.0))


def test_options_that_keep_changing(tmp_path: Path) -> None:
    def make() -> Any:
        def after_epoch(model: Any, row: Any) -> None:
            model.epochs = row["epoch"]

        return after_epoch

    falls_back("keep changing", tmp_path, replace(HEAD, epochs=6), after_epoch=make)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"joins": True}, "several ranks exchange messages within it; with sync_norm=False"),
        ({"sync": "1"}, "INVOCUPY_CUDA_SYNC"),
        ({"device": "cpu"}, "on the CPU"),
    ],
)
def test_where_there_is_no_graph(
    change: dict[str, Any], line: str, cp: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = np if change.get("device") else cp
    monkeypatch.setenv("INVOCUPY_CUDA_SYNC", change.get("sync", "0"))
    run: Any = SimpleNamespace(
        config=HEAD, model=nn.Linear(2, 2),
        replica=SimpleNamespace(joins=lambda model: change.get("joins", False)),
    )  # fmt: skip
    batches: Any = SimpleNamespace(images=library.zeros(1))
    with pytest.warns(RuntimeWarning, match=f"^{LINE}.*{line}"):
        assert type(steps.steps_of(run, batches)) is steps.Steps
    run.config = replace(HEAD, graph=False)
    assert type(steps.steps_of(run, batches)) is steps.Steps  # without a word


# Mistakes: each must be seen, by the name of what is wrong.


def test_numbers_of_the_host_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = optim.SGD.step

    def by_value(self: Any) -> None:
        self.numbers, before = None, self.numbers
        step(self)
        self.numbers = before

    monkeypatch.setattr(optim.SGD, "step", by_value)
    assert "model.head.0.weight" in differences(tmp_path, HEAD)


def test_a_share_of_the_host_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    update = Average.update
    monkeypatch.setattr(
        Average, "update", lambda self, model, steps, share=None: update(self, model, steps)
    )
    found = differences(tmp_path, replace(HEAD, ema=0.9))
    assert "average.head.0.weight" in found
    assert "model.head.0.weight" not in found


def test_a_buffer_that_is_replaced_is_found(
    cp: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not hasattr(cp.cuda, "GraphError"):
        pytest.skip("a device does not tell")
    monkeypatch.setattr(steps.GraphSteps, "settle", lambda self: None)
    with pytest.raises(cp.cuda.GraphError, match=r"cupy\.multiply uses memory that was freed"):
        differences(tmp_path, HEAD, model=Counting)


def test_memory_that_is_freed_is_found(
    cp: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not hasattr(cp.cuda, "GraphError"):
        pytest.skip("a device does not tell")
    record = graph.Recorder.record

    def without_pool(self: Any, work: Any) -> Any:
        self._pool = cp.cuda.MemoryPool(None)  # frees what is let go of
        return record(self, work)

    monkeypatch.setattr(graph.Recorder, "record", without_pool)
    with pytest.raises(cp.cuda.GraphError, match="uses memory that was freed"):
        differences(tmp_path, HEAD)
