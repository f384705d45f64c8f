"""Runs on a GPU, with CUDA graphs and without, that must end with the same bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import content

from invocupy import nn
from invocupy.data import shapes10
from invocupy.train import Config, fit

# 3 epochs of 3 steps, the last one of 4 images: recorded in the first and in the second epoch.
HEAD = Config(layers=0, epochs=3, batch_size=10, device="cuda", graph=True, nesterov=False)
RICH = replace(
    HEAD, accumulate=3, clip_norm=1.0, ema=0.9, cutout=3, augment="crop_flip", warmup=2,
    schedule="cosine", decay_biases=False, label_smoothing=0.1, nesterov=True, validation=0.2,
)  # fmt: skip
BLOCK = replace(RICH, layers=1, epochs=2, batch_size=12, accumulate=2)  # 2 steps an epoch


def images(count: int) -> Any:
    """Two sets of small images."""
    pixels, labels = shapes10(count + 6, 0)
    pixels = np.ascontiguousarray(pixels[..., ::8, ::8])
    return pixels[:count], labels[:count], pixels[count:], labels[count:]


def differences(folder: Path, config: Config, **given: Any) -> list[str]:
    """What a run with graphs has otherwise than one without: names of arrays and numbers."""
    found = []
    for name in ("graph", "eager"):
        changed = {key: make() for key, make in given.items()}
        fit(
            replace(config, graph=config.graph if name == "graph" else False), folder / name,
            data=images(30 if config.validation else 24), **changed,
        )  # fmt: skip
        found.append(content(folder / name))
    (pieces, *others), (wanted, *numbers) = found
    assert pieces.keys() == wanted.keys()
    apart = [name for name in wanted if pieces[name] != wanted[name]]
    return apart + ["numbers"] * (others != numbers)


def launches(cp: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the graphs that are launched from here on; only the stand-in tells."""
    if not hasattr(cp.cuda, "calls"):
        pytest.skip("only the stand-in tells which graphs are launched")
    found: list[int] = []
    launch = cp.cuda.Graph.launch

    def noted(self: Any, stream: Any = None) -> None:
        found.append(len(self.nodes))
        launch(self, stream)

    monkeypatch.setattr(cp.cuda.Graph, "launch", noted)
    return found


def layers() -> nn.Module:
    """All that keeps something from step to step."""
    rng = np.random.default_rng(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(48, 8, rng=rng), nn.BatchNorm1d(8), nn.ReLU(),
        nn.Dropout(0.3, rng), nn.Linear(8, 10, rng=rng),
    )  # fmt: skip
