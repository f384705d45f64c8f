"""Arrays of one's own, and models of one's own: what the run keeps of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import HEAD, at, content, interrupt, timeless

from invocupy import checkpoint, nn
from invocupy.checkpoint import CheckpointError
from invocupy.data import DataError, moments
from invocupy.train import (
    Config,
    ConfigError,
    Interrupted,
    augmentation,
    build,
    estimate,
    evaluate,
    fit,
    hold_out,
    load_run,
    loop,
    open_run,
)
from invocupy.train.sets import describe, read_test_set

CONFIG = Config(layers=0, epochs=2, batch_size=20, lr=0.05, device="cpu")


def images(count: int, channels: int = 3, height: int = 24, width: int = 24) -> Any:
    """Images of four classes, which their brightness tells; labels."""
    rng = np.random.default_rng(count)
    labels = np.arange(count) % 4
    noise = rng.integers(0, 40, (count, channels, height, width))
    return (noise + 60 * labels[:, None, None, None]).astype(np.uint8), labels


def sets(**shape: int) -> Any:
    return *images(60, **shape), *images(24, **shape)


@pytest.mark.parametrize("model", ["simple", "small", "resnet18"])
@pytest.mark.parametrize("shape", [{}, {"channels": 1, "height": 9, "width": 14}])
def test_any_size_and_number_of_channels(tmp_path: Path, model: str, shape: Any) -> None:
    data = sets(**shape)
    config = replace(CONFIG, model=model, layers=1, epochs=1, spatial="depthwise", width=8)
    history = fit(config, tmp_path, data=data)
    _, loaded, _, about = open_run(tmp_path)
    assert about.shape == data[0].shape[1:]
    assert about.classes == ("0", "1", "2", "3")
    assert about.counts == (60, 24)
    found = evaluate(loaded, *data[2:], **about.style())
    assert found.accuracy == history[-1]["test_accuracy"]
    assert found.confusion.shape == (4, 4)


@pytest.mark.parametrize(
    ("count", "change", "words"),
    [
        (
            41,
            {},
            "^batch_size 20 leaves one .*bn2 .BatchNorm2d. cannot .* another batch_size, more",
        ),
        (60, {"validation": 0.32}, "^batch_size 20 "),
        (60, {"limit": 1}, "^batch_size 20 "),
        (40, {"batch_size": 1}, "^batch_size 1 "),
        (
            40,
            {"batch_size": 4, "accumulate": 4},
            "^batch_size 4 and accumulate 4 leave .* or accumulate, more",
        ),
    ],
)
def test_a_single_value_for_batch_norm_is_refused_before_the_training(
    tmp_path: Path, count: int, change: Any, words: str
) -> None:
    config = replace(CONFIG, model="small", spatial="depthwise", width=8, **change)
    data = *images(count, height=8, width=8), *images(24, height=8, width=8)
    with pytest.raises(ConfigError, match=words) as told:
        fit(config, tmp_path / "run", data=data)
    assert "\n" not in str(told.value)
    assert not (tmp_path / "run").exists()
    if not change:
        fit(replace(config, epochs=1), data=(*images(41), *images(24)))
        fit(replace(config, epochs=1, batch_size=13), data=data)


def test_it_learns() -> None:
    config = replace(CONFIG, epochs=8, model="small", spatial="depthwise", width=8)
    assert fit(config, data=sets())[-1]["test_accuracy"] == 1.0


def test_mean_and_deviation_are_those_of_the_images_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, config = sets(), replace(CONFIG, validation=0.25, limit=50)
    fit(config, tmp_path, data=data)
    about = open_run(tmp_path).about
    kept, _ = hold_out(config, 50)
    pixels = data[0][:50][kept] / 255
    # sums of at most 2**31, divided in float64
    np.testing.assert_allclose(about.mean, pixels.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(about.std, pixels.std(axis=(0, 2, 3)), rtol=1e-10)
    assert about.counts == (50, 24)
    assert moments(np.full((3, 2, 1, 1), 51, np.uint8)) == ((0.2, 0.2), (1.0, 1.0))


def test_labels_of_any_integer_type_and_arrays_of_any_layout() -> None:
    one = fit(CONFIG, data=sets())
    x, y, tests, labels = sets()
    turned = np.asfortranarray(x)
    other = fit(CONFIG, data=(turned, y.astype(np.uint8), tests, labels.astype(">i2")))
    assert timeless(one) == timeless(other)


def test_augmentation_of_the_settings_data_set_is_not_theirs() -> None:
    config = Config(dataset="cifar10")
    assert augmentation(config)
    assert not augmentation(config, describe(config, (images(8), images(8))))
    assert augmentation(replace(config, augment="crop_flip"), describe(config, (images(8),) * 2))


def test_memory_is_that_of_these_images() -> None:
    about = describe(CONFIG, (images(60, height=64, width=64),) * 2)
    model = build(CONFIG, about)
    assert estimate(CONFIG, model, about).data > 120 * 3 * 64 * 64
    assert estimate(CONFIG, model, about).images == 60


def test_overfit_takes_the_training_images(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    right = loop.evaluate
    monkeypatch.setattr(
        loop, "evaluate", lambda m, x, *rest, **o: seen.append(x) or right(m, x, *rest, **o)
    )
    fit(replace(CONFIG, overfit=8), data=sets())
    assert all(np.array_equal(x, sets()[0][:8]) for x in seen)


def test_a_run_on_arrays_goes_on_with_the_same_arrays(tmp_path: Path) -> None:
    data, config = sets(), replace(HEAD, limit=None, validation=0.2)
    with pytest.raises(Interrupted):
        fit(config, tmp_path / "run", data=data, progress=at(2, 1, interrupt))
    x, labels, tests, answers = data
    for other in (
        sets(channels=1), (255 - x, *data[1:]), (x, labels[::-1], tests, answers), None,
        (x, labels, tests, answers[::-1]), (x, labels, 255 - tests, answers),
        (x, labels, tests[4:], answers[4:]),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match="its images are others"):
            fit(config, tmp_path / "run", resume=True, data=other)
    fit(config, tmp_path / "run", resume=True, data=data)
    fit(config, tmp_path / "whole", data=data)
    assert content(tmp_path / "run") == content(tmp_path / "whole")
    config, _, _, about = open_run(tmp_path / "run")
    with pytest.raises(ConfigError, match="the run was trained on arrays, which its folder"):
        read_test_set(config, about)


def wrong(**changes: Any) -> Any:
    names = "train_images", "train_labels", "test_images", "test_labels"
    given = dict(zip(names, sets(), strict=True))
    return tuple(changes.get(name, array) for name, array in given.items())


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (3, TypeError, "data must be .train_images, .*, got int"),
        (sets()[:3], TypeError, "got 3 values"),
        (wrong(train_labels=[1, 2]), TypeError, "train_labels must be a plain array .*, got list"),
        (wrong(train_images=np.ma.array(sets()[0])), TypeError, "a plain array .* MaskedArray"),
        (wrong(test_images=sets()[2] / 255), TypeError, "test_images must be uint8, .* float64"),
        (wrong(train_labels=np.ones(60)), TypeError, "train_labels must be integers, got float64"),
        (wrong(train_labels=np.ones(60, bool)), TypeError, "must be integers, got bool"),
        (wrong(train_images=sets()[0][:, 0]), DataError, r"shape \(N, C, H, W\).*\(60, 24, 24\)"),
        (wrong(test_images=sets()[2][:0]), DataError, r"none of them 0, got \(0, 3, 24, 24\)"),
        (wrong(train_labels=sets()[1][:9]), DataError, r"shape \(60,\), one for each .*\(9,\)"),
        (wrong(train_labels=sets()[1] - 1), DataError, "train_labels must be from 0 .* got -1"),
        (wrong(test_labels=sets()[3] + 1), DataError, "test_labels must be from 0 to 3.* got 4"),
        (wrong(train_labels=np.full(60, 2**40)), DataError, "to 65535, got 1099511627776"),
        (wrong(train_labels=np.zeros(60, int)), DataError, "at least two classes, got 0 alone"),
        (wrong(train_labels=np.ones(60, int)), DataError, "at least two classes, got 1 alone"),
        (wrong(test_images=images(24, channels=1)[0]), DataError, "same channels and size"),
    ],
)
def test_what_is_wrong_with_arrays_is_one_line(
    tmp_path: Path, data: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words) as told:
        fit(CONFIG, tmp_path / "run", data=data)
    assert "\n" not in str(told.value)
    assert not (tmp_path / "run").exists()


def own_model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.GlobalAvgPool2d(), nn.Linear(8, 4))


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_a_model_of_ones_own_is_opened_with_it(tmp_path: Path, ema: float) -> None:
    model = own_model()
    fit(replace(CONFIG, ema=ema), tmp_path, model=model, data=sets())
    with pytest.raises(CheckpointError, match=r"given to fit, invocupy\S*Sequential: .*model-from"):
        load_run(tmp_path)
    opened = load_run(tmp_path, model=own_model())[1]
    assert not opened.training
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(opened.state_dict()[name], array)
    with pytest.raises(CheckpointError, match="not a run of this version and model"):
        load_run(tmp_path, model=nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(TypeError, match="model must be a module"):
        load_run(tmp_path, model=own_model)  # type: ignore[arg-type]


def test_a_run_of_a_version_without_these_facts_opens(tmp_path: Path) -> None:
    fit(HEAD, tmp_path)
    for which in ("best", "last"):
        arrays, info = checkpoint.load(tmp_path / f"{which}.safetensors")
        old = {name: info[name] for name in info if name not in ("data", "model")}
        del old["config"]["validation"]
        checkpoint.save(tmp_path / f"{which}.safetensors", arrays, old | {"best_accuracy": 0.5})
    assert open_run(tmp_path).about == describe(HEAD)._replace(counts=(50, 50))
    assert len(fit(replace(HEAD, epochs=3), tmp_path, resume=True)) == 3


@pytest.mark.parametrize(
    "change",
    [{"classes": []}, {"shape": [3, 32]}, {"shape": [3, -1, 32]}, {"mean": [0.5]},
     {"std": [0.0] * 3}, {"more": 1}, {"dataset": 3}, {"digest": 3}],
)  # fmt: skip
def test_facts_that_describe_no_images_are_refused(tmp_path: Path, change: Any) -> None:
    fit(HEAD, tmp_path)
    arrays, info = checkpoint.load(tmp_path / "last.safetensors")
    info["data"] |= change
    checkpoint.save(tmp_path / "last.safetensors", arrays, info)
    with pytest.raises(CheckpointError, match="is whole, but not a run of this version"):
        open_run(tmp_path, "last")
