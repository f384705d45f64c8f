"""``invocupy evaluate``: measure a trained model on its test set."""

from __future__ import annotations

import argparse

from invocupy.cli.options import Commands, add_run, bar, command, model_from, tell
from invocupy.messages import printable


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    add_run(command(commands, "evaluate", _run, help="measure a trained model on its test set"))


def _run(arguments: argparse.Namespace) -> int:
    from invocupy.train import evaluate, open_run, pick_device
    from invocupy.train.sets import read_test_set

    own = model_from(arguments.model_from)
    config, model, history, about = open_run(arguments.run, arguments.checkpoint, own)
    model.to(pick_device(arguments.device))
    images, labels = read_test_set(config, about, arguments.data_dir)
    with bar("test images") as progress:
        loss, accuracy, confusion = evaluate(
            model, images, labels, **about.style(), progress=progress
        )
    totals, right = confusion.sum(axis=1).tolist(), confusion.diagonal().tolist()
    shares = [hits / total if total else None for hits, total in zip(right, totals, strict=True)]
    names = about.names(len(confusion))
    result = {
        "run": arguments.run, "checkpoint": arguments.checkpoint, "epochs": len(history),
        "dataset": about.dataset, "images": len(images), "loss": loss, "accuracy": accuracy,
        "classes": names, "class_accuracy": shares, "confusion": confusion.tolist(),
    }  # fmt: skip
    lines = [
        f"test accuracy {accuracy:.2%}, loss {loss:.4g} on {len(images)} images of "
        f"{about.dataset}, {arguments.checkpoint} checkpoint (epoch {len(history)})",
        "confusion matrix; rows: true class and its accuracy; columns, same order: predicted class",
    ]
    shown = [map(printable, names), ["     -" if s is None else f"{s:6.1%}" for s in shares]]
    width = max(map(len, names))
    for name, share, counts in zip(*shown, confusion, strict=True):
        lines.append(" ".join([f"{name:>{width}} {share}", *(f"{count:5}" for count in counts)]))
    return tell(arguments, result, *lines)
