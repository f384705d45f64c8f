"""Evaluation: exact whatever the batches are, and nothing changes by it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from invocupy import data, nn
from invocupy import functional as F  # noqa: N812
from invocupy.models import SimpleModel
from invocupy.train import (
    evaluate,
    predict,
)


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


@pytest.mark.parametrize("name", ["images", "labels"])
@pytest.mark.parametrize("wrong", [None, [[[[1]]]], np.ma.array(np.ones((1, 3, 2, 2), np.uint8))])
def test_what_is_no_plain_array_is_named(name: str, wrong: Any) -> None:
    given = {"images": np.ones((1, 3, 2, 2), np.uint8), "labels": np.ones(1, int), name: wrong}
    style = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    with pytest.raises(TypeError, match=f"^{name} must be a plain array of NumPy or CuPy, got "):
        evaluate(nn.GlobalAvgPool2d(), **given, **style)
    if name == "images":
        with pytest.raises(TypeError, match=r"^images must be a plain array"):
            predict(nn.GlobalAvgPool2d(), wrong, **style)
