"""Settings: NumPy's numbers are Python's, absurd ones are refused in one line, files and flags."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import PLAIN, TINY

from invocupy import Tensor, checkpoint
from invocupy.cli import main
from invocupy.train import (
    Config,
    ConfigError,
    fit,
    load_data,
    load_run,
    pick_device,
    read_settings,
)

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


# ------------------------------------------------------------------------------ learning, settings


def test_limit_and_sizes_of_the_data() -> None:
    for limit, train, test in ((7, 7, 7), (None, 10_000, 1000), (1200, 1200, 1000)):
        config = Config(limit=limit)
        assert len(load_data(config, train=True)[0]) == train
        assert len(load_data(config, train=False)[0]) == test


BAD = [
    (
        {"dataset": "mnist"},
        "shapes10, cifar10, cifar100, folder, got .mnist.",
    ),
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


# ------------------------------------------------------------------------ settings files


def test_settings_files(tmp_path: Path) -> None:
    toml = tmp_path / "a.toml"
    toml.write_text(
        'layers = 0\nbatch-size = 8 # small\nmilestones = [0.1, 0.5]\ndataset="cifar10"'
    )
    settings = read_settings(toml)
    assert Config(**settings) == Config(
        layers=0, batch_size=8, milestones=(0.1, 0.5), dataset="cifar10"
    )
    saved = tmp_path / "config.json"
    saved.write_text(PLAIN.to_json())
    assert Config(**read_settings(saved)) == PLAIN
    for text, words in (
        ("layers", "must be TOML"),
        ("colour = 1\nshape = 2", "a.toml has colour, shape, but only these settings exist: "),
        ("[train]\nlayers = 1", "a.toml has train, but only"),
    ):
        toml.write_text(text)
        with pytest.raises(ConfigError, match=words):
            read_settings(toml)
    saved.write_text("[]")
    with pytest.raises(ConfigError, match="must be a JSON object"):
        read_settings(saved)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_settings(tmp_path / "none.toml")


def test_flags_win_over_smoke_and_smoke_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.toml").write_text('layers = 0\nepochs = 7\nbatch_size = 99\nlr = 0.5\ndevice = "cpu"')
    arguments = ["train", "--config", "a.toml", "--smoke", "--lr", "0.001", "--json", "--out", "r"]
    assert main(arguments) == 0
    wanted = Config(layers=0, epochs=1, batch_size=16, limit=64, lr=0.001, device="cpu")
    printed = json.loads(capsys.readouterr().out)["config"]
    assert Config(**printed) == wanted == Config.from_json(Path("r/config.json").read_text())
    assert main(["train", "--config", "none.toml"]) == 2
    assert "config none.toml cannot be read" in capsys.readouterr().err
    Path("a.toml").write_text("layers = 'two'")
    assert main(["train", "--config", "a.toml"]) == 2
    assert "layers must be of type int, got 'two'" in capsys.readouterr().err


def test_runs_from_before_these_settings_are_read_and_go_on(tmp_path: Path) -> None:
    fit(PLAIN, tmp_path)
    later = {
        "accumulate", "decay_biases", "clip_norm", "milestones", "drop", "ema", "patience",
        "cutout", "overfit", "recompute",
    }  # fmt: skip
    for which in ("best", "last"):
        path = tmp_path / f"{which}.safetensors"
        arrays, info = checkpoint.load(path)
        info["config"] = {k: v for k, v in info["config"].items() if k not in later}
        checkpoint.save(path, arrays, info)
    assert load_run(tmp_path)[0] == PLAIN
    assert len(fit(replace(PLAIN, epochs=3, recompute=False), tmp_path, resume=True)) == 3
