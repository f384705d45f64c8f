"""Training: what is recorded of it, numbers that go wrong, what it learns."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import HEAD, STEPS, TINY, at, content, interrupt, timeless

from invocupy import checkpoint, data, nn
from invocupy import functional as F  # noqa: N812
from invocupy.models import SimpleModel
from invocupy.train import (
    Config,
    ConfigError,
    Interrupted,
    NonFiniteLoss,
    build,
    evaluate,
    fit,
    load_data,
    load_run,
    loop,
    pick_device,
)

# ------------------------------------------------------------------------------- the run's folder


def test_history_metrics_and_config(whole: Path) -> None:
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [(row["epoch"], row["step"]) for row in rows] == [(1, STEPS), (2, 2 * STEPS)]
    for row in rows:
        assert list(row) == [
            "epoch", "step", "train_loss", "train_accuracy", "test_loss", "test_accuracy",
            "seconds", "images_per_second", "lr",
        ]  # fmt: skip
        assert row["images_per_second"] == pytest.approx(50 / row["seconds"])
        shares = {number / 50 for number in range(51)}
        assert {row["test_accuracy"], row["train_accuracy"]} <= shares
    assert Config.from_json((whole / "config.json").read_text()) == TINY
    names = {"config.json", "machine.json", "metrics.jsonl"}
    names |= {"last.safetensors", "best.safetensors"}
    assert {path.name for path in whole.iterdir()} == names


def test_best_is_the_last_epoch_without_a_validation_share(tmp_path: Path, whole: Path) -> None:
    """What the test set says of the epochs chooses nothing."""
    assert content(whole, "best")[:2] == content(whole)[:2]
    with pytest.raises(Interrupted):
        fit(HEAD, tmp_path, progress=at(2, 1, interrupt))
    assert len(load_run(tmp_path)[2]) == 1
    assert checkpoint.load(tmp_path / "best.safetensors")[1]["best_accuracy"] is None


def test_train_loss_is_the_mean_over_images() -> None:
    """With a rate that changes nothing, one batch and three uneven ones have the same means."""
    still = replace(HEAD, lr=1e-30, epochs=1, augment="none", warmup=0)
    (cut,), (one,) = fit(still), fit(replace(still, batch_size=50))
    assert cut["train_loss"] == pytest.approx(one["train_loss"], rel=1e-6)
    assert cut["train_accuracy"] == one["train_accuracy"]


def test_the_seed_decides_and_nothing_else(whole: Path, tmp_path: Path) -> None:
    fit(TINY, tmp_path / "again")
    assert content(tmp_path / "again") == content(whole)
    fit(replace(TINY, seed=1), tmp_path / "other")
    assert content(tmp_path / "other") != content(whole)


def test_a_folder_is_never_used_twice(whole: Path) -> None:
    before = content(whole)
    with pytest.raises(ConfigError, match=r"out .* holds a run already"):
        fit(HEAD, whole)
    assert content(whole) == before


def test_without_a_folder_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(fit(HEAD)) == 2
    assert not list(tmp_path.iterdir())


def test_a_model_of_ones_own_is_trained_in_place() -> None:
    model = SimpleModel(num_layers=0, rng=7)
    before = model.state_dict()
    fit(HEAD, model=model)
    after = model.state_dict()
    assert all(not np.array_equal(before[name], after[name]) for name in before)


# --------------------------------------------------------------------------- numbers that go wrong


class Failing(nn.Module):
    """Class scores that become NaN at one training step, or in evaluation (step 0)."""

    def __init__(self, step: int) -> None:
        self.inner = SimpleModel(num_layers=0, rng=0)
        self.step, self.count = step, 0

    def forward(self, x: Any) -> Any:
        self.count += self.training
        fails = self.count == self.step if self.training else self.step == 0
        return F.multiply(self.inner.logits(x), float("nan") if fails else 1.0)


@pytest.mark.parametrize("deferred", [False, True])
@pytest.mark.parametrize("step", [1, 2, 3, 5])
def test_a_loss_that_is_not_finite_names_its_step(
    tmp_path: Path, step: int, deferred: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if deferred:  # as on a GPU, where losses are read every so many steps
        monkeypatch.setattr(loop, "is_cupy", lambda _: True)
        monkeypatch.setattr(loop, "_READ_EVERY", 2)
    epoch = (step - 1) // STEPS + 1
    with pytest.raises(NonFiniteLoss, match=f"loss is nan in epoch {epoch}, step {step} "):
        fit(HEAD, tmp_path, model=Failing(step))
    arrays, info = checkpoint.load(tmp_path / "last.safetensors")
    assert info["state"]["epoch"] == epoch - 1
    assert all(np.isfinite(array).all() for array in arrays.values())


def test_losses_read_later_are_the_same_losses(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "is_cupy", lambda _: True)
    monkeypatch.setattr(loop, "_READ_EVERY", 2)
    with pytest.raises(Interrupted):
        fit(TINY, tmp_path, progress=at(2, 1, interrupt))
    fit(TINY, tmp_path, resume=True)
    assert content(tmp_path) == content(whole)


def test_a_test_loss_that_is_not_finite_is_no_number_but_no_end(tmp_path: Path) -> None:
    history = fit(HEAD, tmp_path, model=Failing(0))
    assert [row["test_loss"] for row in history] == [None, None]
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == history


def test_the_first_parameter_that_is_not_finite_is_named() -> None:
    model = build(TINY)
    names = [name for name, _ in model.named_parameters()]

    def poison() -> None:
        for name, parameter in model.named_parameters():
            if name in names[3::4]:
                parameter.data = parameter.data * np.nan

    with pytest.raises(NonFiniteLoss, match=f"step 3 .*parameter {names[3]}\\)"):
        fit(TINY, model=model, progress=at(1, 2, poison))


def test_a_rate_that_is_far_too_high() -> None:
    with pytest.raises(NonFiniteLoss, match=r"step 2 .*: train with a lower lr than 1e\+30"):
        fit(replace(HEAD, lr=1e30, schedule="constant", warmup=0))


# ------------------------------------------------------------------------------ learning, settings


def test_it_overfits_64_images() -> None:
    config = Config(layers=1, epochs=25, batch_size=16, limit=64, lr=0.02, device="cpu")
    model = build(config)
    history = fit(config, model=model)
    assert history[-1]["train_accuracy"] >= 0.95
    style = {"mean": data.SHAPES10_MEAN, "std": data.SHAPES10_STD}
    assert evaluate(model, *load_data(config, train=True), **style).accuracy >= 0.95
    assert history[0]["train_accuracy"] < 0.5


def test_augmentation_follows_the_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "cifar10", lambda root, train: data.shapes10(50, 0, train))
    for dataset, same, other in (
        ("cifar10", "crop_flip", "none"),
        ("shapes10", "none", "crop_flip"),
    ):
        auto, like, unlike = (
            timeless(fit(replace(HEAD, dataset=dataset, augment=augment)))
            for augment in ("auto", same, other)
        )
        assert auto == like != unlike


def test_rates_follow_the_schedule() -> None:
    for schedule, first in (("constant", 1.0), ("cosine", 1.0), ("one_cycle", 0.04)):
        config = replace(HEAD, schedule=schedule, warmup=0, epochs=1, batch_size=50)
        assert fit(config)[0]["lr"] == pytest.approx(config.lr * first)
    # 6 steps, of which 2 rise: 1/2, 1, then half a cosine over 4
    rates = [row["lr"] / HEAD.lr for row in fit(HEAD)]
    np.testing.assert_allclose(rates, [1, 0.5 * (1 + np.cos(np.pi * 3 / 4))])


@pytest.mark.gpu
def test_a_run_on_the_gpu_goes_on_on_the_cpu(tmp_path: Path) -> None:
    config = replace(TINY, layers=0, device="cuda")
    with pytest.raises(Interrupted):
        fit(config, tmp_path, progress=at(2, 1, interrupt))
    history = fit(replace(config, device="cpu"), tmp_path, resume=True)
    assert [row["step"] for row in history] == [STEPS, 2 * STEPS]
    with pytest.raises(ConfigError, match="device must be below"):
        pick_device("cuda:99")
