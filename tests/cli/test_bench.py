"""The bench command: what it counts, with shapes that take no time."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import invocupy
from invocupy.cli import bench, main


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_SHAPES", {"tiny": ((2, 32, 8, 8), 2, 3)})
    monkeypatch.setattr(bench, "_LAYERS", 0)
    monkeypatch.setattr(bench, "_COPIED", 1 << 16)
    monkeypatch.setattr(bench, "_torch", lambda: None)


def test_rows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--seconds", "0.01", "--device", "cpu", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    rows = {row["what"]: row for row in result["rows"]}
    assert list(rows) == [
        "copy", "matrix product, 1024", "tiny, forward", "tiny, gradients",
        "SimpleModel, 0 blocks, 32 images, training step",
        "SimpleModel, 0 blocks, 32 images, evaluation",
    ]  # fmt: skip
    for row in rows.values():
        assert 0 < row["low"] <= row["ms"] <= row["high"]
    x, kernel = 4 * 2 * 32 * 64, 4 * 2 * 2 * 9 * 64
    forward, backward = rows["tiny, forward"], rows["tiny, gradients"]
    assert forward["gb_s"] * forward["ms"] * 1e6 == pytest.approx(2 * x + kernel)
    assert backward["gb_s"] * backward["ms"] * 1e6 == pytest.approx(3 * x + 2 * kernel)
    assert forward["of_copy"] == pytest.approx(forward["gb_s"] / rows["copy"]["gb_s"])
    assert result["machine"]["packages"]["numpy"] == np.__version__


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--seconds", "0.01", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    for words in ("copy", "GB/s", "GFLOP/s", "images/s", "tiny, gradients, invocupy", "%"):
        assert words in out
    assert main(["bench", "--seconds", "0"]) == 2
    assert "seconds must be" in capsys.readouterr().err


def test_the_peer_is_the_same_operator() -> None:
    torch = pytest.importorskip("torch", reason="needs PyTorch")
    rng = np.random.default_rng(0)
    x, grad = (rng.standard_normal((2, 8, 5, 6)) for _ in range(2))
    kernel = rng.standard_normal((2, 2, 3, 3, 5, 6))
    forward, backward = bench._unfold(torch, x, kernel, grad)
    np.testing.assert_allclose(forward().numpy(), invocupy.involution(x, kernel), atol=1e-12)
    for theirs, ours in zip(
        backward(), invocupy.involution_backward(grad, x, kernel), strict=True
    ):  # fmt: skip
        np.testing.assert_allclose(theirs.numpy(), ours, atol=1e-12)


def test_what_is_wrong_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong:
        @staticmethod
        def numpy() -> Any:
            return np.zeros((2, 32, 8, 8), np.float32)

    monkeypatch.setattr(bench, "_torch", lambda: "PyTorch")
    monkeypatch.setattr(bench, "_unfold", lambda *_: (Wrong, Wrong))
    with pytest.raises(RuntimeError, match="the forms differ"):
        main(["bench", "--seconds", "0.01", "--device", "cpu"])
