"""A share of the training images that chooses, and a test set that is read once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import HEAD, PLAIN, TINY, at, content, interrupt, timeless

from invocupy import checkpoint, data
from invocupy.models import SimpleModel
from invocupy.train import (
    Config,
    ConfigError,
    Evaluation,
    Interrupted,
    Progress,
    evaluate,
    fit,
    hold_out,
    load_data,
    load_run,
    loop,
)

SHARE = replace(HEAD, validation=0.2)
STYLE: dict[str, Any] = {"mean": data.SHAPES10_MEAN, "std": data.SHAPES10_STD}


class Scores:
    """In place of ``evaluate``: given accuracies, and which images were asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *values: float) -> None:
        self.values, self.seen = iter(values), list[Any]()
        monkeypatch.setattr(loop, "evaluate", self)

    def __call__(self, _: Any, images: Any, *rest: Any, **options: Any) -> Evaluation:
        self.seen.append(images)
        return Evaluation(1.0, next(self.values), np.zeros((10, 10), np.int64))


def test_shares_depend_on_the_seed_and_the_count_alone() -> None:
    config = Config(validation=0.25, seed=3)
    kept, held = hold_out(config, 100)
    assert len(held) == 25
    np.testing.assert_array_equal(np.sort([*kept, *held]), np.arange(100))
    np.testing.assert_array_equal(held, hold_out(replace(config, epochs=9), 100)[1])
    assert held.tolist() != hold_out(replace(config, seed=4), 100)[1].tolist()
    assert [len(part) for part in hold_out(Config(), 7)] == [7, 0]


@pytest.mark.parametrize(("share", "images"), [(0.01, 10), (0.99, 3)])
def test_a_share_must_leave_images_on_both_sides(share: float, images: int) -> None:
    with pytest.raises(ConfigError, match=f"validation {share} of {images} training images is"):
        fit(Config(layers=0, validation=share, limit=images, device="cpu"))
    with pytest.raises(ConfigError, match="validation must be 0 with overfit"):
        Config(validation=share, overfit=images)


def test_each_epoch_sees_the_held_out_images_and_the_end_the_test_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scores = Scores(monkeypatch, 0.25, 0.5, 0.125)
    trained: list[Any] = []
    batches = data.Batches

    def noted(images: Any, *rest: Any, **options: Any) -> data.Batches:
        trained.append(images)
        return batches(images, *rest, **options)

    monkeypatch.setattr(loop, "Batches", noted)
    history = fit(SHARE)
    images, _ = load_data(SHARE, train=True)
    kept, held = hold_out(SHARE, len(images))
    np.testing.assert_array_equal(trained[0], images[kept])
    for seen, wanted in zip(
        scores.seen, (images[held], images[held], load_data(SHARE, train=False)[0]), strict=True
    ):
        np.testing.assert_array_equal(seen, wanted)
    assert [row["val_accuracy"] for row in history] == [0.25, 0.5]
    assert [row["test_accuracy"] for row in history] == [None, 0.125]
    assert [row["test_loss"] for row in history] == [None, 1.0]


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_best_is_the_first_epoch_of_the_highest_validation_accuracy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ema: float
) -> None:
    Scores(monkeypatch, 0.2, 0.5, 0.5, 0.3, 0.7)
    saved: list[dict[str, Any]] = []

    def progress(now: Progress) -> None:
        if now.row:
            saved.append(checkpoint.load(tmp_path / "last.safetensors")[0])

    model = SimpleModel(num_layers=0, rng=0)
    fit(replace(SHARE, epochs=4, ema=ema), tmp_path, progress=progress, model=model)
    arrays, info = checkpoint.load(tmp_path / "best.safetensors")
    assert info["best_accuracy"] == 0.5
    assert info["state"]["epoch"] == 2
    for name, array in saved[1].items():
        np.testing.assert_array_equal(arrays[name], array)
    _, loaded, history = load_run(tmp_path)
    assert len(history) == 2
    assert not loaded.training
    kind = "average" if ema else "model"
    last = checkpoint.load(tmp_path / "last.safetensors")[0]
    for name, array in loaded.state_dict().items():
        np.testing.assert_array_equal(saved[1][f"{kind}.{name}"].astype(array.dtype), array)
        np.testing.assert_array_equal(model.state_dict()[name], array)  # the best, at the end
    for name, array in saved[3].items():
        np.testing.assert_array_equal(last[name], array)  # as it was trained


def test_the_test_accuracy_is_that_of_the_best_weights(tmp_path: Path) -> None:
    """Also where the run was stopped after its best epoch: those come from the folder."""
    config = replace(TINY, validation=0.2, epochs=4)
    history = fit(config, tmp_path / "whole")
    _, model, _ = load_run(tmp_path / "whole")
    found = evaluate(model, *load_data(config, train=False), **STYLE)
    assert history[-1]["test_accuracy"] == found.accuracy
    assert history[-1]["test_loss"] == found.loss
    run = tmp_path / "stopped"
    for epoch in (2, 4):
        with pytest.raises(Interrupted):
            fit(config, run, resume=run.exists(), progress=at(epoch, 1, interrupt))
    assert timeless(fit(config, run, resume=True)) == timeless(history)
    for which in ("best", "last"):
        assert content(run, which) == content(tmp_path / "whole", which)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert timeless(rows) == timeless(history)


def test_the_test_set_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Scores(monkeypatch, 0.2, 0.4, 0.6)
    history = fit(SHARE, tmp_path)
    assert fit(SHARE, tmp_path, resume=True) == history  # no score is left
    Scores(monkeypatch, 0.5, 0.8)
    longer = fit(replace(SHARE, epochs=3), tmp_path, resume=True)
    assert [row["test_accuracy"] for row in longer] == [None, 0.6, 0.8]


def test_a_run_stopped_in_its_last_evaluation_goes_on_with_it(tmp_path: Path) -> None:
    counts: list[int] = []

    def testing(done: int, batches: int) -> None:
        counts.append(done)
        if len(counts) == 3:  # two epochs, and the test set
            interrupt()

    with pytest.raises(Interrupted, match="interrupted in epoch 2 after step 4"):
        fit(SHARE, tmp_path, testing=testing)
    assert load_run(tmp_path, "last")[2][-1]["test_accuracy"] is None
    history = fit(SHARE, tmp_path, resume=True)
    assert timeless(history) == timeless(fit(SHARE))


def test_patience(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Scores(monkeypatch, 0.2, 0.4, 0.3, 0.4, 0.9)
    config = replace(PLAIN, epochs=10, patience=2, validation=0.2)
    history = fit(config, tmp_path)
    assert [row["val_accuracy"] for row in history] == [0.2, 0.4, 0.3, 0.4]
    assert [row["test_accuracy"] for row in history] == [None, None, None, 0.9]
    assert fit(config, tmp_path, resume=True) == history  # stopped is stopped
    Scores(monkeypatch, 0.9, 0.1)
    longer = fit(replace(config, patience=3, epochs=5), tmp_path, resume=True)
    assert [row["val_accuracy"] for row in longer] == [0.2, 0.4, 0.3, 0.4, 0.9]


def test_patience_does_not_look_at_the_test_set(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="patience 2 needs validation"):
        fit(replace(PLAIN, patience=2), tmp_path / "new")
    assert not (tmp_path / "new").exists()
    fit(PLAIN, tmp_path)  # a run of a version that did
    assert len(fit(replace(PLAIN, patience=1, epochs=4), tmp_path, resume=True)) == 4
