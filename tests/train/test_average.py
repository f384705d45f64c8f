"""Averaged weights: the formula, and that they are what is used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_runs import PLAIN

from invocupy import checkpoint, nn
from invocupy.train import (
    DATASETS,
    build,
    evaluate,
    fit,
    load_data,
    load_run,
)
from invocupy.train.average import Average


def test_averages_follow_the_formula_and_are_what_is_used(tmp_path: Path) -> None:
    config = replace(PLAIN, layers=1, ema=0.5, lr=0.05)
    model = build(config)
    wanted = {name: array.astype(np.float64) for name, array in model.state_dict().items()}
    count = 0

    def take_in() -> None:
        nonlocal count
        count += 1
        keep = min(0.5, (1 + count) / (10 + count))
        for name, array in model.state_dict().items():
            wanted[name] = wanted[name] * keep + array * (1 - keep)
            if "num_batches" in name:
                wanted[name] = array

    history = fit(
        config, tmp_path, model=model, progress=lambda now: take_in() if now.row is None else None
    )
    assert count == 6
    _, averaged, _ = load_run(tmp_path, "last")
    for name, array in averaged.state_dict().items():
        np.testing.assert_allclose(array, wanted[name], rtol=1e-5, atol=1e-7, err_msg=name)
        np.testing.assert_array_equal(array, model.state_dict()[name])  # what fit leaves
    dataset = DATASETS[config.dataset]
    test = load_data(config, train=False)
    result = evaluate(averaged, *test, mean=dataset.mean, std=dataset.std)
    assert result.loss == history[-1]["test_loss"]
    arrays, _ = checkpoint.load(tmp_path / "last.safetensors")
    apart = [
        name for name in wanted
        if not np.array_equal(arrays[f"model.{name}"], arrays[f"average.{name}"])
    ]  # fmt: skip
    assert len(apart) > len(wanted) / 2


def test_averaging_does_not_change_the_training(tmp_path: Path) -> None:
    fit(PLAIN, tmp_path / "plain")
    fit(replace(PLAIN, ema=0.9), tmp_path / "averaged")
    plain, averaged = (
        checkpoint.load(tmp_path / name / "last.safetensors")[0] for name in ("plain", "averaged")
    )
    for name, array in plain.items():
        np.testing.assert_array_equal(averaged[name], array)


def test_an_array_of_another_shape_is_refused() -> None:
    model = nn.Linear(2, 3)
    average = Average(model, 0.5)
    model.bias.data = np.zeros(1, np.float32)  # would be broadcast, or read past its end
    with pytest.raises(ValueError, match=r"^bias must keep .* average, \(3,\), got \(1,\)$"):
        average.update(model, 1)


@pytest.mark.gpu
@pytest.mark.parametrize(("before", "after"), [("f4", "f8"), ("f8", "f4"), ("f4", "f2")])
def test_an_array_of_another_dtype_is_converted(before: str, after: str) -> None:
    model = nn.Linear(2, 3).to("cuda")
    model.bias.data = model.bias.data.astype(before)
    average = Average(model, 0.5)
    model.bias.data = (average.arrays["bias"] + 1).astype(after)
    average.update(model, 100)
    found, wanted = average.arrays["bias"], (model.bias.data - 0.5).astype(before)
    assert found.dtype == before
    np.testing.assert_allclose(found.get(), wanted.get(), atol=2**-11)
