"""Settings: NumPy's numbers are Python's, and absurd ones are refused in one line."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from invocupy import Tensor, checkpoint
from invocupy.train import Config, ConfigError, fit, read_settings

BIG = 10**30
HUGE = 10**5000  # more digits than Python writes
ABSURD: list[Any] = [
    -1, -(10**400), float("nan"), float("inf"), float("-inf"), BIG, 10**400, HUGE, -HUGE, 1j,
    "x\0y", "", b"x", {}, {1}, object(), int, [True], [None], [float("nan")], [HUGE], [[0.5]],
    np.float64("nan"), np.int64(-3), np.complex64(1), np.datetime64("2020"),
    np.array([[0.5]]), np.array(["a"]), np.zeros((3, 100)), Path("x\0y"), Tensor(0.5),
]  # fmt: skip


@pytest.mark.parametrize("name", [item.name for item in fields(Config)])
def test_every_absurd_setting_is_refused_in_one_line(name: str) -> None:
    for value in ABSURD:
        if name == "seed" and value is BIG:
            continue
        with pytest.raises(ConfigError) as caught:
            Config(**{name: value})
        message = str(caught.value)
        assert message.startswith(f"{name} must be ")
        assert "\n" not in message
        assert len(message) < 250


@pytest.mark.parametrize("name", [i.name for i in fields(Config) if "bool" not in str(i.type)])
def test_bools_are_no_numbers(name: str) -> None:
    for value in (True, np.True_, np.array(False)):
        with pytest.raises(ConfigError, match=f"{name} must be of type"):
            Config(**{name: value})


KINDS = {
    "int": [np.int64(1), np.uint8(1), np.int32(1), np.array(1)],
    "float": [np.float64(0.5), np.float32(0.5), np.float16(0.5), np.longdouble(0.5), np.array(0.5)],
    "bool": [np.True_, np.array(True)],
}


@pytest.mark.parametrize("item", fields(Config), ids=lambda item: item.name)
def test_numbers_of_numpy_are_pythons(item: Any) -> None:
    kind = item.type.partition(" ")[0]
    for value in KINDS.get(kind, []):
        plain = value.item() if not isinstance(value, np.longdouble) else 0.5
        width = {"spatial": "convolution"} if item.name == "width" else {}
        if item.name == "width":
            value, plain = value + 1, plain + 1
        config = Config(**{item.name: value}, **width)
        found = getattr(config, item.name)
        assert type(found) is type(plain)
        assert found == plain
        assert json.loads(config.to_json())[item.name] == plain
        assert Config.from_json(config.to_json()) == config


def test_other_types_that_mean_a_setting(tmp_path: Path) -> None:
    config = Config(
        milestones=np.array([0.25, 0.5], np.float32),  # type: ignore[arg-type]
        data_dir=tmp_path,  # type: ignore[arg-type]
        model=np.str_("small"),
    )
    assert config.milestones == (0.25, 0.5)
    assert config.data_dir == str(tmp_path)
    assert type(config.model) is str
    for milestones in ([np.float32(0.25), 1], (0.25, np.int64(1))):
        assert Config(milestones=milestones).milestones == (0.25, 1)  # type: ignore[arg-type]


def test_a_run_of_numpys_numbers_is_that_of_pythons(tmp_path: Path) -> None:
    plain = {"epochs": 2, "lr": 0.125, "momentum": 0.5, "ema": 0.5, "clip_norm": 0.25}
    other = {
        "epochs": np.int64(2), "lr": np.float32(0.125), "momentum": np.float64(0.5),
        "ema": np.float32(0.5), "clip_norm": np.array(0.25),
    }  # fmt: skip
    base: dict[str, Any] = {"layers": 0, "limit": 20, "batch_size": 10, "device": "cpu"}
    for name, settings in (("plain", plain), ("other", other)):
        fit(Config(**base, **settings), tmp_path / name)
    texts = [(tmp_path / name / "config.json").read_bytes() for name in ("plain", "other")]
    assert texts[0] == texts[1]
    one, two = (checkpoint.load(tmp_path / n / "last.safetensors")[0] for n in ("plain", "other"))
    assert one.keys() == two.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, two[name])


@pytest.mark.parametrize("suffix", ["toml", "json"])
def test_a_setting_named_twice_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"settings.{suffix}"
    twice = {"batch_size": 1, "lr": 0.5, "batch-size": 2, "weight-decay": 0}
    lines = "\n".join(f"{name} = {value}" for name, value in twice.items())
    path.write_text(json.dumps(twice) if suffix == "json" else lines)
    with pytest.raises(ConfigError, match="has batch_size twice, with - and with _"):
        read_settings(path)
