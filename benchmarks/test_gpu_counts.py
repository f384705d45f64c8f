"""``benchmarks/gpu_counts.py``: the committed counts hold, and what is worse is found."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("gpu_counts.py")
pytest.importorskip("cuda_proof")  # whose tools the stand-in needs

import gpu_counts  # noqa: E402


def test_a_step_asks_for_no_more_than_the_committed_table_says() -> None:
    done = subprocess.run([sys.executable, PROGRAM, "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert counts == json.loads(gpu_counts.RESULTS.read_text()), "renew it: gpu_counts.py --write"
    rows = counts["rows"].values()
    assert counts["block_operations"] == pytest.approx(sum(row["operations"] for row in rows))
    # Each image of 32 x 32 with 3 channels is read at least once, forward and backward.
    assert counts["block_megabytes"] > 2 * 256 * 3 * 32 * 32 * 4 / 1e6
    assert f"{counts['block_operations']:.3f}" in gpu_counts.table(counts)


@pytest.mark.parametrize("figure", gpu_counts.FIGURES)
def test_more_is_worse(figure: str) -> None:
    committed = json.loads(gpu_counts.RESULTS.read_text())
    more = copy.deepcopy(committed)
    more[figure] += 1
    assert gpu_counts.worse(committed, committed) == []
    assert gpu_counts.worse(more, committed) == []
    assert [line.partition(" ")[0] for line in gpu_counts.worse(committed, more)] == [figure]


def test_losing_the_graph_is_worse() -> None:
    committed = json.loads(gpu_counts.RESULTS.read_text())
    assert gpu_counts.worse(committed | {"graph": True}, committed | {"graph": False})
