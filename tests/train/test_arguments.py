"""What fit, evaluate and predict are given and what models return, as functions of Python."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from invocupy import Tensor, checkpoint, nn
from invocupy.data import SHAPES10_MEAN, SHAPES10_STD, shapes10
from invocupy.train import Config, evaluate, fit, predict
from invocupy.train.average import Average

TINY = Config(layers=1, epochs=3, limit=20, batch_size=10, device="cpu")
IMAGES, LABELS = shapes10(20, 0)
NORM: dict[str, Any] = {"mean": SHAPES10_MEAN, "std": SHAPES10_STD}


class Answers(nn.Module):
    """A model that returns what a function makes of its images."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def forward(self, x: Any) -> Any:
        return self.function(x.data if isinstance(x, Tensor) else x)


@pytest.mark.parametrize(
    "answer",
    [
        lambda x: x.sum((1, 2, 3)),
        lambda x: x[:, :, :, 0],
        lambda x: x[:1, :, 0, 0],
        lambda x: x[:, :0, 0, 0],
        lambda x: np.repeat(x[:, :, 0, 0], 2, axis=0),
        lambda x: (x[:, :, 0, 0], x),
        lambda x: None,
    ],
)
def test_a_model_gives_a_row_of_scores_for_each_image(answer: Any) -> None:
    model = Answers(answer)
    with pytest.raises((TypeError, ValueError)) as caught:
        predict(model, IMAGES, **NORM)
    assert "\n" not in str(caught.value)
    with pytest.raises((TypeError, ValueError)):
        evaluate(model, IMAGES, LABELS, **NORM)


@pytest.mark.parametrize("name", ["mean", "std"])
@pytest.mark.parametrize(
    "wrong", [(np.nan,) * 3, (0.5, np.inf, 0.5), 0.5, (0.5,), "abc", None, (True,) * 3, [[0.5] * 3]]
)
def test_means_and_deviations_are_finite_numbers(name: str, wrong: Any) -> None:
    for call in (lambda **k: predict(MODEL, IMAGES, **k), lambda **k: fit_none(**k)):
        with pytest.raises(ValueError, match="mean and std must have 3 finite numbers"):
            call(**{**NORM, name: wrong})


MODEL = nn.Sequential(nn.GlobalAvgPool2d(), nn.Linear(3, 10))


def fit_none(**options: Any) -> Any:
    return evaluate(MODEL, IMAGES, LABELS, **options)


def test_means_of_numpy_are_those_of_python() -> None:
    numpys = {name: np.array(value) for name, value in NORM.items()}
    np.testing.assert_array_equal(predict(MODEL, IMAGES, **numpys), predict(MODEL, IMAGES, **NORM))


@pytest.mark.parametrize("name", ["progress", "before_update", "after_epoch", "testing"])
def test_hooks_that_are_no_functions_are_refused_before_anything_is_made(
    name: str, tmp_path: Path
) -> None:
    for wrong in (True, 5, "print"):
        with pytest.raises(TypeError, match=f"{name} must be a function"):
            fit(TINY, tmp_path / "run", **{name: wrong})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("answer", "epochs"),
    [(True, 1), (np.True_, 1), (False, 3), (np.False_, 3), (None, 3), (1, 3), ("stop", 3)],
)
def test_true_of_numpy_stops_a_run(answer: Any, epochs: int) -> None:
    assert len(fit(TINY, after_epoch=lambda model, row: answer)) == epochs


def test_an_empty_path_is_not_this_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match="a path cannot be empty"):
        fit(TINY, "")
    assert not list(tmp_path.iterdir())


def test_averages_of_half_types_take_small_steps() -> None:
    model = nn.Linear(1, 1, bias=False)
    model.weight.data = np.ones((1, 1), np.float16)
    average = Average(model, 0.999)
    model.weight.data = np.full((1, 1), 1.25, np.float16)
    for _ in range(1000):
        average.update(model, 10**6)
    average.put_into(model)
    assert model.weight.dtype == np.float16
    # 1.25 - 0.25 * 0.999**1000; a thousand roundings to float32, and one to float16
    expected = 1.25 - 0.25 * 0.999**1000
    np.testing.assert_allclose(model.weight.data, expected, rtol=2**-11 + 1000 * 2**-24)


class Half(nn.Module):
    """A model of one's own, with half-type weights and running statistics."""

    def __init__(self) -> None:
        self.norm, self.pool = nn.BatchNorm2d(3), nn.GlobalAvgPool2d()
        self.head = nn.Linear(3, 10, rng=np.random.default_rng(0))
        self.head.weight.data = self.head.weight.data.astype(np.float16)

    def forward(self, x: Any) -> Any:
        return self.head(self.pool(self.norm(x)))


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_model_of_ones_own_goes_on_where_it_stopped(ema: float, tmp_path: Path) -> None:
    config, out = replace(TINY, ema=ema), tmp_path / "run"
    whole, stopped, resumed = Half(), Half(), Half()
    history = fit(config, model=whole)
    fit(config, out, model=stopped, after_epoch=lambda model, row: True)
    again = fit(config, out, resume=True, model=resumed)
    assert [row["train_loss"] for row in again] == [row["train_loss"] for row in history]
    for name, array in whole.state_dict().items():
        np.testing.assert_array_equal(resumed.state_dict()[name], array)
    before = MODEL.state_dict()
    with pytest.raises(checkpoint.CheckpointError, match=r"not a run of this version and model"):
        fit(config, out, resume=True, model=MODEL)
    for name, array in MODEL.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
