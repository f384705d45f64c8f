"""The model of scaling: its formulas, its inputs, and the page that shows them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scaling
import scaling_model as model

from invocupy import models, nn
from invocupy.distributed import Single

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "scaling.json"


@pytest.fixture
def results() -> Any:
    return json.loads(RESULTS.read_text(encoding="utf-8"))


def test_the_page_on_clusters_shows_the_results_file() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "scaling.py"), "--table", str(RESULTS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert len(done.stdout.splitlines()) > 30
    assert done.stdout in (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")


def test_messages_cost_what_the_algorithms_send() -> None:
    link = model.Link("", latency=1.0, bandwidth=10.0)
    # two ranks: each half travels there and back; one array each way
    assert model.allreduce(40, 2, link) == 40 / 10 + 2
    network = {
        "gradient_bytes": 40, "norm_messages": 3, "norm_bytes": 20, "images": 4,
        "seconds": {"4": {"median": 5.0}},
    }  # fmt: skip
    assert model.step(network, 4, 2, link) == (5, 6, 3, 2)
    assert model.step(network, 4, 8, link) == (5, 2 * 7 / 8 * 4 + 6, 9, 14)
    # norms of two ranks each cost the same however many pairs there are
    assert model.step(network, 4, 8, link, group=2)[2:] == (3, 2)
    assert model.step(network, 4, 8, link, group=1)[2:] == (0, 0)
    assert model.efficiency(network, 2, link) == 5 / 16


def test_fewer_images_take_what_the_line_says() -> None:
    network = {"seconds": {"2": {"median": 3.0}, "8": {"median": 6.0}}}
    assert [model.compute(network, images) for images in (2, 8, 0)] == [3, 6, 2]
    # no time is negative, if the larger size was measured in a quieter moment
    network["seconds"]["2"]["median"] = 1.0
    assert model.compute(network, 0) == 0


def test_a_line_is_found_again() -> None:
    sizes = [64 * 4**i for i in range(8)]
    fit = scaling.fit_line(sizes, [2e-6 + size / 3e9 for size in sizes])
    assert fit["latency"] == pytest.approx(2e-6)
    assert fit["bandwidth"] == pytest.approx(3e9)
    assert fit["off"] == pytest.approx(0, abs=1e-9)


def test_two_ranks_here_are_predicted_from_their_link() -> None:
    fits = {
        "allreduce": {"latency": 9.0, "bandwidth": 10.0},
        "allgather": {"latency": 1.0, "bandwidth": 99.0},
    }
    sent = {"allreduce_sum": {"count": 1, "bytes": 40}, "allgather": {"count": 3, "bytes": 20}}
    run = {"ranks": 2, "messages": sent, "alone": {"median": 5.0}}
    assert model.expected({"links": {"2": fits}}, run) == 5 + 6 + 3 + 2
    assert model.expected({"links": {"2": fits}}, run | {"ranks": 1}) == 5


def test_a_recorder_counts_messages_and_passes_them_on() -> None:
    recorder = scaling.Recorder(Single())
    assert recorder.allgather(np.ones(3)).shape == (1, 3)
    recorder.allreduce_sum(np.ones(4, np.float32))
    assert recorder.size == 1
    assert {kind: (m["count"], m["bytes"]) for kind, m in recorder.messages.items()} == {
        "allgather": (1, 24), "allreduce_sum": (1, 16),
    }  # fmt: skip
    recorder.reset()
    assert recorder.messages["allgather"]["count"] == 0


def test_the_results_have_the_messages_of_the_code(results: Any) -> None:
    """Each norm sends count, mean and variance, and two sums back; a block of three less."""
    found = {network["name"]: network for network in results["networks"]}
    stream, hidden, width = 3, 64, 16
    forward = (1 + stream + stream**2) + (1 + 2 * width) + (1 + 2 * stream)
    backward = 2 * (hidden + width + stream)
    wanted = {"SimpleModel": (50 * 6, 50 * 8 * (forward + backward), models.SimpleModel())}
    for name in "RedNet-26", "RedNet-50":
        network = getattr(models, name.replace("-", "").lower())()
        norms = [len(m.weight) for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
        wanted[name] = 2 * len(norms), 8 * sum(4 * c + 1 for c in norms), network
    assert found.keys() == wanted.keys()
    for name, (messages, size, network) in wanted.items():
        assert (found[name]["norm_messages"], found[name]["norm_bytes"]) == (messages, size)
        least = 4 * sum(p.size for p in network.parameters())
        # each parameter begins at a multiple of 64 elements, a loss before them
        places = 1 + sum(1 for _ in network.parameters())
        assert least < found[name]["gradient_bytes"] <= least + places * 64 * 4
    assert {run["ranks"] for run in results["runs"]} == {1, 2, 4}
    assert all(network["on"] for network in model.networks(results))
