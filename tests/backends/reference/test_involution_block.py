"""The block of the reference: training against evaluation, and gradients against differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from invocupy.backends.reference import involution_block as block
from invocupy.backends.signatures import Kept
from invocupy.geometry import Geometry

CHANNELS, HIDDEN, FEATURES, GROUPS, TAPS = 2, 6, 3, 2, 9
SHAPE, EPS = (2, CHANNELS, 4, 5), (1e-5, 1e-3, 0.1)
WIDTHS = (HIDDEN, CHANNELS), (FEATURES, HIDDEN), (GROUPS * TAPS, FEATURES), (CHANNELS, HIDDEN)
G = Geometry.of((2, GROUPS * CHANNELS, 4, 5), (2, GROUPS, 3, 3, 4, 5))


def operands() -> list[np.ndarray]:
    """x and the parameters."""
    shapes = [
        shape for (out, inside), vectors in zip(WIDTHS, (3, 3, 1, 3), strict=True)
        for shape in ((out, inside, 1, 1), *[(out,)] * vectors)
    ]  # fmt: skip
    return [*map(np.random.default_rng(5).standard_normal, (SHAPE, *shapes))]


def trained(values: list[np.ndarray], relu: bool) -> tuple[np.ndarray, Kept]:
    x, *parameters = values
    n, _, height, width = x.shape
    sizes = FEATURES, GROUPS * CHANNELS, CHANNELS
    arrays = [np.full((n, channels, height, width), np.nan) for channels in sizes]
    stats = np.full(Kept.statistics(CHANNELS, HIDDEN, FEATURES)[-1].stop, np.nan)
    out, kept = np.full_like(x, np.nan), Kept(*arrays, stats)
    block.train(x, parameters, EPS, relu, G, out, kept)
    return out, kept


@pytest.mark.parametrize("relu", [True, False])
def test_training_is_evaluation_with_the_moments_of_the_batch(relu: bool) -> None:
    x, *parameters = operands()
    out, kept = trained([x, *parameters], relu)
    center, covariance, *moments = (
        kept.stats[part] for part in Kept.statistics(CHANNELS, HIDDEN, FEATURES)
    )
    flat = x.swapaxes(0, 1).reshape(CHANNELS, -1)
    np.testing.assert_allclose(center, flat.mean(axis=1), rtol=1e-13)
    np.testing.assert_allclose(covariance, np.cov(flat, bias=True).ravel(), rtol=1e-13)
    given = np.full_like(x, np.nan)
    block.forward(x, parameters, moments, EPS, relu, G, given)
    np.testing.assert_allclose(given, out, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("relu", [True, False])
def test_gradients_are_differences(relu: bool) -> None:
    """Along a direction of each operand. With steps of 1e-6 a difference is right to about 1e-9:
    1e-16 / 1e-6 of the sum of 80 values by rounding, the square of the step by the curvature."""
    values, rng = operands(), np.random.default_rng(6)
    grad, (_, kept) = rng.standard_normal(SHAPE), trained(values, relu)
    grads = [np.full_like(value, np.nan) for value in values]
    x, *parameters = values
    block.gradients(grad, x, parameters, kept, EPS, relu, G, grads[0], grads[1:])

    def moved(number: int, step: Any) -> float:
        changed = [v + step if i == number else v for i, v in enumerate(values)]
        return float((grad * trained(changed, relu)[0]).sum())

    for number, value in enumerate(values):
        step = 1e-6 * rng.standard_normal(value.shape)
        difference = (moved(number, step) - moved(number, -step)) / 2e-6
        found = float((grads[number] * step).sum()) / 1e-6
        assert found == pytest.approx(difference, rel=1e-6, abs=1e-7), number
