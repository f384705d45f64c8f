"""``benchmarks/gpu_layers.py``: the committed counts hold, and what is worse is found."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("gpu_layers.py")
pytest.importorskip("cuda_proof")  # whose tools the stand-in needs

import gpu_layers  # noqa: E402


def test_blocks_ask_for_no_more_than_the_committed_table_says() -> None:
    done = subprocess.run([sys.executable, PROGRAM, "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert counts == json.loads(gpu_layers.RESULTS.read_text()), "renew it: gpu_layers.py --write"
    for block in counts.values():
        assert block["operations"] == sum(row["operations"] for row in block["rows"].values())
        assert block["host_waits"] == 0


@pytest.mark.parametrize("figure", ["operations", "megabytes", "host_waits"])
def test_more_is_worse(figure: str) -> None:
    committed = json.loads(gpu_layers.RESULTS.read_text())
    more = copy.deepcopy(committed)
    name = next(iter(more))
    more[name][figure] += 1
    assert gpu_layers.worse(more, committed) == []
    found = gpu_layers.worse(committed, more)
    assert [line.partition(": ")[2].split()[0] for line in found] == [figure]
