"""The generated set shapes10: fixed for ever, balanced, and neither trivial nor impossible."""

from __future__ import annotations

import hashlib

import numpy as np
import pooch  # noqa: F401  (its logger keeps the standard error of its first import)
import pytest

from invocupy import data


@pytest.mark.parametrize(
    ("train", "digest"),
    [
        (True, "33dea92b65d83a6c15fa2b977631d1fd2ff8abd53703c86b8e8d8a2f1109c8db"),
        (False, "9a837796110699cbeddf40a201082a9364ba6c3bbb6f6f99aa41e6600f5aa1f2"),
    ],
)
def test_shapes10_is_fixed_for_ever(train: bool, digest: str) -> None:
    # "shapes10-v1". Another digest is another data set: give it a new name instead.
    images, labels = data.shapes10(100, seed=0, train=train)
    assert hashlib.sha256(images.tobytes() + labels.astype("<i8").tobytes()).hexdigest() == digest


def test_shapes10_is_balanced_and_grows_from_the_front() -> None:
    images, labels = data.shapes10(1234, seed=5)
    assert images.shape == (1234, 3, 32, 32)
    assert (images.dtype, labels.dtype) == (np.uint8, np.int64)
    assert (np.sort(labels[:1230].reshape(-1, 10), axis=1) == np.arange(10)).all()
    for n in (0, 1, 10, 499, 500, 501):
        fewer = data.shapes10(n, seed=5)
        np.testing.assert_array_equal(fewer[0], images[:n])
        np.testing.assert_array_equal(fewer[1], labels[:n])


def test_shapes10_streams_do_not_meet() -> None:
    sets = [data.shapes10(600, seed, train)[0] for seed in (0, 1) for train in (True, False)]
    together = np.concatenate(sets).reshape(4 * 600, -1)
    assert len({row.tobytes() for row in together}) == 4 * 600


def test_shapes10_normalisation() -> None:
    scaled = data.shapes10(4000, seed=3)[0].transpose(1, 0, 2, 3).reshape(3, -1) / np.float64(255)
    # 4,000 independent images with a deviation of at most 0.294 between their means
    np.testing.assert_allclose(scaled.mean(1), data.SHAPES10_MEAN, atol=4 * 0.294 / 4000**0.5)
    np.testing.assert_allclose(scaled.std(1), data.SHAPES10_STD, atol=4 * 0.294 / 4000**0.5)


def test_shapes10_needs_more_than_colour_or_a_linear_model() -> None:
    train, train_labels = data.shapes10(3000, seed=0)
    test, test_labels = data.shapes10(1000, seed=0, train=False)
    means, wanted = train.mean((2, 3)), test.mean((2, 3))
    nearest = ((wanted[:, None] - means) ** 2).sum(2).argmin(1)
    assert (train_labels[nearest] == test_labels).mean() < 0.2
    # ridge regression on the pixels, in its dual form; its weight chosen on the test set, even
    x = train.reshape(3000, -1).astype(np.float32) / 255 - 0.5
    gram, targets = x @ x.T, np.eye(10, dtype=np.float32)[train_labels] - 0.1
    cross = (test.reshape(1000, -1).astype(np.float32) / 255 - 0.5) @ x.T
    for weight in (10, 1000):
        scores = cross @ np.linalg.solve(gram + weight * np.eye(3000, dtype=np.float32), targets)
        assert (scores.argmax(1) == test_labels).mean() < 0.4


def test_shapes10_refuses_bad_arguments() -> None:
    for n, seed, name in ((-1, 0, "n"), (1.5, 0, "n"), (1, -1, "seed"), (1, True, "seed")):
        with pytest.raises(ValueError, match=f"{name} must be an integer >= 0"):
            data.shapes10(n, seed)  # type: ignore[arg-type]


def test_names() -> None:
    assert len(set(data.CIFAR10_CLASSES)) == len(set(data.SHAPES10_CLASSES)) == 10
