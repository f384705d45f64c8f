"""Training: exact resume, interruption, numbers that go wrong, evaluation, settings."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from invocupy import checkpoint, data, nn
from invocupy import functional as F  # noqa: N812
from invocupy.checkpoint import CheckpointError
from invocupy.models import SimpleModel
from invocupy.train import (
    Config,
    ConfigError,
    Evaluation,
    Interrupted,
    NonFiniteLoss,
    Progress,
    build,
    evaluate,
    fit,
    load_data,
    load_run,
    loop,
    pick_device,
    predict,
)

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


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of TINY that was never stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    fit(TINY, folder)
    return folder


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


def test_best_is_the_first_epoch_of_the_highest_test_accuracy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.2, 0.5, 0.5, 0.3])
    nothing = np.zeros((10, 10), np.int64)
    monkeypatch.setattr(
        loop, "evaluate", lambda *_, **__: Evaluation(1.0, next(scores), nothing)
    )  # fmt: skip
    saved: list[dict[str, Any]] = []

    def progress(now: Progress) -> None:
        if now.row:
            saved.append(checkpoint.load(tmp_path / "last.safetensors")[0])

    fit(replace(HEAD, epochs=4), tmp_path, progress=progress)
    arrays, info = checkpoint.load(tmp_path / "best.safetensors")
    assert info["best_accuracy"] == 0.5
    assert info["state"]["epoch"] == 2
    for name, array in saved[1].items():
        np.testing.assert_array_equal(arrays[name], array)
    _, model, history = load_run(tmp_path)
    assert len(history) == 2
    assert not model.training
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(saved[1][f"model.{name}"], array)


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


# ------------------------------------------------------------------------------------ exact resume


@pytest.mark.parametrize(("epoch", "step"), [(1, 1), (1, STEPS), (1, 0), (2, 2), (2, STEPS)])
@pytest.mark.parametrize("stop", [interrupt, crash])
def test_resume_is_exact(
    whole: Path, tmp_path: Path, epoch: int, step: int, stop: Callable[[], None]
) -> None:
    with pytest.raises((Interrupted, RuntimeError)) as caught:
        fit(TINY, tmp_path, progress=at(epoch, step, stop))
    if stop is interrupt:  # a stop between epochs is seen after the next step
        done = (epoch - 1) * STEPS + step if step else epoch * STEPS + 1
        assert f"after step {done}" in str(caught.value)
        state = checkpoint.load(tmp_path / "last.safetensors")[1]["state"]
        assert state["epoch"] * STEPS + state["step"] == done
    fit(TINY, tmp_path, resume=True)
    assert content(tmp_path) == content(whole)
    assert content(tmp_path, "best") == content(whole, "best")


def test_resume_is_exact_when_stopped_after_every_step(whole: Path, tmp_path: Path) -> None:
    def progress(now: Progress) -> None:
        if now.row is None:
            interrupt()

    stops = 0
    while True:
        try:
            fit(TINY, tmp_path, resume=stops > 0, progress=progress)
            break
        except Interrupted:
            stops += 1
    assert stops == 2 * STEPS
    assert content(tmp_path) == content(whole)


@pytest.mark.parametrize(
    "lost",
    ["velocity.", "running_mean", "weight", "average.", "seed", "step", "loss", "correct"],
)
def test_resume_needs_each_part_of_the_checkpoint(whole: Path, tmp_path: Path, lost: str) -> None:
    """The test of the tests above: whatever a checkpoint lacked, they would see it."""
    with pytest.raises(Interrupted):
        fit(TINY, tmp_path, progress=at(1, 2, interrupt))
    path = tmp_path / "last.safetensors"
    arrays, info = checkpoint.load(path)
    config = TINY
    if lost == "velocity.":
        arrays = {name: array for name, array in arrays.items() if lost not in name}
    elif lost == "seed":
        config = replace(TINY, seed=1)
        info["config"]["seed"] = 1
    elif lost in info["state"]:
        info["state"][lost] = 0
    else:
        name = next(name for name in arrays if lost in name)
        arrays[name] = np.zeros_like(arrays[name])
    checkpoint.save(path, arrays, info)
    fit(config, tmp_path, resume=True)
    assert content(tmp_path) != content(whole)


def test_resume_removes_what_a_killed_writer_left(tmp_path: Path) -> None:
    fit(HEAD, tmp_path)
    stale = tmp_path / ".last.safetensors.0123456789abcdef.tmp"
    stale.touch()
    fit(HEAD, tmp_path, resume=True)
    assert not stale.exists()


def test_a_finished_run_goes_on_for_more_epochs_only(tmp_path: Path) -> None:
    first = fit(HEAD, tmp_path)
    assert fit(HEAD, tmp_path, resume=True) == first
    more = fit(replace(HEAD, epochs=3), tmp_path, resume=True)
    assert more[:2] == first
    assert [row["epoch"] for row in more] == [1, 2, 3]
    assert Config.from_json((tmp_path / "config.json").read_text()).epochs == 3
    with pytest.raises(ConfigError, match="epochs must be at least 3"):
        fit(HEAD, tmp_path, resume=True)


def test_resume_with_other_settings_is_refused(whole: Path) -> None:
    with pytest.raises(ConfigError, match=r"layers is 1 there, not 0; lr is 0.01 there, not 0.1"):
        fit(replace(HEAD, lr=0.1), whole, resume=True)
    with pytest.raises(ConfigError, match="out must be given"):
        fit(TINY, resume=True)


def test_resume_from_what_is_no_run(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"last\.safetensors cannot be read"):
        fit(TINY, tmp_path, resume=True)
    assert not list(tmp_path.iterdir())
    arrays, info = checkpoint.load(whole / "last.safetensors")
    path = tmp_path / "last.safetensors"
    for bad in (
        {},
        {**info, "config": {**info["config"], "layers": 2}},
        {**info, "config": {**info["config"], "new": 1}},
        {**info, "state": {"epoch": 1, "new": 2}},
    ):
        checkpoint.save(path, arrays, bad)
        with pytest.raises(CheckpointError, match="not a run of this version"):
            fit(TINY, tmp_path, resume=True)
    (tmp_path / "last.safetensors").write_bytes(
        (whole / "last.safetensors").read_bytes()[:-1]
    )  # fmt: skip
    with pytest.raises(CheckpointError, match="not a whole"):
        fit(TINY, tmp_path, resume=True)


# ------------------------------------------------------------------------------------ interruption


def test_a_second_interrupt_ends_at_once(tmp_path: Path) -> None:
    def twice() -> None:
        interrupt()
        interrupt()

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as caught:
        fit(HEAD, tmp_path, progress=at(1, 2, twice))
    assert not isinstance(caught.value, Interrupted)
    assert checkpoint.load(tmp_path / "last.safetensors")[1]["state"]["step"] == 0
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_in_the_evaluation_loses_nothing(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = loop.evaluate

    def stopped(*arguments: Any, **options: Any) -> Any:
        interrupt()
        return original(*arguments, **options)

    monkeypatch.setattr(loop, "evaluate", stopped)
    with pytest.raises(Interrupted, match="after step 3"):
        fit(TINY, tmp_path)
    monkeypatch.undo()
    fit(TINY, tmp_path, resume=True)
    assert content(tmp_path) == content(whole)


def test_training_in_another_thread_leaves_signals_alone(tmp_path: Path) -> None:
    histories: list[Any] = []
    thread = threading.Thread(target=lambda: histories.append(fit(HEAD)))
    thread.start()
    thread.join()
    assert timeless(histories[0]) == timeless(fit(HEAD))


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


# -------------------------------------------------------------------------------------- evaluation


class Reader(nn.Module):
    """Reads the answer off the first pixel, with the certainty of the second one."""

    def __init__(self) -> None:
        self.weight = nn.Parameter(np.ones((), np.float32))

    def logits(self, x: Any) -> Any:
        answer, certainty = x[:, 0, 0, 0].astype(int), x[:, 0, 0, 1]
        return F.multiply(self.weight, np.eye(10, dtype=np.float32)[answer] * certainty[:, None])


@pytest.mark.parametrize("batch_size", [1, 7, 44, 45, 100])
def test_evaluation_is_exact_whatever_the_batches(batch_size: int) -> None:
    rng = np.random.default_rng(0)
    labels, answers = rng.integers(0, 10, 45), rng.integers(0, 10, 45)
    answers[:20] = labels[:20]
    images = np.zeros((45, 1, 1, 2), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = answers, np.arange(1, 46)
    result = evaluate(Reader(), images, labels, mean=(0.0,), std=(1 / 255,), batch_size=batch_size)
    confusion = np.zeros((10, 10), int)
    np.add.at(confusion, (labels, answers), 1)
    np.testing.assert_array_equal(result.confusion, confusion)
    assert result.confusion.sum() == 45
    assert result.accuracy == np.mean(labels == answers)
    # log(sum of exp) - logit of the label; float32 sums of 10 numbers up to 45 + 9
    certainty = np.arange(1.0, 46)
    losses = np.log(np.exp(certainty) + 9) - certainty * (labels == answers)
    assert result.loss == pytest.approx(losses.mean(), abs=12 * 2**-24 * 45)


def test_evaluation_of_a_model_without_parameters() -> None:
    """It answers with the brightest colour, which the labels are."""
    images = np.zeros((4, 3, 2, 2), np.uint8)
    labels = np.array([2, 0, 1, 1])
    images[np.arange(4), labels] = 9
    scale = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    assert evaluate(nn.GlobalAvgPool2d(), images, labels, **scale).accuracy == 1
    np.testing.assert_array_equal(
        predict(nn.GlobalAvgPool2d(), images, **scale).argmax(axis=1), labels
    )


def test_evaluation_changes_nothing() -> None:
    model = SimpleModel(num_layers=1, rng=0)
    before, style = model.state_dict(), {"mean": data.SHAPES10_MEAN, "std": data.SHAPES10_STD}
    for mode in (True, False):
        model.train(mode)
        evaluate(model, *data.shapes10(20, 0), **style)
        assert model.blocks[0].training is mode
    after = model.state_dict()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is None for parameter in model.parameters())
    with pytest.raises(ValueError, match="at least one image"):
        evaluate(model, *data.shapes10(0, 0), **style)


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


def test_limit_and_sizes_of_the_data() -> None:
    for limit, train, test in ((7, 7, 7), (None, 10_000, 1000), (1200, 1200, 1000)):
        config = Config(limit=limit)
        assert len(load_data(config, train=True)[0]) == train
        assert len(load_data(config, train=False)[0]) == test


BAD = [
    ({"dataset": "mnist"}, "dataset must be one of shapes10, cifar10, got 'mnist'"),
    ({"model": "vgg"}, r"model must be one of simple.*, got 'vgg'"),
    ({"schedule": "linear"}, "schedule must be one of constant, step, cosine, one_cycle"),
    ({"augment": "mixup"}, "augment must be one of auto, none, crop_flip"),
    ({"layers": -1}, "layers must be at least 0"),
    ({"layers": 1.5}, "layers must be of type int"),
    ({"layers": True}, "layers must be of type int"),
    ({"epochs": 0}, "epochs must be at least 1"),
    ({"batch_size": 0}, "batch_size must be at least 1"),
    ({"lr": 0.0}, "lr must be a finite number above 0"),
    ({"lr": float("nan")}, "lr must be a finite number above 0"),
    ({"lr": float("inf")}, "lr must be a finite number above 0"),
    ({"lr": "0.1"}, "lr must be of type float"),
    ({"momentum": 1.0}, r"momentum must be in \[0, 1\)"),
    ({"weight_decay": -1e-4}, "weight_decay must be a finite number from 0 on"),
    ({"momentum": 0.0}, "nesterov must be false without a momentum"),
    ({"nesterov": 1}, "nesterov must be of type bool"),
    ({"warmup": -1}, "warmup must be at least 0"),
    ({"accumulate": 0}, "accumulate must be at least 1"),
    ({"accumulate": 33}, "accumulate must be at least 1 and at most batch_size=32"),
    ({"clip_norm": 0.0}, "clip_norm must be above 0"),
    ({"milestones": [0.5, 2]}, r"milestones must be shares in \[0, 1\]"),
    ({"milestones": ["a"]}, r"milestones must be of type tuple\[float, ...\]"),
    ({"drop": 0.0}, r"drop must be in \(0, 1\]"),
    ({"ema": 1.0}, r"ema must be in \[0, 1\)"),
    ({"patience": 0}, "patience must be at least 1"),
    ({"cutout": -1}, "cutout must be at least 0"),
    ({"overfit": 0}, "overfit must be at least 1"),
    ({"overfit": 5, "limit": 5}, "overfit must be given without limit"),
    ({"label_smoothing": 1.5}, r"label_smoothing must be in \[0, 1\]"),
    ({"seed": -1}, "seed must be at least 0"),
    ({"limit": 0}, "limit must be at least 1"),
    ({"device": "gpu"}, "device must be auto, cpu, cuda or cuda:i"),
    ({"device": "cuda:x"}, "device must be auto, cpu, cuda or cuda:i"),
    ({"seed": 2**128}, r"seed must be at least 0 and below 2\*\*128"),
    ({"layers": 1_000_000}, "layers must be at least 0 and at most 10000, got 1000000"),
    ({"width": 2048}, "width must be at least 2 and at most 1024"),
    ({"limit": 10**7}, "limit must be at least 1 and at most 1000000"),
    ({"overfit": 10**7}, "overfit must be at least 1 and at most 1000000"),
    ({"cutout": 33}, "cutout must be at least 0 and at most 32"),
    ({"clip_norm": float("inf")}, "clip_norm must be above 0 and finite, got inf"),
    ({"data_dir": "x\0y"}, "data_dir must be the path of a folder: not empty, without NUL"),
    ({"data_dir": ""}, "data_dir must be the path of a folder"),
    ({"data_dir": 3}, r"data_dir must be of type str \| None"),
]


@pytest.mark.parametrize(("settings", "message"), BAD)
def test_settings_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config(**settings)


def test_settings_in_json() -> None:
    for config in (Config(), TINY, Config(dataset="cifar10", data_dir=Path("a", "b"), lr=1)):
        assert Config.from_json(config.to_json()) == config
        shown = {**asdict(config), "milestones": list(config.milestones)}
        assert json.loads(config.to_json()) == shown
    for text in ("", "[]", '{"rate": 1}', '{"lr": "x"}', "{"):
        with pytest.raises(ConfigError):
            Config.from_json(text)


def test_a_missing_gpu_is_a_wrong_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise RuntimeError("CUDA needs a GPU")

    monkeypatch.setattr("invocupy.train.setup.require_cupy", missing)
    assert pick_device("auto") == "cpu"
    for device in ("cuda", "cuda:1"):
        with pytest.raises(ConfigError, match=f"device is {device}, but CUDA needs"):
            pick_device(device)


@pytest.mark.gpu
def test_a_run_on_the_gpu_goes_on_on_the_cpu(tmp_path: Path) -> None:
    config = replace(TINY, device="cuda")
    with pytest.raises(Interrupted):
        fit(config, tmp_path, progress=at(2, 1, interrupt))
    history = fit(replace(config, device="cpu"), tmp_path, resume=True)
    assert [row["step"] for row in history] == [STEPS, 2 * STEPS]
    with pytest.raises(ConfigError, match="device must be below"):
        pick_device("cuda:99")
