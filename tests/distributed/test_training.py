"""Several ranks are one process: the same training to rounding.

Without MPI a rank is a thread; where it is installed, ``mpiexec`` starts processes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rank_jobs
from processes import others
from rank_jobs import CASES, IMAGES, MISTAKES, PLAIN, STOPPED_AT
from rank_processes import needs_mpi, together

from invocupy import checkpoint
from invocupy.train import (
    fit,
)


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """The folder of what so many ranks computed, once."""

    @cache
    def compute(ranks: int) -> Path:
        folder = tmp_path_factory.mktemp(f"ranks{ranks}")
        rank_jobs.stop(folder / "resumed", None, 0)
        done = together(ranks, "compute", str(folder), cwd=folder, deadline=280)
        assert done.returncode == 0, done.stdout + done.stderr
        assert others(done.stderr) == ""
        return folder

    return compute


@pytest.fixture(scope="module")
def alone() -> Callable[[str], Any]:
    """What a single process computes in a case, once."""
    return cache(lambda case: rank_jobs.trained(case, None))


def distance(arrays: dict[str, Any], others: dict[str, Any]) -> float:
    """The norm of the difference of two models, in units of that of the second."""
    pairs = [
        (arrays[name].astype(np.float64), other)
        for name, other in others.items()
        if other.dtype.kind == "f"
    ]
    apart = sum(float(np.square(mine - other).sum()) for mine, other in pairs)
    return float(np.sqrt(apart / sum(float(np.square(other).sum()) for _, other in pairs)))


@needs_mpi
@pytest.mark.parametrize(
    ("case", "ranks"),
    [(name, n) for name, case in CASES.items() for n in case.ranks if name not in MISTAKES],
)
def test_several_ranks_are_one_process(
    computed: Callable[[int], Path], alone: Callable[[str], Any], case: str, ranks: int
) -> None:
    arrays, info = checkpoint.load(computed(ranks) / f"{case}.safetensors")
    expected, history = alone(case)
    assert distance(arrays, expected) <= {"float64": 1e-12, "float32": 1e-6}[CASES[case].dtype]
    counts = [name for name, array in expected.items() if array.dtype.kind == "i"]
    assert counts
    assert all(arrays[name] == expected[name] for name in counts)
    assert len(info["history"]) == len(history) == 5
    for row, other in zip(info["history"], history, strict=True):
        for name in ("epoch", "step", "lr", "train_accuracy", "test_accuracy"):
            assert row[name] == other[name]
        for name in ("train_loss", "test_loss"):
            assert row[name] == pytest.approx(other[name], rel=1e-5)


@needs_mpi
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_would_be_seen(
    computed: Callable[[int], Path], alone: Callable[[str], Any], mistake: str
) -> None:
    """Norms of a rank's own share, and means of means, are far from one process."""
    arrays, _ = checkpoint.load(computed(2) / f"{mistake}.safetensors")
    assert distance(arrays, alone(mistake)[0]) > 1e-4


@needs_mpi
@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("count", IMAGES)
def test_evaluation_counts_each_image_once(
    computed: Callable[[int], Path], count: int, ranks: int
) -> None:
    _, info = checkpoint.load(computed(ranks) / "evaluated.safetensors")
    loss, accuracy, confusion = info[str(count)]
    expected = rank_jobs.evaluated(count, None)
    assert [accuracy, confusion] == expected[1:]
    assert sum(map(sum, confusion)) == count
    assert loss == pytest.approx(expected[0], rel=1e-6)


@needs_mpi
def test_a_run_goes_on_with_another_number_of_ranks(
    computed: Callable[[int], Path], alone: Callable[[str], Any], tmp_path: Path
) -> None:
    expected, history = alone("single")
    epoch, step = STOPPED_AT
    stopped, resumed = computed(2) / "stopped", computed(2) / "resumed"
    state = checkpoint.load(stopped / "last.safetensors")[1]["state"]
    assert (state["epoch"], state["step"]) == (epoch - 1, step + 1)
    shutil.copytree(stopped, tmp_path / "one")
    fit(PLAIN, tmp_path / "one", resume=True)
    for folder, ranks in ((tmp_path / "one", 1), (resumed, 2)):
        arrays, info = checkpoint.load(folder / "last.safetensors")
        model = {name.removeprefix("model."): array for name, array in arrays.items()}
        assert distance(model, expected) <= 1e-6
        accuracies = [row["train_accuracy"] for row in info["state"]["history"]]
        assert accuracies == [row["train_accuracy"] for row in history]
        assert json.loads((folder / "machine.json").read_text())["ranks"] == ranks
