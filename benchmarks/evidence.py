"""Evidence on CIFAR-10: trains a committed configuration and records the results.

    python benchmarks/evidence.py NAME... --data-dir DIR            # train to the end, then record
    python benchmarks/evidence.py NAME... --data-dir DIR --record   # record an unfinished run
    python benchmarks/evidence.py --docs docs/cifar10.md            # renew the page's tables

``benchmarks/evidence/NAME.toml`` is a ``--config`` file of ``invocupy train``; the comment that it
begins with says what the run shows. ``NAME-seed-N`` trains it with the seed N. The
run's folder is ``RUNS/NAME``. Ctrl-C and SIGTERM finish the current step and save; the same command
continues. The record, small enough to commit, is ``benchmarks/results/evidence/NAME.json``;
``evidence_page.py`` shows the records.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import date
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from invocupy import nn
from invocupy.checkpoint import CheckpointError, write_atomically
from invocupy.data import DataError, DownloadError
from invocupy.data.cifar import data_path
from invocupy.summary import layers
from invocupy.train import (
    About,
    Config,
    ConfigError,
    Evaluation,
    Interrupted,
    NonFiniteLoss,
    Progress,
    build,
    evaluate,
    fit,
    load_data,
    load_run,
    open_run,
    pick_device,
    read_settings,
)

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "benchmarks" / "evidence"
RESULTS = ROOT / "benchmarks" / "results" / "evidence"
COLUMNS = (
    "train_loss", "train_accuracy", "val_loss", "val_accuracy", "test_loss", "test_accuracy", "lr",
    "seconds", "wall_seconds", "cpu_seconds",
)  # fmt: skip
ROUNDING = 0.001  # of the accuracy: other devices or versions may classify a few images differently
SAY_EVERY = 60.0  # seconds

Facts = dict[str, Any]


def committed(name: str, data_dir: str | None = None) -> tuple[str, Config]:
    """What a run shows, and its settings; ``NAME-seed-N`` is NAME with another seed."""
    name, _, seed = name.partition("-seed-")
    path = CONFIGS / f"{name}.toml"
    config = settings({**read_settings(path), "data_dir": data_dir})
    if seed:
        config = replace(config, seed=int(seed))
    text = path.read_text(encoding="utf-8-sig")
    lines = takewhile(lambda line: line.startswith("#"), text.splitlines())
    what = " ".join(line.strip("# ") for line in lines)
    if not what:
        raise ConfigError(f"config {path} must begin with a comment that says what it is to show")
    return what, config


def settings(of: Facts) -> Config:
    """The settings of a file or record, which do not include the folder of the data."""
    if of.get("dataset") == "folder":  # is required
        of = {**of, "data_dir": of["data_dir"] or "DIR"}
    return Config(**of)


def agree(config: Config, run: Config, folder: Path) -> None:
    """Raise an error if a run was started with other settings than are committed now."""
    wrong = [
        f"{name} is {its!r} there, {mine!r} here"
        for name, mine in asdict(config).items()
        if mine != (its := asdict(run)[name]) and name != "data_dir"
    ]
    if wrong:
        raise ConfigError(
            f"{folder} holds a run of other settings ({'; '.join(wrong)}): move it away"
        )


def train(
    name: str, data_dir: str | None, runs: Path, progress: Callable[[Progress], None] | None = None
) -> None:
    """Start or continue the run; a finished run is left as it is."""
    _, config = committed(name, data_dir)
    folder = runs / name
    resume = (folder / "last.safetensors").exists()
    done = 0
    if resume:
        run, _, history = load_run(folder, "last")
        agree(config, run, folder)
        done = len(history)
        if done == config.epochs:
            keep(folder)
            return
    facts: Facts = noted(folder) if resume else {"started": date.today().isoformat()}
    carried: Facts = facts.get("carried", {})
    facts["commits"] = list(dict.fromkeys([*facts.get("commits", []), commit()]))
    facts["stopped"] = None
    note(folder, facts)
    clocks = {"cpu_seconds": time.process_time, "wall_seconds": time.perf_counter}
    marks = {what: clock() for what, clock in clocks.items()}

    def spent(epoch: int) -> Facts:
        """Seconds of an epoch with its test, over all sessions in which it was trained."""
        nonlocal marks
        since, marks = marks, {what: clock() for what, clock in clocks.items()}
        earlier = carried if carried.get("epoch") == epoch else {}
        return {what: earlier.get(what, 0.0) + marks[what] - since[what] for what in clocks}

    def report(now: Progress) -> None:
        if now.row is not None:
            keep(folder)
        if progress is not None:
            progress(now)

    try:
        fit(
            config, folder, resume, report,
            after_epoch=lambda _, row: row.update(spent(row["epoch"])),
        )  # fmt: skip
    except Interrupted as error:
        epoch = len((folder / "metrics.jsonl").read_text().splitlines()) + 1
        carried = {"epoch": epoch, **spent(epoch)}
        note(folder, {**facts, "stopped": str(error), "carried": carried})
        raise
    except NonFiniteLoss as error:
        # without the path after it
        note(folder, {**facts, "stopped": str(error).partition(";")[0]})
        raise
    note(folder, {**facts, "ended": date.today().isoformat()})
    keep(folder)


def keep(folder: Path) -> None:
    """Keep the state at the end of an epoch: a checkpoint may be from within an epoch."""
    temporary = folder / ".epoch.tmp"
    shutil.copyfile(folder / "last.safetensors", temporary)
    temporary.replace(folder / "epoch.safetensors")


def note(folder: Path, facts: Facts) -> None:
    """Store what a run's folder does not have otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "evidence.json", (lines(facts) + "\n").encode())


def noted(folder: Path) -> Facts:
    """What :func:`note` stored; nothing for a run that ``invocupy train`` started."""
    path = folder / "evidence.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


def commit() -> str | None:
    """The commit of the code, marked if the package has uncommitted changes; None without git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        changes = git("status", "--porcelain", "--", "invocupy")
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changes else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def record(name: str, data_dir: str | None, runs: Path) -> Path:
    """Write the record of a run as of the end of its last complete epoch."""
    what, config = committed(name, data_dir)
    folder = runs / name
    if not (folder / "epoch.safetensors").exists():
        raise ConfigError(f"{folder} has no whole epoch yet: train on")
    run, model, history, images_of = open_run(folder, "epoch")
    agree(config, run, folder)
    if config.validation:  # the weights that are best on the validation images
        model = load_run(folder, "best")[1]
    images, labels = load_data(config, train=False)
    result = measured(config, model, images_of, images, labels)
    last = history[-1]["test_accuracy"]
    if last is not None and abs(result.accuracy - last) > ROUNDING:
        raise ConfigError(
            f"{folder} has weights of {result.accuracy:.2%}, but its last epoch ended with "
            f"{last:.2%}: record it with the version and on the device that trained it"
        )
    about, facts = json.loads((folder / "machine.json").read_text()), noted(folder)
    whole = len(history) == config.epochs
    count = sum(row["seconds"] * row["images_per_second"] for row in history)
    chosen = max(history, key=lambda row: row.get("val_accuracy", row["epoch"]))
    total = {name: total_of(history, name) for name in ("seconds", "wall_seconds", "cpu_seconds")}
    rows = layers(build(config))
    found = {
        "what": what,
        "status": "complete" if whole else f"cut after epoch {len(history)} of {config.epochs}",
        "stopped": None if whole else facts.get("stopped"),
        "config": {**asdict(config), "data_dir": None},
        "machine": machine(config, about),
        "commits": facts.get("commits", []),
        "started": facts.get("started"),
        "ended": facts.get("ended") if whole else None,
        "parameters": rows[0].parameters,
        "multiply_adds": rows[0].macs,
        "images_per_second": round(count / max(total["seconds"] or 0, 1e-9), 1),
        **total,
        "test_accuracy": round(result.accuracy, 5),
        "epoch": chosen["epoch"],
        "approximated": of_approximations(config, model, images_of, images, labels, data_dir),
        "classes": list(images_of.classes),
        "per_class": per_class(result.confusion.tolist()),
        "confusion": result.confusion.tolist(),
        "history": {
            name: [rounded(name, row.get(name)) for row in history]
            for name in COLUMNS if config.validation or not name.startswith("val_")
        },
    }  # fmt: skip
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    write_atomically(path, (lines(found) + "\n").encode())
    return path


def measured(
    config: Config, model: nn.Module, about: About, images: Any, labels: Any
) -> Evaluation:
    """The model on images, where and as the run evaluates."""
    model.to(pick_device(config.device))
    return evaluate(model, images, labels, **about.style())


def of_approximations(
    config: Config, model: nn.Module, about: About, images: Any, labels: Any, data_dir: str | None
) -> dict[str, int] | None:
    """Test images that are not the originals, if the data's folder lists any, and those right."""
    if data_dir is None:
        return None
    path = data_path(data_dir) / "approximated_test_records.txt"
    if not path.exists():
        return None
    text = path.read_text(encoding="utf-8-sig")
    numbers = [number for number in map(int, text.split()) if number < len(images)]
    if not numbers:
        return None
    result = measured(config, model, about, images[numbers], labels[numbers])
    return {"images": len(numbers), "right": int(np.trace(result.confusion))}


def per_class(confusion: Sequence[Sequence[int]]) -> dict[str, list[float | None]]:
    """Precision, recall and F1 of each class; None for 0 / 0."""
    matrix = np.array(confusion)
    right, labels, answers = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)

    def ratio(above: Any, below: Any) -> list[float | None]:
        pairs = zip(above.tolist(), below.tolist(), strict=True)
        return [round(a / b, 4) if b else None for a, b in pairs]

    return {
        "precision": ratio(right, answers),
        "recall": ratio(right, labels),
        "f1": ratio(2 * right, answers + labels),
    }


def machine(config: Config, about: Facts) -> Facts:
    """The device that a run used, and the versions."""
    devices = about["devices"]
    name = {"auto": next((d for d in devices if d != "cpu"), "cpu"), "cuda": "cuda:0"}.get(
        config.device, config.device
    )
    return {
        "device": devices[name], "threads": about["threads"],
        "python": about["python"].partition(" ")[0], "invocupy": about["invocupy"],
        **{name: version for name, version in about["packages"].items() if version},
    }  # fmt: skip


def total_of(history: list[Facts], name: str) -> float | None:
    """The sum of a column; None if an epoch has no such number."""
    values = [row[name] for row in history if name in row]
    return round(sum(values), 1) if len(values) == len(history) else None


def rounded(name: str, value: float | None) -> float | None:
    """Rounded to the digits that are meaningful."""
    if value is None:
        return None
    if name.endswith("seconds"):
        return round(value, 1)
    return round(value, 5) if name.endswith("accuracy") else float(f"{value:.5g}")


def lines(value: Any, margin: str = "") -> str:
    """JSON with one line per list of numbers, so that diffs are readable."""
    inner = margin + " "
    if isinstance(value, dict):
        parts = [f"{json.dumps(name)}: {lines(part, inner)}" for name, part in value.items()]
        return "{\n" + inner + f",\n{inner}".join(parts) + f"\n{margin}}}"
    if isinstance(value, list) and any(isinstance(part, list) for part in value):
        parts = [lines(part, inner) for part in value]
        return "[\n" + inner + f",\n{inner}".join(parts) + f"\n{margin}]"
    return json.dumps(value)


def reporter(name: str) -> Callable[[Progress], None]:
    """Writes a line per epoch, and one per minute, to standard error."""
    said = time.monotonic()

    def report(now: Progress) -> None:
        nonlocal said
        if now.row is None and time.monotonic() - said < SAY_EVERY:
            return
        said = time.monotonic()
        text = f"{name}  epoch {now.epoch}/{now.epochs}  "
        text += f"loss {now.loss:.4f}  accuracy {now.accuracy:.2%}"
        if now.row is None:
            text += f"  step {now.step}/{now.steps}"
        else:
            held = "val" if "val_accuracy" in now.row else "test"
            text += f"  {held} accuracy {now.row[f'{held}_accuracy']:.2%}"
            text += f"  {now.row['images_per_second']:.0f} images/s"
        print(text, file=sys.stderr, flush=True)

    return report


@contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM acts like Ctrl-C; both also act in a job that a shell started with ``&``."""
    wanted = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: lambda *_: signal.raise_signal(signal.SIGINT),
    }
    before = {number: signal.signal(number, handler) for number, handler in wanted.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main(arguments: list[str] | None = None) -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", metavar="NAME", nargs="*", help="of benchmarks/evidence/NAME.toml")
    parser.add_argument("--data-dir", metavar="DIR", help="folder of the cifar10 files")
    parser.add_argument("--runs", metavar="DIR", type=Path, default=Path("runs", "evidence"))
    parser.add_argument("--record", action="store_true", help="record the run without training")
    parser.add_argument("--docs", metavar="PAGE", type=Path, help="fill the page's marked blocks")
    given = parser.parse_args(arguments)
    if not (given.names or given.docs):
        parser.error("nothing to do: give a NAME or --docs PAGE")
    try:
        with stoppable():
            for name in given.names:
                if not given.record:
                    train(name, given.data_dir, given.runs, reporter(name))
                print(record(name, given.data_dir, given.runs))
        if given.docs:
            from evidence_page import write_page

            write_page(given.docs, RESULTS)
    except KeyboardInterrupt as error:
        print(f"evidence: {error or 'interrupted'}: the same command continues", file=sys.stderr)
        return 130
    except (ConfigError, CheckpointError, DataError, DownloadError, NonFiniteLoss) as error:
        print(f"evidence: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
