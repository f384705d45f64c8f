"""What a model costs: layers, multiply-adds, and memory against what a process really takes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import invocupy
from invocupy import backends, nn
from invocupy.cli import main
from invocupy.messages import html_table
from invocupy.models import SimpleModel
from invocupy.summary import StepMemory, evaluation_memory, layers, training_memory
from invocupy.train import (
    Config,
    ConfigError,
    build,
    check_memory,
    estimate,
    fit,
    free_memory,
)  # fmt: skip
from invocupy.train.needs import Needs, _left_in_groups


def state_of(model: nn.Module) -> dict[str, Any]:
    parameters = {name: p.data for name, p in model.named_parameters()}
    return {**parameters, **dict(model.named_buffers())}


# ---------------------------------------------------------------------------- layers


def test_the_article_s_network() -> None:
    """The counts by hand: a block has 64 x 3 and back, 64 x 16, 16 x 36, and 64 x 9 a pixel."""
    rows = {row.name: row for row in layers(SimpleModel(rng=0))}
    block = 1024 * (3 * 64 + 64 * 16 + 16 * 36 + 64 * 9 + 64 * 3)
    assert rows["blocks.7"].macs == block
    assert rows["blocks.49.involution"].macs == 1024 * (64 * 16 + 16 * 36 + 64 * 9)
    assert rows[""].macs == 50 * block + 3072 * 500 + 500 * 100 + 100 * 10
    assert rows[""].parameters == 1_701_060
    assert rows["blocks.0.involution.span"].shape == (36, 32, 32)
    assert rows["head.4"][1:] == ("Linear", (10,), 1010, 1000)


def test_a_notebook_shows_a_table() -> None:
    rows = layers(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1)), (3, 100, 10))
    assert isinstance(rows, list)
    html = rows._repr_html_()
    assert html.startswith("<table><tr><th>name</th><th>kind</th><th>shape</th>")
    conv = "<tr><td>0</td><td>Conv2d</td><td>8 × 100 × 10</td><td>224</td><td>216,000</td></tr>"
    assert html.endswith(f"{conv}</table>")
    assert html_table([]) == "<table></table>"
    odd = html_table([{"<b>": "&", "x": None, "y": True}, {"<b>": 1 / 3, "x": 12345}])
    assert odd == (
        "<table><tr><th>&lt;b&gt;</th><th>x</th><th>y</th></tr>"
        "<tr><td>&amp;</td><td></td><td>True</td></tr>"
        "<tr><td>0.3333</td><td>12,345</td><td></td></tr></table>"
    )


def test_strides_groups_and_layers_used_twice() -> None:
    shared = nn.Conv2d(8, 8, 1, bias=False)
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2), shared, shared, nn.ReLU(),
        nn.Involution(8, 5, stride=2, channels_per_group=4), nn.GlobalAvgPool2d(), nn.Linear(8, 3),
    )  # fmt: skip
    rows = {row.name: row for row in layers(model, (4, 9, 7))}
    assert rows["0"].macs == 8 * 5 * 4 * 2 * 9
    assert rows["4"].shape == (8, 3, 2)
    assert rows["4"].macs == 6 * (8 * 2 + 2 * 50 + 8 * 25)
    assert rows["1"].macs == 2 * 64 * 20
    assert "2" not in rows
    assert rows[""].parameters == sum(p.size for p in model.parameters())
    assert rows[""].shape == (3,)


def test_nothing_changes_and_nothing_is_computed() -> None:
    model = SimpleModel(num_layers=2, rng=0).eval()
    before, modules = state_of(model), [dict(vars(m)) for m in model.modules()]
    layers(model)
    training_memory(model, momentum=0.9)
    evaluation_memory(model)
    after = state_of(model)
    assert all(after[name] is array for name, array in before.items())
    assert [dict(vars(m)) for m in model.modules()] == modules
    assert all(p.grad is None for p in model.parameters())
    x = np.ones((1, 2, 4, 4))
    out = invocupy.involution(x, np.ones((1, 1, 3, 3, 4, 4)))
    assert out[0, 0, 1, 1] == 9  # backends work again


def test_a_dry_run_is_a_thread_s_own() -> None:
    seen: list[Any] = []
    with backends.dry_run():
        thread = threading.Thread(target=lambda: seen.append(backends.of("batch_norm", np.ones(1))))
        thread.start()
        thread.join()
        assert backends.of("batch_norm", np.ones(1)).moments() is None
    assert seen[0].__name__ == "invocupy.backends.cpu.batch_norm"


# ---------------------------------------------------------------------------- memory

MEASURE = """
import gc, json, sys, tracemalloc
import numpy as np
from invocupy import functional as F, no_grad, optim, Tensor
from invocupy.backends import memory
from invocupy.models import SimpleModel
from invocupy.summary import evaluation_memory, training_memory

what, layers, fused, images, recompute = json.loads(sys.argv[1])

def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(key))

def compute(model, images):
    x, labels = np.ones((images, 3, 32, 32), np.float32), np.zeros(images, int)
    if what == "evaluation":
        model.eval()
        with no_grad():
            F.cross_entropy(model.logits(x), labels)
        return
    sgd = optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    for _ in range(2):
        sgd.zero_grad()
        F.cross_entropy(model.logits(Tensor(x)), labels).backward()
        sgd.step()

compute(SimpleModel(num_layers=1, fused=fused, rng=0), 2)  # compiles, and starts threads
gc.collect(); memory.release_memory()
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the highest resident size starts anew
before = status("VmRSS")
model = SimpleModel(num_layers=layers, fused=fused, rng=0, recompute=recompute)
compute(model, images)
measured = status("VmHWM") - before
asked = training_memory(model, momentum=0.9) if what == "training" else evaluation_memory(model)
print(json.dumps([measured, asked.of(images)]))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
@pytest.mark.parametrize(
    "case",
    [
        ("training", 12, "auto", 256, True),  # blocks are computed again in the backward pass
        ("training", 4, "auto", 256, False),
        ("training", 4, False, 48, True),  # all is kept
        ("evaluation", 4, "auto", 1300, True),
    ],
)
def test_the_estimate_is_what_a_process_takes(case: tuple[Any, ...]) -> None:
    """Within a quarter: the rest is scratch memory of threads, and what malloc keeps."""
    command = [sys.executable, "-c", MEASURE, json.dumps(case)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    measured, estimated = json.loads(done.stdout)
    assert measured > 50e6
    assert 0.75 < estimated / measured < 1.25


def test_recomputing_blocks_need_less() -> None:
    """The test of the estimate: it must see what the operator keeps."""
    as_one, stored, apart = (
        training_memory(SimpleModel(num_layers=6, fused=f, rng=0, recompute=r))
        for f, r in (("auto", True), ("auto", False), (False, True))
    )
    assert apart.per_image > 5 * as_one.per_image
    # reduce's 16 channels and project's 3 for each of 4 groups, of all blocks but the one at work;
    # to the nearest channel, since Python's own objects are counted too
    channel = 32 * 32 * 4
    assert round((stored.per_image - as_one.per_image) / channel) == 5 * 28
    assert training_memory(SimpleModel(num_layers=6), momentum=0.9).fixed > as_one.fixed


def test_the_first_estimate_of_a_process_is_that_of_the_second() -> None:
    """What is imported during the first one is not counted."""
    code = (
        "from invocupy.models import SimpleModel\n"
        "from invocupy.summary import training_memory\n"
        "model = SimpleModel(num_layers=2)\n"
        "print(*(training_memory(model).per_image for _ in range(2)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second = map(int, done.stdout.split())
    channel = 32 * 32 * 4  # the smallest array of an image; Python's own objects are counted too
    assert min(first, second) > 100 * channel > 100 * abs(first - second)


def test_each_phase_is_counted_on_its_own() -> None:
    """In a model that is all weights the update takes the most: new ones beside the old."""
    model = SimpleModel(num_layers=0, rng=0)
    weights = sum(p.data.nbytes for p in model.parameters())
    (gradients, _), (update, _) = training_memory(model, momentum=0.9).phases
    assert 3 * weights < gradients < update - weights


def test_numbers_of_images() -> None:
    step = StepMemory(((100, 10),))
    assert [step.images(n) for n in (0, 99, 109, 110, 205)] == [0, 0, 0, 1, 10]
    assert step.of(7) == 170
    step = StepMemory(((100, 10), (140, 2)))
    assert [step.images(n) for n in (141, 142, 149, 150, 160)] == [0, 1, 4, 5, 6]
    assert [step.of(n) for n in (1, 5, 6)] == [142, 150, 160]
    assert step.plus(1000).of(1) == 1142


NEEDS = Needs(StepMemory(((1000, 100),)), StepMemory(((500, 1),)), 3000, 1000, 250, 500)


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "free", "message"),
    [
        (100, 1, 14500, None),
        (100, 1, 14499, r"accumulate=2 \(the same step in parts\) or batch_size=99 fits"),
        (100, 1, 5600, "accumulate=10 .* batch_size=11 fits"),
        (100, 10, 5500, None),
        (100, 10, 5499, "batch_size 100 in 10 parts of 10 needs .* accumulate=12 .*batch_size=9"),
        (100, 1, 4599, "not even one image at a time fits, take fewer layers"),
        (1, 1, 4600, r"model simple needs about .* in the evaluation"),
    ],
)
def test_a_run_that_does_not_fit(
    batch_size: int, accumulate: int, free: int, message: str | None
) -> None:
    config = Config(batch_size=batch_size, accumulate=accumulate)
    if message is None:
        check_memory(config, NEEDS, free)
        return
    with pytest.raises(ConfigError, match=message):
        check_memory(config, NEEDS, free)


def test_a_run_that_stores_too_much_is_told_what_it_could_leave() -> None:
    config = Config(batch_size=100, recompute=False)
    with pytest.raises(ConfigError, match=r"recompute=True needs less, and with .* accumulate=2"):
        check_memory(config, NEEDS, 14499)
    # where it has no effect: other models, and on a GPU
    for other, needs in (
        (replace(config, model="rednet26"), NEEDS),
        (config, NEEDS._replace(program=0)),
    ):
        with pytest.raises(ConfigError, match="free: accumulate="):
            check_memory(other, needs, 11499)


def test_training_refuses_and_what_it_proposes_fits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = Config(layers=2, limit=120, batch_size=120, epochs=1, device="cpu")
    needs = estimate(config, build(config))._replace(data=0)
    free = needs.training_peak(replace(config, batch_size=100))
    monkeypatch.setattr("invocupy.train.loop.free_memory", lambda device: free)
    command = ["train", "--layers", "2", "--limit", "120", "--batch-size", "120", "--epochs", "1"]
    command += ["--device", "cpu", "--out", str(tmp_path / "run")]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.startswith("invocupy: batch_size 120 needs about ")
    fits = re.search(r"accumulate=2 \(the same step in parts\) or batch_size=(\d+) fits", error)
    assert fits
    assert 95 <= int(fits[1]) <= 105  # the interpreter's own objects move it a little
    assert not (tmp_path / "run").exists()
    assert main([*command, "--accumulate", "2"]) == 0
    monkeypatch.setattr("invocupy.train.loop.free_memory", lambda device: 1 << 20)
    with pytest.raises(ConfigError, match="take fewer layers"):
        fit(replace(config, limit=20))


def test_free_memory_is_the_least_of_the_machine_and_its_groups(tmp_path: Path) -> None:
    def put(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    assert 0 < free_memory("cpu") <= psutil.virtual_memory().total
    put("proc/self/cgroup", "0::/a/b\n")
    put("sys/fs/cgroup/a/b/memory.max", "max\n")
    put("sys/fs/cgroup/a/b/memory.current", "1\n")
    assert not list(_left_in_groups(tmp_path))
    put("sys/fs/cgroup/a/memory.max", "4000000\n")
    put("sys/fs/cgroup/a/memory.current", "3000000\n")
    put("sys/fs/cgroup/a/memory.stat", "anon 1\ninactive_file 500\n")
    assert list(_left_in_groups(tmp_path)) == [1_000_500]
    put("proc/self/cgroup", "5:cpu,cpuacct:/x\n3:memory:/y\n")
    put("sys/fs/cgroup/memory/y/memory.limit_in_bytes", "7000")
    put("sys/fs/cgroup/memory/y/memory.usage_in_bytes", "6000")
    assert list(_left_in_groups(tmp_path)) == [1000]


# ---------------------------------------------------------------------------- the command


def test_the_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["summary", "--layers", "50", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    for words in (
        r"0 to 49         SimpleBlock  3 x 32 x 32   50 x 2,269  50 x 2,621,440",
        "1,701,060 parameters, 132,659,000 multiply-adds per image",
        "fits",
    ):
        assert words in out
    assert len(out.splitlines()) < 30
    monkeypatch.setattr("invocupy.train.free_memory", lambda device: 2 << 30)
    command = ["summary", "--layers", "1", "--batch-size", "9000", "--device", "cpu"]
    assert main(command) == 0
    assert "DOES NOT FIT" in capsys.readouterr().out
    assert main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["memory"]["fits"] is False
    assert result["memory"]["training"] > result["memory"]["training_per_image"] * 9000
    assert result["parameters"] == 2269 + 1_587_610
    assert [row["name"] for row in result["layers"]][:3] == ["", "blocks", "blocks.0"]
    assert main(["summary", "--layers", "-1"]) == 2


@pytest.mark.gpu
def test_memory_on_the_gpu() -> None:
    import cupy

    model = SimpleModel(num_layers=4, rng=0).to("cuda")
    step = training_memory(model, momentum=0.9)
    pool = cupy.cuda.MemoryPool()
    with cupy.cuda.using_allocator(pool.malloc):
        fresh = SimpleModel(num_layers=4, rng=0).to("cuda")
        sgd = invocupy.optim.SGD(fresh.parameters(), 1e-3, momentum=0.9)
        for _ in range(2):
            sgd.zero_grad()
            x = invocupy.Tensor(cupy.ones((16, 3, 32, 32), np.float32))
            loss = invocupy.functional.cross_entropy(fresh.logits(x), cupy.zeros(16, np.int64))
            loss.backward()
            sgd.step()
            del loss, x  # or the next step would begin beside what this one kept
    assert 0.6 < step.of(16) / pool.total_bytes() < 1.4
    assert free_memory("cuda") > 0
