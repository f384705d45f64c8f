"""What a run can be asked for: rates, clipping, parts of batches, hooks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import PLAIN

from invocupy import data, nn, optim
from invocupy.models import SimpleModel
from invocupy.train import (
    Config,
    augmentation,
    fit,
    load_data,
    load_run,
    rate,
)
from invocupy.train.average import Average

# ------------------------------------------------------------------------- schedules and the update


@pytest.mark.parametrize(
    ("settings", "factors"),
    [
        ({"schedule": "constant"}, [1] * 8),
        ({"schedule": "constant", "warmup": 4}, [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
        ({"schedule": "step"}, [1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]),
        (
            {"schedule": "step", "milestones": (0.25,), "drop": 0.5, "warmup": 4},
            [0.25, 0.5, 0.75, 1, 1, 0.5, 0.5, 0.5],
        ),
        ({"schedule": "step", "milestones": (), "drop": 0.5}, [1] * 8),
        ({"schedule": "cosine"}, [(1 + np.cos(np.pi * i / 8)) / 2 for i in range(8)]),
        (
            {"schedule": "cosine", "warmup": 2},
            [0.5, 1, *((1 + np.cos(np.pi * i / 6)) / 2 for i in range(6))],
        ),
        ({"schedule": "one_cycle", "warmup": 2}, [0.02, 0.04, 0.04]),
        ({"schedule": "one_cycle", "warmup": 100}, [0.04 * i / 100 for i in range(1, 9)]),
    ],
)
def test_rates(settings: dict[str, Any], factors: list[float]) -> None:
    config = Config(lr=0.5, **settings)
    found = [rate(config, step, 8) for step in range(len(factors))]
    np.testing.assert_allclose(found, 0.5 * np.array(factors), rtol=1e-12)


def test_gradients_are_clipped_before_the_update() -> None:
    norms: list[float] = []

    def note(model: nn.Module, sgd: optim.SGD) -> None:
        norms.append(float(np.sqrt(sum((p.grad**2).sum() for p in sgd.params))))

    fit(replace(PLAIN, clip_norm=0.125), before_update=note)
    assert len(norms) == 6
    np.testing.assert_allclose(norms, 0.125, rtol=1e-5)
    norms.clear()
    fit(PLAIN, before_update=note)
    assert min(norms) > 0.125


# ------------------------------------------------------------------------ parts of a batch


def first_gradients(config: Config) -> dict[str, Any]:
    """The gradients of the first two steps, in float64, of a model without norms."""
    model = SimpleModel(num_layers=0, rng=0)
    for parameter in model.parameters():
        parameter.data = parameter.data.astype(np.float64)
    found: list[dict[str, Any]] = []
    fit(
        config, model=model,
        before_update=lambda m, _: found.append({n: p.grad for n, p in m.named_parameters()}),
    )  # fmt: skip
    return {f"{step} {name}": grad for step in (0, 2) for name, grad in found[step].items()}


@pytest.mark.parametrize("parts", [2, 3, 7, 20])
def test_parts_of_a_batch_make_the_gradient_of_the_whole(parts: int) -> None:
    """Also of the last batch, of 10 images, whose parts have other sizes."""
    config = replace(PLAIN, epochs=1, lr=1e-6, label_smoothing=0.1)
    whole, cut = first_gradients(config), first_gradients(replace(config, accumulate=parts))
    assert whole.keys() == cut.keys()
    for name, grad in whole.items():
        # sums of 20 x 3072 products; the data, in float32, are the same
        bound = 20 * 3072 * 2**-52 * np.abs(grad).max()
        np.testing.assert_allclose(cut[name], grad, rtol=0, atol=bound, err_msg=name)


def test_parts_of_a_batch_report_the_same_losses() -> None:
    config = replace(PLAIN, epochs=1)
    (one,), (cut,) = fit(config), fit(replace(config, accumulate=3))
    assert cut["train_loss"] == pytest.approx(one["train_loss"], rel=1e-5)
    assert cut["train_accuracy"] == one["train_accuracy"]
    assert cut["step"] == one["step"]


def test_batch_norm_sees_the_parts() -> None:
    model = SimpleModel(num_layers=1, rng=0)
    fit(replace(PLAIN, layers=1, epochs=1, accumulate=2), model=model)
    tracked = {int(b) for n, b in model.named_buffers() if n.endswith("num_batches_tracked")}
    assert tracked == {2 + 2 + 1}  # the last batch of 10 images is one part of up to 10


# ------------------------------------------------------------------------ hooks and data


def test_after_epoch_adds_to_the_line_and_stops_the_run(tmp_path: Path) -> None:
    def note(model: nn.Module, row: dict[str, Any]) -> bool:
        row["largest_weight"] = float(max(np.abs(p.data).max() for p in model.parameters()))
        return row["epoch"] == 2

    history = fit(replace(PLAIN, epochs=5), tmp_path, after_epoch=note)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == history
    assert [row["epoch"] for row in lines] == [1, 2]
    assert all(row["largest_weight"] > 0 for row in lines)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda row: row.update(model=object()), "^after_epoch must add numbers and .*object"),
        (lambda row: row.clear(), "^after_epoch must keep epoch .* finite number, got None: add"),
        (lambda row: row.update(lr="low"), "^after_epoch must keep lr of .* got 'low'"),
        (lambda row: row.update(test_accuracy=np.nan), "^after_epoch must keep test_accuracy"),
    ],
)
def test_after_epoch_keeps_the_line(change: Any, words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        fit(replace(PLAIN, epochs=1), after_epoch=lambda model, row: change(row))


def test_overfit_trains_and_tests_on_the_same_images() -> None:
    config = Config(dataset="shapes10", overfit=16, layers=0, epochs=40, batch_size=8, device="cpu")
    for one, other in zip(load_data(config, True), load_data(config, False), strict=True):
        assert len(one) == 16
        np.testing.assert_array_equal(one, other)
    assert fit(config)[-1]["test_accuracy"] == 1.0


def test_augmentation() -> None:
    def names(**settings: Any) -> list[str]:
        functions = augmentation(Config(**settings))
        return [getattr(f, "func", f).__name__ for f in functions]  # type: ignore[attr-defined]

    crop_flip = ["random_crop", "random_flip"]
    assert names(dataset="cifar10", cutout=16) == [*crop_flip, "cutout"]
    assert names(cutout=4) == ["cutout"]
    assert names(dataset="cifar10", overfit=3) == []
    assert names(augment="crop_flip", overfit=3) == crop_flip
    (cover,) = augmentation(Config(cutout=6))
    covered = cover(np.zeros((1, 3, 32, 32), np.uint8), np.full((1, 8), 0.5))
    assert (covered != 0).sum() == 3 * 6 * 6


def test_cutout_changes_the_training_data_only(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    original = data.Batches.take

    def noted(batches: data.Batches, sheet: Any) -> Any:
        x, labels = original(batches, sheet)
        seen.append(float((x == x.reshape(-1)[0]).mean()) if batches.augment else -1.0)
        return x, labels

    monkeypatch.setattr(data.Batches, "take", noted)
    fit(replace(PLAIN, epochs=1, cutout=8))
    assert len(seen) == 3 + 1
    assert seen.count(-1.0) == 1


# ------------------------------------------------------------------------ settings files


@pytest.mark.gpu
def test_all_options_on_the_gpu(tmp_path: Path) -> None:
    config = replace(PLAIN, ema=0.9, clip_norm=1.0, accumulate=2, cutout=8, decay_biases=False)
    here, there = fit(config), fit(replace(config, device="cuda"), tmp_path)
    for one, other in zip(here, there, strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-4)
        assert one["test_loss"] == pytest.approx(other["test_loss"], rel=1e-4)
    assert len(load_run(tmp_path, "last")[2]) == 2


# ----------------------------------------------------------------------- nothing waits for a device


class Remote(np.ndarray[Any, Any]):
    """An array that refuses to be read, as one on a GPU should be within a step."""

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        return np.asarray(array).view(Remote)  # never a NumPy scalar

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        result = super().__array_function__(function, types, args, options)
        return result.view(Remote) if isinstance(result, np.ndarray) else result

    def refuse(self, *_: Any) -> Any:
        raise AssertionError("read on the host")

    __bool__ = __float__ = __int__ = __index__ = item = tolist = refuse  # type: ignore[assignment]


def remote(array: Any) -> Any:
    return np.asarray(array, np.float32).view(Remote)


def test_clipping_and_averaging_read_nothing() -> None:
    with pytest.raises(AssertionError, match="read on the host"):
        float(remote([3.0, 4.0]).sum())
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm2d(2))
    for module in model.modules():
        for holder in vars(module).values():
            if isinstance(holder, (nn.Parameter, nn.Buffer)):
                holder.data = remote(holder.data)
    for parameter in model.parameters():
        parameter.grad = remote(np.full(parameter.shape, 2.0))
    norm = optim.clip_by_norm(model.parameters(), 1.0)
    assert isinstance(norm, Remote)
    wanted = 2 * np.sqrt(6 + 2 + 2 + 2)
    np.testing.assert_allclose(norm.view(np.ndarray), wanted, rtol=1e-7)
    first = next(model.parameters()).grad
    np.testing.assert_allclose(first.view(np.ndarray), 2 / wanted, rtol=1e-5)
    average = Average(model, 0.9)
    average.update(model, 1)
    assert all(isinstance(array, Remote) for array in average.arrays.values())


def test_testing_is_told() -> None:
    seen: list[tuple[int, int]] = []
    fit(replace(PLAIN, limit=600, epochs=1), testing=lambda *done: seen.append(done))
    assert seen == [(1, 3), (2, 3), (3, 3)]
