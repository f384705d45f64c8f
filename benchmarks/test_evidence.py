"""The program that trains on CIFAR-10 and records it; what is recorded agrees with itself."""

from __future__ import annotations

import copy
import itertools
import json
import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import evidence
import evidence_page as page
import numpy as np
import pytest

from invocupy.train import DATASETS, Config, Progress, fit, load_run, open_run

ROOT = Path(__file__).parents[1]
RECORDS = page.read(evidence.RESULTS)
TINY = """# Shows that
# the program works.
layers = 0
epochs = 3
limit = 40
batch-size = 10
ema = 0.5
device = "cpu"
"""
WHAT, STEPS = "Shows that the program works.", 4
SUMS = "seconds", "wall_seconds", "cpu_seconds"

# --- what every record must be ------------------------------------------------------------------


def check(record: dict[str, Any]) -> None:
    """That a record agrees with itself."""
    config = evidence.settings(record["config"])
    classes, limit = DATASETS[config.dataset].classes, config.overfit or config.limit
    confusion = np.array(record["confusion"])
    images = DATASETS[config.dataset].sizes[1]
    images = images if limit is None else min(limit, images)
    if config.dataset == "folder":  # which has classes and images of its own
        classes, images = tuple(record["classes"]), int(confusion.sum())
    assert confusion.shape == (len(classes),) * 2
    assert confusion.min() >= 0
    assert confusion.sum() == images
    assert record["classes"] == list(classes)
    assert record["test_accuracy"] == pytest.approx(np.trace(confusion) / images, abs=1e-5)
    for i in range(len(classes)):
        right, answers, labels = confusion[i, i], confusion[:, i].sum(), confusion[i].sum()
        precision, recall, f1 = (
            record["per_class"][what][i] for what in ("precision", "recall", "f1")
        )
        assert (precision is None) == (answers == 0)
        assert (recall is None) == (labels == 0)
        assert (f1 is None) == (answers + labels == 0)
        if precision is not None:
            assert precision == pytest.approx(right / answers, abs=1e-4)
        if recall is not None:
            assert recall == pytest.approx(right / labels, abs=1e-4)
        if precision and recall:
            assert f1 == pytest.approx(2 * precision * recall / (precision + recall), abs=3e-4)
        elif f1 is not None:
            assert f1 == 0

    history = record["history"]
    held = bool(config.validation)
    assert list(history) == [n for n in evidence.COLUMNS if held or not n.startswith("val_")]
    (ended,) = {len(column) for column in history.values()}
    assert 1 <= ended <= config.epochs
    cut = f"cut after epoch {ended} of {config.epochs}"
    assert record["status"] == ("complete" if ended == config.epochs else cut)
    assert record["stopped"] is None or ended < config.epochs
    accuracies = history["test_accuracy"]
    if held:  # one look at the test set, with the weights that the validation images chose
        assert accuracies[:-1] == [None] * (ended - 1)
        assert record["epoch"] == 1 + int(np.argmax(history["val_accuracy"]))
    else:
        assert record["epoch"] == ended
    if not held or record["status"] == "complete":
        assert accuracies[-1] == pytest.approx(record["test_accuracy"], abs=evidence.ROUNDING)
    for what in SUMS:
        if record[what] is None:
            assert None in history[what]
        else:
            assert record[what] == pytest.approx(sum(history[what]), abs=0.05 * ended + 0.05)
    assert record["wall_seconds"] is None or record["wall_seconds"] >= record["seconds"] - 0.1
    assert record["parameters"] > 0
    assert record["multiply_adds"] > 0
    if record["approximated"] is not None:
        assert 0 <= record["approximated"]["right"] <= record["approximated"]["images"] <= images
    assert record["config"]["data_dir"] is None
    assert not re.search(r"[/\\]", str(record["stopped"]) + str(record["commits"]))


def test_each_record_agrees_with_itself_and_its_configuration() -> None:
    for name, record in RECORDS.items():
        check(record)
        what, config = evidence.committed(name)
        assert record["what"] == what, name
        assert evidence.settings(record["config"]) == config, name
        images = 100 if config.dataset == "folder" else 1000
        assert np.sum(record["confusion"], axis=1).tolist() == [images] * 10, name
        assert (evidence.RESULTS / f"{name}.json").stat().st_size < 30_000


# --- the program, on generated images -----------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one small configuration; ``main`` works in it."""
    monkeypatch.setattr(evidence, "CONFIGS", tmp_path)
    monkeypatch.setattr(evidence, "RESULTS", tmp_path / "results")
    (tmp_path / "tiny.toml").write_text(TINY)
    return tmp_path


def run(place: Path, *arguments: str) -> int:
    return int(evidence.main(["tiny", "--runs", str(place / "runs"), *arguments]))


def result(place: Path) -> dict[str, Any]:
    return dict(json.loads((place / "results" / "tiny.json").read_text()))


def stop_at(monkeypatch: pytest.MonkeyPatch, epoch: int, step: int) -> None:
    """Let SIGTERM arrive after a step."""

    def report(now: Progress) -> None:
        if now.row is None and (now.epoch, now.step) == (epoch, step):
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(evidence, "reporter", lambda _: report)


def test_a_run_and_its_record(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(place) == 0
    record = result(place)
    check(record)
    config, model, history = load_run(place / "runs" / "tiny", "last")
    assert record["what"] == WHAT
    assert record["status"] == "complete"
    assert Config(**record["config"]) == config
    assert record["history"]["test_accuracy"] == [row["test_accuracy"] for row in history]
    assert record["parameters"] == sum(p.size for p in model.parameters())
    assert record["test_accuracy"] == history[-1]["test_accuracy"]  # of the averaged weights
    assert record["machine"]["numpy"] == np.__version__
    assert record["cpu_seconds"] > 0

    before = (place / "results" / "tiny.json").read_text()
    monkeypatch.delattr(evidence, "fit")  # nothing is left to do
    assert run(place) == 0
    assert (place / "results" / "tiny.json").read_text() == before


def test_a_run_that_was_cut(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds: Iterator[int] = itertools.count()  # one passes at each look at the clock
    monkeypatch.setattr(evidence.time, "process_time", lambda: next(seconds))
    stop_at(monkeypatch, epoch=2, step=3)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert run(place) == 130
    assert "interrupted in epoch 2 after step 7: the same command" in capsys.readouterr().err
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert not (place / "results").exists()

    assert run(place, "--record") == 0
    record = result(place)
    check(record)
    assert record["status"] == "cut after epoch 1 of 3"
    assert record["stopped"] == "interrupted in epoch 2 after step 7"
    assert record["ended"] is None
    assert record["cpu_seconds"] == 1
    # of the first epoch's weights, not of those at the interruption
    assert record["test_accuracy"] == record["history"]["test_accuracy"][0]

    stop_at(monkeypatch, epoch=2, step=4)  # and again in the same epoch
    assert run(place) == 130
    monkeypatch.undo()
    monkeypatch.setattr(evidence, "CONFIGS", place)
    monkeypatch.setattr(evidence, "RESULTS", place / "results")
    monkeypatch.setattr(evidence.time, "process_time", lambda: next(seconds))
    assert run(place) == 0
    record = result(place)
    check(record)
    assert record["status"] == "complete"
    assert record["stopped"] is None
    assert record["history"]["cpu_seconds"] == [1, 3, 1]  # the second one had three sittings
    whole = fit(Config(**record["config"]))
    for what in ("train_loss", "test_loss", "test_accuracy"):
        assert record["history"][what] == [evidence.rounded(what, row[what]) for row in whole]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda text: text.replace("= 3", "= 4"), "epochs is 3 there, 4 here"),
        (lambda text: text + "lr = 0.5\n", "lr is 0.01 there, 0.5 here"),
        (lambda text: text.replace("#", "\n#"), "must begin with a comment"),
        (lambda text: text + "depth = 3\n", "has depth, but only these settings exist"),
    ],
)
def test_a_changed_configuration_is_refused(
    place: Path, change: Callable[[str], str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(place) == 0
    before = result(place)
    (place / "tiny.toml").write_text(change(TINY))
    for arguments in ([], ["--record"]):
        assert run(place, *arguments) == 1
        assert complaint in capsys.readouterr().err
    assert result(place) == before


def test_what_cannot_be_recorded(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_at(monkeypatch, epoch=1, step=1)
    assert run(place) == 130
    assert run(place, "--record") == 1
    assert "no whole epoch yet" in capsys.readouterr().err

    # weights that are not those of the last line
    assert run(place) == 0
    monkeypatch.setattr(evidence, "ROUNDING", -1.0)
    assert run(place, "--record") == 1
    assert "but its last epoch ended with" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_is_noted(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "tiny.toml").write_text(TINY + 'lr = 1e30\nschedule = "constant"\n')
    assert run(place) == 1
    assert "training loss is" in capsys.readouterr().err
    stopped = evidence.noted(place / "runs" / "tiny")["stopped"]
    assert stopped.endswith("train with a lower lr than 1e+30")
    assert str(place) not in stopped


def test_a_run_that_the_command_line_began(place: Path) -> None:
    fit(evidence.committed("tiny")[1], place / "runs" / "tiny")
    assert run(place) == 0
    record = result(place)
    check(record)
    assert record["cpu_seconds"] is record["wall_seconds"] is record["started"] is None
    assert record["commits"] == []


def test_images_that_are_not_the_originals(place: Path) -> None:
    assert run(place) == 0
    assert result(place)["approximated"] is None
    numbers = [3, 17, 39, 40]  # the last one is beyond the limit
    (place / "approximated_test_records.txt").write_text("\n".join(map(str, numbers)))
    assert run(place, "--data-dir", str(place)) == 0
    record = result(place)
    check(record)
    config, model, _, about = open_run(place / "runs" / "tiny", "last")
    x, labels = (array[numbers[:3]] for array in evidence.load_data(config, train=False))
    right = evidence.measured(config, model, about, x, labels).confusion.trace()
    assert record["approximated"] == {"images": 3, "right": right}
    assert config.data_dir is None  # says nothing of where the data lay


def test_validation_chooses_and_the_test_set_is_read_once(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "tiny.toml").write_text(TINY + "validation = 0.25\n")
    stop_at(monkeypatch, epoch=2, step=1)
    assert run(place) == 130
    assert run(place, "--record") == 0
    record = result(place)
    check(record)
    assert record["history"]["test_accuracy"] == [None]
    monkeypatch.setattr(evidence, "reporter", lambda _: None)
    assert run(place) == 0
    record = result(place)
    check(record)
    config, model, history, about = open_run(place / "runs" / "tiny", "best")
    assert record["epoch"] == len(history)
    images, labels = evidence.load_data(config, train=False)
    assert evidence.measured(config, model, about, images, labels).accuracy == pytest.approx(
        record["test_accuracy"]
    )


def test_another_seed(place: Path) -> None:
    assert evidence.committed("tiny-seed-7")[1] == replace(evidence.committed("tiny")[1], seed=7)


def test_shares_without_answers() -> None:
    assert evidence.per_class([[2, 0, 1], [1, 0, 0], [0, 0, 0]]) == {
        "precision": [0.6667, None, 0.0], "recall": [0.6667, 0.0, None], "f1": [0.6667, 0.0, 0.0],
    }  # fmt: skip


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        evidence.main([])
    assert "give a NAME" in capsys.readouterr().err
    assert evidence.main(["no-such-run"]) == 1
    assert "no-such-run.toml cannot be read" in capsys.readouterr().err


# --- the checks, and the page -------------------------------------------------------------------


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A record to spoil and to show."""
    folder = tmp_path_factory.mktemp("evidence")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evidence, "CONFIGS", folder)
        patch.setattr(evidence, "RESULTS", folder / "results")
        (folder / "tiny.toml").write_text(TINY)
        assert run(folder) == 0
        return result(folder)


def _set(*keys: Any, to: Any) -> Callable[[Any], None]:
    def spoil(record: Any) -> None:
        for key in keys[:-1]:
            record = record[key]
        assert record[keys[-1]] != to
        record[keys[-1]] = to

    return spoil


@pytest.mark.parametrize(
    "spoil",
    [
        _set("test_accuracy", to=0.5001), _set("confusion", 0, 1, to=77),
        _set("per_class", "recall", 2, to=0.987), _set("status", to="cut after epoch 2 of 3"),
        _set("config", "epochs", to=4), _set("stopped", to="killed"),
        _set("epoch", to=2),
        _set("history", "test_accuracy", -1, to=0.99), _set("history", "lr", to=[0.1]),
        _set("seconds", to=1e6), _set("cpu_seconds", to=None), _set("config", "data_dir", to="d"),
        _set("approximated", to={"images": 1, "right": 2}),
    ],
)  # fmt: skip
def test_the_check_finds_mistakes(record: dict[str, Any], spoil: Callable[[Any], None]) -> None:
    spoilt = copy.deepcopy(record)
    check(spoilt)
    spoil(spoilt)
    with pytest.raises((AssertionError, ValueError)):
        check(spoilt)


BLOCKS = """# Page

<!-- evidence: table second -->
old
<!-- end -->
<!-- evidence: chart -->
<!-- end -->
<!-- evidence: runs -->
<!-- end -->
after
"""


def test_the_command_fills_a_page(
    place: Path, record: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    target, results = place / "page.md", place / "results"
    results.mkdir()
    (results / "tiny.json").write_text(json.dumps(record))
    target.write_text(BLOCKS)
    assert evidence.main(["--docs", str(target)]) == 0
    assert target.read_text() == page.filled(BLOCKS, {"tiny": record})


def test_pictures(tmp_path: Path, record: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    pictures = __import__("draw_pictures")
    assert isinstance(pictures, ModuleType)
    monkeypatch.setattr(pictures, "FOLDER", tmp_path)
    monkeypatch.setattr(pictures, "RESULTS", tmp_path / "results")
    pictures.draw_evidence()
    assert not list(tmp_path.glob("*.png"))  # no records, no pictures
    (tmp_path / "results").mkdir()
    for name in ("one", "two"):
        (tmp_path / "results" / f"{name}.json").write_text(json.dumps(record))
    pictures.draw_evidence()
    drawn = sorted(path.name for path in tmp_path.glob("*.png"))
    assert drawn == ["evidence.png"]
