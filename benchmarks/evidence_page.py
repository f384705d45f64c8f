"""Shows the records of ``evidence.py``: fills the marked blocks of a page.

A block begins with a line ``<!-- evidence: KIND NAME... -->`` and ends with ``<!-- end -->``:

- ``table NAME...``: all runs, those that are named first;
- ``curves``: their test accuracies over epochs and minutes, as a picture;
- ``run NAME``: a section on one run; empty as long as it has no record.

``docs/draw_pictures.py`` draws the pictures when the documentation is built.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

SHARES = "precision", "recall", "f1"

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
    """A page's text with its blocks as the records say."""
    kinds = {"table": table, "curves": curves, "run": section}

    def fill(found: re.Match[str]) -> str:
        start, kind, names, end = found.groups()
        if kind not in kinds:
            raise ValueError(f"block must be one of {', '.join(kinds)}, got {kind!r}")
        return start + "".join(f"{line}\n" for line in kinds[kind](records, names.split())) + end

    return BLOCK.sub(fill, text)


def table(records: Records, names: Sequence[str]) -> list[str]:
    """All runs, a row each."""
    if not records:
        return ["No run has been recorded yet."]
    rest = [name for name in records if name not in names]
    head = "parameters", "multiply-adds", "epochs", "minutes", "of CPU time", "test accuracy"
    lines = [f"| run | network | {' | '.join(head)} |", f"| --- | --- |{' ---: |' * len(head)}"]
    records = {name: records[name] for name in [*(n for n in names if n in records), *rest]}
    for name, record in records.items():
        cells = (
            f"`{name}`", network(record["config"]), f"{record['parameters']:,}",
            f"{record['multiply_adds'] / 1e6:.1f} M", epochs(record),
            f"{record['seconds'] / 60:.1f}", minutes(record["cpu_seconds"]),
            f"**{percent(record['test_accuracy'], 2)}**",
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "Minutes are those of the training, CPU time is that of the whole process."]
    places = list(dict.fromkeys(map(device, records.values())))
    for place in places:
        here = [f"`{name}`" for name, record in records.items() if device(record) == place]
        lines[-1] += f" {', '.join(here) if len(places) > 1 else 'All'} on {place}."
    return lines


def curves(records: Records, _: Sequence[str]) -> list[str]:
    """The picture of all runs."""
    says = "Test accuracy of each run over epochs and over minutes of CPU time"
    return [f"![{says}](pictures/evidence-curves.png)"] if records else []


def section(records: Records, names: Sequence[str]) -> list[str]:
    """One run: what it was, what it reached, where it errs."""
    (name,) = names
    if name not in records:
        return []
    record, classes = records[name], records[name]["classes"]
    matrix = record["confusion"]
    lines = [
        f"## `{name}`", "", record["what"], "", *told(record), "",
        "| class | precision | recall | F1 | most often taken for |",
        "| --- | ---: | ---: | ---: | --- |",
    ]  # fmt: skip
    for i, label in enumerate(classes):
        shares = (percent(record["per_class"][what][i]) for what in SHARES)
        others = sorted((j for j in range(len(classes)) if j != i), key=lambda j: -matrix[i][j])
        wrong = ", ".join(f"{classes[j]} {matrix[i][j]}" for j in others[:2] if matrix[i][j])
        lines.append(f"| {label} | {' | '.join(shares)} | {wrong} |")
    head = f"| true class | {' | '.join(classes)} |"
    return [
        *lines, "",
        f"![Confusion matrix of {name}: true classes in rows, the model's answers in columns]"
        f"(pictures/evidence-{name}.png)",
        "", "<details><summary>The confusion matrix as a table</summary>", "",
        head, f"| --- |{' ---: |' * len(classes)}",
        *(f"| {label} | {' | '.join(map(str, row))} |"
          for label, row in zip(classes, matrix, strict=True)),
        "", "</details>",
    ]  # fmt: skip


def told(record: Record) -> list[str]:
    """Accuracy, time, machine and versions of a run, in words."""
    images = sum(map(sum, record["confusion"]))
    best, machine = record["best_on_the_test_set"], record["machine"]
    ended, planned = len(record["history"]["lr"]), record["config"]["epochs"]
    accuracy, highest = (percent(of["test_accuracy"], 2) for of in (record, best))
    sentences = [f"**{accuracy}** of {images:,} test images are right after epoch {ended}"]
    sentences[0] += f" of {planned}."
    if record["status"] != "complete":
        why = f" ({record['stopped']})" if record["stopped"] else ""
        sentences.append(f"**The run was cut**{why}: its learning rates were made for {planned}.")
    if best["epoch"] != ended:
        sentences.append(
            f"The highest accuracy was {highest}, after epoch {best['epoch']}, but to choose that "
            "epoch is to look at the test set."
        )
    if about := record["approximated"]:
        right = round(record["test_accuracy"] * images) - about["right"]
        sentences.append(
            f"Without the {about['images']} approximated images it is "
            f"{percent(right / (images - about['images']), 2)}."
        )
    parts = [f"{record['seconds'] / 60:.1f} minutes of training"]
    if record["wall_seconds"] is not None:
        parts.append(f"{record['wall_seconds'] / 60:.1f} with the tests")
    if record["cpu_seconds"] is not None:
        parts.append(f"{record['cpu_seconds'] / 60:.1f} of CPU time")
    versions = f"invocupy {machine['invocupy']}"
    if record["commits"] and all(record["commits"]):
        versions += f" ({', '.join(record['commits'])})"
    versions += f", Python {machine['python']}, NumPy {machine['numpy']}"
    versions += f", Numba {machine['numba']}" if "numba" in machine else ""
    when = record["ended"] or record["started"]
    day = date.fromisoformat(when) if when else None
    on = f", {day.day} {day:%B %Y}" if day else ""
    facts = (
        f"{', '.join(parts)}; seed {record['config']['seed']}; {device(record)}{on}; {versions}."
    )
    return [" ".join(sentences), "", facts]


def network(config: Record) -> str:
    """A run's network in a few words."""
    if config["model"] == "small":
        return f"`SmallNet`, {config['spatial']}, width {config['width']}"
    if config["model"] != "simple":
        return str(config["model"])
    signed = ", signed" if config["signed"] else ""
    head = "" if config["head_relu"] else ", linear head"
    return f"`SimpleModel`, {config['layers']} layers{signed}{head}"


def epochs(record: Record) -> str:
    """Epochs done, and those planned if that is not the same."""
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
