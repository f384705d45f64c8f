"""``invocupy evaluate``."""

from __future__ import annotations

import argparse

from invocupy.cli.options import Commands, add_json, add_run, bar, path, print_json


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("evaluate", help="measure a trained model on its test set")
    parser.set_defaults(command=_run)
    add_run(parser)
    parser.add_argument(
        "--data-dir", metavar="DIR", type=path, help="where the files of cifar10 lie now"
    )
    add_json(parser)


def _run(arguments: argparse.Namespace) -> int:
    from dataclasses import replace

    from invocupy.train import DATASETS, evaluate, load_data, load_run, pick_device

    config, model, history = load_run(arguments.run, arguments.checkpoint)
    if arguments.data_dir is not None:
        config = replace(config, data_dir=arguments.data_dir)
    config = replace(config, device=arguments.device)
    dataset = DATASETS[config.dataset]
    model.to(pick_device(config.device))
    images, labels = load_data(config, train=False)
    with bar("test images") as progress:
        loss, accuracy, confusion = evaluate(
            model, images, labels, mean=dataset.mean, std=dataset.std, progress=progress
        )
    totals = confusion.sum(axis=1)
    shares = [
        int(confusion[i, i]) / int(total) if total else None for i, total in enumerate(totals)
    ]
    epochs = len(history)
    if arguments.json:
        result = {
            "run": arguments.run, "checkpoint": arguments.checkpoint, "epochs": epochs,
            "dataset": config.dataset, "images": len(images),
            "loss": loss, "accuracy": accuracy,
            "classes": dataset.classes, "class_accuracy": shares, "confusion": confusion.tolist(),
        }  # fmt: skip
        print_json(result)
        return 0
    print(
        f"test accuracy {accuracy:.2%}, loss {loss:.4g} on {len(images)} images of "
        f"{config.dataset}, {arguments.checkpoint} checkpoint (epoch {epochs})"
    )
    width = max(map(len, dataset.classes))
    print("rows: the true class and its accuracy; columns, in the same order: the answer")
    for name, share, counts in zip(dataset.classes, shares, confusion, strict=True):
        accuracy_text = "     -" if share is None else f"{share:6.1%}"
        print(f"{name:>{width}} {accuracy_text}", *(f"{count:5}" for count in counts))
    return 0
