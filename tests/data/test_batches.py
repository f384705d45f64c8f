"""Batches: each sample once, exact resume, augmentation."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pooch  # noqa: F401  (its logger keeps the standard error of its first import)
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from invocupy.data import Batches, cutout, random_crop, random_flip

HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}

# ---------------------------------------------------------------------------- batches


def numbered(n: int, channels: int = 3, side: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Random images, and the sample's number as label."""
    images = np.random.default_rng(n).integers(0, 256, (n, channels, side, side), np.uint8)
    return images, np.arange(n)


ALL = (functools.partial(random_crop, pad=2), random_flip, functools.partial(cutout, size=3))


@given(
    n=st.integers(0, 40),
    batch_size=st.integers(1, 45),
    seed=st.integers(0, 2**64),
    epoch=st.integers(0, 1000),
    shuffle=st.booleans(),
    cut=st.floats(0, 1),
)
@example(n=40, batch_size=10, seed=0, epoch=0, shuffle=True, cut=0.5)
@example(n=41, batch_size=10, seed=0, epoch=0, shuffle=True, cut=1.0)
def test_every_sample_once_and_exact_resume(
    n: int, batch_size: int, seed: int, epoch: int, shuffle: bool, cut: float
) -> None:
    images, labels = numbered(n)
    make = functools.partial(
        Batches, images, labels, batch_size, seed=seed, shuffle=shuffle, augment=ALL, **HALF
    )
    whole = list(make().epoch(epoch))
    assert len(whole) == len(make()) == -(-n // batch_size)
    assert all(len(x) == len(y) == batch_size for x, y in whole[:-1])
    seen = [label for _, y in whole for label in y]
    assert sorted(seen) == list(range(n))
    assert shuffle or seen == list(range(n))
    start = round(cut * len(whole))
    rest = list(make().epoch(epoch, start))
    assert len(rest) == len(whole) - start
    for (x, y), (again, labels_again) in zip(whole[start:], rest, strict=True):
        assert x.tobytes() == again.tobytes()
        np.testing.assert_array_equal(y, labels_again)


def test_a_sample_is_augmented_alike_in_any_batch() -> None:
    images, labels = numbered(50)
    by_sample = []
    for batch_size, shuffle in ((7, True), (50, True), (1, False)):
        batches = Batches(images, labels, batch_size, seed=3, shuffle=shuffle, augment=ALL, **HALF)
        pairs = list(batches.epoch(2))
        x = np.concatenate([x for x, _ in pairs])
        by_sample.append(x[np.argsort(np.concatenate([y for _, y in pairs]))])
    np.testing.assert_array_equal(by_sample[0], by_sample[1])
    np.testing.assert_array_equal(by_sample[0], by_sample[2])


def test_seed_and_epoch_matter() -> None:
    images, labels = numbered(100)
    orders = set()
    for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1)):
        batches = Batches(images, labels, 100, seed=seed, augment=ALL, **HALF)
        ((x, y),) = batches.epoch(epoch)
        orders.add((tuple(y), x.tobytes()))
    assert len(orders) == 4


def test_order_is_fixed_for_ever() -> None:
    # a checkpoint of an older version must resume with the samples that were left
    images, labels = numbered(100)
    batches = Batches(images, labels, 10, **HALF)
    assert next(batches.epoch(0))[1].tolist() == [77, 0, 70, 50, 8, 73, 88, 14, 1, 78]
    assert next(batches.epoch(1))[1].tolist() == [77, 98, 91, 29, 12, 57, 60, 17, 35, 94]


def test_batch_is_normalised_contiguous_and_its_own() -> None:
    images, labels = numbered(5)
    before = images.copy()
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    for source in (images, images[:, :, ::-1, ::-1], np.asfortranarray(images)):
        for augment in ((), ALL, (lambda x, random: x.transpose(0, 1, 3, 2),)):
            batches = Batches(source, labels, 5, shuffle=False, augment=augment, mean=mean, std=std)
            ((x, y),) = batches.epoch(0)
            assert x.dtype == np.float32
            assert x.shape == (5, 3, 8, 8)
            assert x.flags.c_contiguous
            assert y.dtype == labels.dtype
            if not augment:
                exact = (source / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
                # pixel * scale + shift: scale and product round 1 / std, then shift, then the sum
                reach = (2 + np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
                assert (np.abs(x - exact) <= 1.01 * 2.0**-24 * (reach + np.abs(exact))).all()
            x[...] = 0
            y[...] = 0
    np.testing.assert_array_equal(images, before)
    np.testing.assert_array_equal(labels, np.arange(5))


def test_drop_last() -> None:
    images, labels = numbered(10)
    for n, batch_size, steps in ((10, 4, 2), (10, 5, 2), (10, 10, 1)):
        batches = Batches(images[:n], labels[:n], batch_size, drop_last=True, **HALF)
        sizes = [len(y) for _, y in batches.epoch(0)]
        assert sizes == [batch_size] * steps
        assert len(batches) == steps
    with pytest.raises(ValueError, match="batch_size 11 with drop_last leaves nothing of 10"):
        Batches(images, labels, 11, drop_last=True, **HALF)


@pytest.mark.parametrize(
    ("error", "match", "change"),
    [
        (TypeError, "one library", {"images": [[1]]}),
        (TypeError, "one library", {"labels": [1]}),
        (TypeError, "plain arrays", {"labels": np.ma.arange(10)}),
        (TypeError, "images must be uint8", {"images": np.zeros((10, 3, 8, 8), np.float32)}),
        (TypeError, "labels integers", {"labels": np.zeros(10)}),
        (ValueError, r"\(N, C, H, W\)", {"images": np.zeros((10, 8, 8), np.uint8)}),
        (ValueError, r"labels \(N,\)", {"labels": np.arange(9)}),
        (ValueError, "3 finite numbers", {"mean": (0.5,)}),
        (ValueError, "std positive", {"std": (0.5, 0.0, 0.5)}),
        (ValueError, "batch_size must be an integer >= 1", {"batch_size": 0}),
        (ValueError, "seed must be an integer >= 0", {"seed": -1}),
        (ValueError, "batch_size must be an integer >= 1", {"batch_size": 2.5}),
    ],
)
def test_batches_refuse(error: type, match: str, change: dict[str, Any]) -> None:
    images, labels = numbered(10)
    with pytest.raises(error, match=match):
        Batches(**{"images": images, "labels": labels, "batch_size": 2, **HALF, **change})


@pytest.mark.parametrize(
    ("epoch", "start", "words"),
    [
        (-1, 0, "epoch must be an integer >= 0"),
        (0, -1, "start must be an integer >= 0"),
        (0, 6, "start must be at most 5"),
    ],
)
def test_epoch_refuses_at_once(epoch: int, start: int, words: str) -> None:
    batches = Batches(*numbered(10), 2, **HALF)
    assert list(batches.epoch(0, 5)) == []
    with pytest.raises(ValueError, match=words):
        batches.epoch(epoch, start)  # not only when the first batch is taken


# ---------------------------------------------------------------------------- augmentation


def naive_crop(image: np.ndarray, random: np.ndarray, pad: int) -> np.ndarray:
    out = np.zeros_like(image)
    _, height, width = image.shape
    down, right = int(random[0] * (2 * pad + 1)) - pad, int(random[1] * (2 * pad + 1)) - pad
    for i in range(height):
        for j in range(width):
            if 0 <= i + down < height and 0 <= j + right < width:
                out[:, i, j] = image[:, i + down, j + right]
    return out


def naive_flip(image: np.ndarray, random: np.ndarray) -> np.ndarray:
    out = image.copy()
    if random[2] < 0.5:
        for j in range(image.shape[2]):
            out[:, :, j] = image[:, :, image.shape[2] - 1 - j]
    return out


def naive_cutout(image: np.ndarray, random: np.ndarray, size: int) -> np.ndarray:
    out = image.copy()
    _, height, width = image.shape
    top, left = int(random[3] * height) - size // 2, int(random[4] * width) - size // 2
    for i in range(max(top, 0), min(top + size, height)):
        for j in range(max(left, 0), min(left + size, width)):
            out[:, i, j] = 127
    return out


@pytest.mark.parametrize(
    ("fast", "naive"),
    [
        (random_crop, functools.partial(naive_crop, pad=4)),
        (functools.partial(random_crop, pad=0), functools.partial(naive_crop, pad=0)),
        (functools.partial(random_crop, pad=7), functools.partial(naive_crop, pad=7)),
        (random_flip, naive_flip),
        (cutout, functools.partial(naive_cutout, size=8)),
        (functools.partial(cutout, size=1), functools.partial(naive_cutout, size=1)),
        (functools.partial(cutout, size=5), functools.partial(naive_cutout, size=5)),
    ],
)
def test_augmentation_against_a_loop(fast: Any, naive: Any) -> None:
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (60, 3, 6, 9), np.uint8)
    random = rng.random((60, 8))
    random[:2] = [[0.0] * 8, [1 - 2.0**-53] * 8]
    before = images.copy()
    out = fast(images, random)
    assert out.dtype == np.uint8
    np.testing.assert_array_equal(out, [naive(*pair) for pair in zip(images, random, strict=True)])
    np.testing.assert_array_equal(images, before)
    assert fast(images[:0], random[:0]).shape == (0, 3, 6, 9)


def test_augmentation_reaches_all_places_evenly() -> None:
    # 40,000 samples of one white pixel in the middle: 81 places and 2 sides of it
    images = np.zeros((40_000, 1, 9, 9), np.uint8)
    images[:, :, 4, 4] = 255
    batches = Batches(
        images,
        np.zeros(40_000, np.int64),
        40_000,
        augment=(random_crop,),
        mean=(0.0,),
        std=(1.0,),
    )
    ((x, _),) = batches.epoch(0)
    counts = x.sum((0, 1))
    expected = 40_000 / 81
    # five standard deviations of a binomial count
    assert (np.abs(counts - expected) < 5 * expected**0.5).all()


@pytest.mark.gpu
def test_batches_on_the_gpu_equal_those_on_the_cpu() -> None:
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    if not cupy.is_available():
        pytest.skip("CuPy finds no GPU")
    images, labels = numbered(50)
    make = functools.partial(Batches, batch_size=16, seed=1, augment=ALL, **HALF)
    there = make(cupy.asarray(images), cupy.asarray(labels)).epoch(4)
    for (x, y), (x_gpu, y_gpu) in zip(make(images, labels).epoch(4), there, strict=True):
        assert isinstance(x_gpu, cupy.ndarray)
        assert x_gpu.flags.c_contiguous
        np.testing.assert_array_equal(x_gpu.get(), x)
        np.testing.assert_array_equal(y_gpu.get(), y)
