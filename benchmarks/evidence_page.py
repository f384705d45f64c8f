"""Shows the records of ``evidence.py``: fills the marked blocks of a page.

A block begins with a line ``<!-- evidence: KIND NAME... -->`` and ends with ``<!-- end -->``:

- ``table NAME...``: one row per network, the named ones first; runs of a network that differ in the
  seed only (``NAME``, ``NAME-seed-N``) are one row;
- ``chart``: their test accuracies with error bars, as a picture;
- ``runs``: one line per run, with what is needed to repeat it.

``docs/draw_pictures.py`` draws the chart when the documentation is built.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

Record = dict[str, Any]
Records = dict[str, Record]

BLOCK = re.compile(r"(<!-- evidence: (\w+)((?: [\w.-]+)*) -->\n).*?(<!-- end -->)", re.DOTALL)


def read(folder: Path) -> Records:
    """All records by the names of their runs."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def write_page(page: Path, folder: Path) -> None:
    """Fill the blocks of a page with the records of a folder."""
    page.write_text(filled(page.read_text(encoding="utf-8"), read(folder)), encoding="utf-8")


def filled(text: str, records: Records) -> str:
    """A page's text with its blocks filled from the records."""
    kinds = {"table": table, "chart": chart, "runs": runs}

    def fill(found: re.Match[str]) -> str:
        start, kind, names, end = found.groups()
        if kind not in kinds:
            raise ValueError(f"block must be one of {', '.join(kinds)}, got {kind!r}")
        return start + "".join(f"{line}\n" for line in kinds[kind](records, names.split())) + end

    return BLOCK.sub(fill, text)


def seeds(records: Records, first: Sequence[str] = ()) -> dict[str, list[Record]]:
    """The runs of each network, by the name without ``-seed-N``; those named ``first`` lead."""
    groups: dict[str, list[Record]] = {name: [] for name in first}
    for name, record in records.items():
        groups.setdefault(name.partition("-seed-")[0], []).append(record)
    return {name: found for name, found in groups.items() if found}


def spread(runs: Sequence[Record]) -> tuple[float, float, float]:
    """The mean test accuracy of a network's runs, and its lower and upper limit.

    Of several seeds these are the lowest and the highest. Of one seed they are the ends of the
    95 % confidence interval that the number of test images gives (normal approximation): what
    another seed would give is not included.
    """
    found = [float(run["test_accuracy"]) for run in runs]
    mean = sum(found) / len(found)
    if len(found) > 1:
        return mean, min(found), max(found)
    images = sum(map(sum, runs[0]["confusion"]))
    half = 1.96 * (mean * (1 - mean) / images) ** 0.5
    return mean, mean - half, mean + half


def table(records: Records, names: Sequence[str]) -> list[str]:
    """One row per network."""
    if not records:
        return ["No run has been recorded yet."]
    head = "test accuracy", "range", "parameters", "multiply-adds", "epochs", "CPU minutes", "seeds"
    lines = [f"| run | network | {' | '.join(head)} |", f"| --- | --- |{' ---: |' * len(head)}"]
    for name, found in seeds(records, names).items():
        record, (mean, low, high) = found[0], spread(found)
        spent = [run["cpu_seconds"] for run in found]
        each = None if None in spent else sum(spent) / len(spent)
        cells = (
            f"`{name}`", network(record["config"]), f"**{percent(mean, 2)}**",
            f"{100 * low:.2f} to {percent(high, 2)}" if len(found) > 1 else "-",
            f"{record['parameters']:,}", f"{record['multiply_adds'] / 1e6:.1f} M",
            epochs(record), minutes(each), f"{len(found)}",
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def chart(records: Records, _: Sequence[str]) -> list[str]:
    """The picture of all networks."""
    says = "Test accuracy of each network with error bars, and test accuracy over epochs"
    return [f"![{says}](pictures/evidence.png)"] if records else []


def runs(records: Records, _: Sequence[str]) -> list[str]:
    """One line per run."""
    return [f"- `{name}`: {told(record)}" for name, record in records.items()]


def told(record: Record) -> str:
    """Accuracy, seed, time, machine and versions of a run, in words."""
    images = sum(map(sum, record["confusion"]))
    machine, planned = record["machine"], record["config"]["epochs"]
    parts = [f"{percent(record['test_accuracy'], 2)} of {images:,} test images"]
    if about := record["approximated"]:
        right = round(record["test_accuracy"] * images) - about["right"]
        without = percent(right / (images - about["images"]), 2)
        parts[0] += f" ({without} without the {about['images']} approximated ones)"
    if record["config"].get("validation"):
        parts.append(f"weights of epoch {record['epoch']}, chosen on the validation images")
    if record["status"] != "complete":
        why = f" ({record['stopped']})" if record["stopped"] else ""
        parts.append(f"**{record['status']}**{why}, with learning rates made for {planned}")
    parts.append(f"seed {record['config']['seed']}")
    parts.append(f"{record['seconds'] / 60:.1f} minutes of training")
    if record["cpu_seconds"] is not None:
        parts[-1] += f", {record['cpu_seconds'] / 60:.1f} of CPU time with the tests"
    when = record["ended"] or record["started"]
    day = date.fromisoformat(when) if when else None
    parts.append(device(record) + (f", {day.day} {day:%B %Y}" if day else ""))
    versions = f"invocupy {machine['invocupy']}"
    if record["commits"] and all(record["commits"]):
        versions += f" ({', '.join(record['commits'])})"
    versions += f", Python {machine['python']}, NumPy {machine['numpy']}"
    versions += f", Numba {machine['numba']}" if "numba" in machine else ""
    return "; ".join([*parts, versions]) + "."


def network(config: Record) -> str:
    """A run's network in a few words."""
    if config["model"] == "small":
        of = ", folder of images" if config["dataset"] == "folder" else ""
        return f"`SmallNet`, {config['spatial']}, width {config['width']}{of}"
    if config["model"] != "simple":
        return str(config["model"])
    signed = ", signed" if config["signed"] else ""
    head = "" if config["head_relu"] else ", linear head"
    return f"`SimpleModel`, {config['layers']} layers{signed}{head}"


def epochs(record: Record) -> str:
    """The epochs done, and those planned if they differ."""
    ended, planned = len(record["history"]["lr"]), record["config"]["epochs"]
    return str(planned) if ended == planned else f"{ended} of {planned}, cut"


def device(record: Record) -> str:
    """Where a run was trained."""
    return f"{record['machine']['device']} ({record['machine']['threads']} threads)"


def minutes(seconds: float | None) -> str:
    """Minutes, or a dash where the time is not known."""
    return "-" if seconds is None else f"{seconds / 60:.1f}"


def percent(share: float | None, digits: int = 1) -> str:
    """A share, or a dash where there is none."""
    return "-" if share is None else f"{100 * share:.{digits}f} %"
