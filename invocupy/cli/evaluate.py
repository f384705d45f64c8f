"""``invocupy evaluate``: how well a trained model does on its test set."""

from __future__ import annotations

import argparse

from invocupy.cli.options import Commands, add_run, bar, command, tell


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    add_run(command(commands, "evaluate", _run, help="measure a trained model on its test set"))


def _run(arguments: argparse.Namespace) -> int:
    from dataclasses import replace

    from invocupy.train import DATASETS, evaluate, load_data, load_run, pick_device

    config, model, history = load_run(arguments.run, arguments.checkpoint)
    folder = arguments.data_dir or config.data_dir
    config = replace(config, data_dir=folder, device=arguments.device)
    dataset = DATASETS[config.dataset]
    model.to(pick_device(config.device))
    images, labels = load_data(config, train=False)
    with bar("test images") as progress:
        loss, accuracy, confusion = evaluate(
            model, images, labels, mean=dataset.mean, std=dataset.std, progress=progress
        )
    totals, right = confusion.sum(axis=1).tolist(), confusion.diagonal().tolist()
    shares = [hits / total if total else None for hits, total in zip(right, totals, strict=True)]
    result = {
        "run": arguments.run, "checkpoint": arguments.checkpoint, "epochs": len(history),
        "dataset": config.dataset, "images": len(images), "loss": loss, "accuracy": accuracy,
        "classes": dataset.classes, "class_accuracy": shares, "confusion": confusion.tolist(),
    }  # fmt: skip
    lines = [
        f"test accuracy {accuracy:.2%}, loss {loss:.4g} on {len(images)} images of "
        f"{config.dataset}, {arguments.checkpoint} checkpoint (epoch {len(history)})",
        "rows: the true class and its accuracy; columns, in the same order: the answer",
    ]
    width = max(map(len, dataset.classes))
    for name, share, counts in zip(dataset.classes, shares, confusion, strict=True):
        text = "     -" if share is None else f"{share:6.1%}"
        lines.append(" ".join([f"{name:>{width}} {text}", *(f"{count:5}" for count in counts)]))
    return tell(arguments, result, *lines)
