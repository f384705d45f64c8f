"""What is found of a run: agreement with the evaluation, heat maps, runs that were cut."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from invocupy import checkpoint, nn
from invocupy import functional as F  # noqa: N812
from invocupy.checkpoint import CheckpointError
from invocupy.data import SHAPES10_MEAN, SHAPES10_STD
from invocupy.models import SimpleModel
from invocupy.report import Findings, gather, heat_maps
from invocupy.report.findings import involution_layers
from invocupy.train import ConfigError, evaluate, fit, load_data, load_run

STYLE: dict[str, Any] = {"mean": SHAPES10_MEAN, "std": SHAPES10_STD}


def test_findings_agree_with_the_evaluation(run: str, found: Findings) -> None:
    _, model, _ = load_run(run)
    images, labels = load_data(found.config, train=False)
    result = evaluate(model, images, labels, **STYLE)
    np.testing.assert_array_equal(found.confusion, result.confusion)
    assert found.accuracy == result.accuracy
    assert found.images == 60
    assert {*found.samples.labels[:10]} == {*range(10)}
    wrong = found.mistakes.probabilities.argmax(axis=1) != found.mistakes.labels
    assert wrong.all()
    assert len(wrong) == min(24, 60 - round(60 * found.accuracy))
    certainty = found.mistakes.probabilities.max(axis=1)
    assert (np.diff(certainty) <= 0).all()
    assert [heat.layer for heat in found.maps] == ["blocks.0.involution", "blocks.1.involution"]
    assert found.machine["packages"]["numpy"] == np.__version__


def test_findings_of_a_run_stopped_before_its_end(found: Findings, tmp_path: Path) -> None:
    def stop(now: Any) -> None:
        if now.epoch == 1:
            raise RuntimeError("no space left")

    with pytest.raises(RuntimeError, match="no space left"):
        fit(replace(found.config, layers=0, limit=20), tmp_path, progress=stop)
    with pytest.raises(CheckpointError, match="no whole epoch to show: resume the run"):
        gather(tmp_path, which="last", device="cpu")
    early = (tmp_path / "last.safetensors").read_bytes()
    fit(replace(found.config, layers=0, limit=20, epochs=1), tmp_path, resume=True)
    (tmp_path / "last.safetensors").write_bytes(early)  # as if only the best had been written
    assert [row["epoch"] for row in gather(tmp_path, device="cpu").history] == [1]


def test_heat_maps_are_sums_over_taps() -> None:
    """A generator that only has a bias makes the same kernel everywhere."""
    model = SimpleModel(num_layers=1, rng=0)
    layer = model.blocks[0].involution
    layer.span.weight.data = np.zeros_like(layer.span.weight.data)
    layer.span.bias.data = np.arange(36, dtype=np.float32)  # 4 groups of 9 taps
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), dtype=np.uint8)
    (heat,) = heat_maps(model, images, ["blocks.0.involution"], **STYLE)
    assert heat.values.shape == (2, 4, 32, 32)
    for group in range(4):
        assert (heat.values[:, group] == sum(range(9 * group, 9 * group + 9))).all()
    assert layer.fused == "auto"
    assert "forward" not in vars(layer)
    # and of a generator that sees the image, at one pixel
    layer.span.weight.data = np.ones_like(layer.span.weight.data)
    (heat,) = heat_maps(model, images, ["blocks.0.involution"], **STYLE)
    assert np.ptp(heat.values[0, 0]) > 0


def test_layers_to_map() -> None:
    model = nn.Sequential(*(nn.Involution(16) for _ in range(9)))
    assert involution_layers(model) == ["0", "3", "5", "8"]
    assert involution_layers(model, [8, 1]) == ["8", "1"]
    assert involution_layers(nn.Sequential(nn.ReLU())) == []
    with pytest.raises(ConfigError, match="involutions must be numbers below 9"):
        involution_layers(model, [9])
    with pytest.raises(ConfigError, match=r"involutions must be left out, as .*, got 0"):
        involution_layers(nn.Sequential(nn.ReLU()), [0])


class Mixed(nn.Module):
    """Involutions of signals and of images, and one that is never called."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.start = nn.Conv2d(3, 16, 1, rng=rng)
        self.signal = nn.Involution1d(16, rng=rng)
        self.spare, self.image = (nn.Involution(16, rng=rng) for _ in range(2))
        self.end = nn.Linear(16, 10, rng=rng)

    def forward(self, x: Any) -> Any:
        x = self.start(x)
        x = F.reshape(self.signal(F.flatten(x, 2)), x.shape)
        return self.end(F.mean(self.image(x), axis=(2, 3)))


def test_layers_without_a_picture_are_left_out(found: Findings, tmp_path: Path) -> None:
    fit(replace(found.config, epochs=1, limit=20), tmp_path, model=Mixed())
    mixed = gather(tmp_path, device="cpu", model=Mixed())
    assert [heat.layer for heat in mixed.maps] == ["image"]
    assert mixed.explored is not None
    assert [layer["name"] for layer in mixed.explored["layers"]] == ["image"]
    spare = gather(tmp_path, device="cpu", model=Mixed(), involutions=[0])
    assert spare.maps == []
    assert spare.explored is None


def test_settings_of_the_machine_do_not_matter_for_a_look(found: Findings, tmp_path: Path) -> None:
    """A run that was trained elsewhere: its device and data folder are not asked for."""
    config = replace(found.config, device="cuda:7", data_dir="/gone")
    path = tmp_path / "elsewhere"
    fit(replace(found.config, epochs=1, layers=0), path)
    for which in ("best", "last"):
        arrays, info = checkpoint.load(path / f"{which}.safetensors")
        info["config"] |= {"device": config.device, "data_dir": config.data_dir}
        checkpoint.save(path / f"{which}.safetensors", arrays, info)
    assert gather(path, device="cpu").images == 60
