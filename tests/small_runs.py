"""Small runs, and what of them must not depend on where they were stopped."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from invocupy import checkpoint
from invocupy.train import (
    Config,
    Progress,
)

# no involution: nothing to compile; 2 epochs of 3 steps, the last one of 10 images
PLAIN = Config(layers=0, epochs=2, batch_size=20, limit=50, device="cpu")

# 2 epochs of 3 steps, the last one of 10 images
TINY = Config(
    layers=1, epochs=2, batch_size=20, limit=50, label_smoothing=0.1, augment="crop_flip",
    schedule="cosine", warmup=2, device="cpu", accumulate=3, clip_norm=1.0, ema=0.9, cutout=6,
    decay_biases=False,
)  # fmt: skip
STEPS = 3

# no involution: where the model does not matter
HEAD = replace(TINY, layers=0, accumulate=1, clip_norm=None, ema=0.0, cutout=0)


def content(folder: Path, which: str = "last") -> tuple[Any, ...]:
    """All of a run that must not depend on where it was stopped: arrays to the bit, numbers."""
    arrays, info = checkpoint.load(folder / f"{which}.safetensors")
    state = {name: value for name, value in info["state"].items() if name != "seconds"}
    state["history"] = timeless(state["history"])
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    pieces = {name: (a.dtype, a.shape, a.tobytes()) for name, a in arrays.items()}
    metrics = timeless([json.loads(line) for line in lines]) if which == "last" else None
    return pieces, state, info["best_accuracy"], metrics


def timeless(history: list[Any]) -> list[Any]:
    times = ("seconds", "images_per_second")
    return [{name: value for name, value in row.items() if name not in times} for row in history]


def at(epoch: int, step: int, act: Callable[[], None]) -> Callable[[Progress], None]:
    """A progress function that acts once, after a step; step 0 is the end of the epoch."""

    def progress(now: Progress) -> None:
        if now.epoch == epoch and (now.step == step if now.row is None else step == 0):
            act()

    return progress


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def crash() -> None:
    raise RuntimeError("power cut")
