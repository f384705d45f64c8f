"""The flags for a run's settings, and the settings that they and a file make."""

from __future__ import annotations

import argparse
from typing import Any

from invocupy.cli.options import path

_SMOKE = {"limit": 64, "batch_size": 16, "epochs": 1}


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each setting; those that are not given leave no trace.

    The parser must have ``argument_default=argparse.SUPPRESS``: ``invocupy.train.Config`` has the
    defaults.
    """
    on_off = argparse.BooleanOptionalAction
    what = parser.add_argument_group("data and model")
    what.add_argument("--dataset", metavar="NAME", help="shapes10 (generated) or cifar10")
    what.add_argument("--data-dir", metavar="DIR", type=path, help="where the files of cifar10 lie")
    what.add_argument("--limit", metavar="N", type=int, help="use the first N images only")
    what.add_argument("--augment", metavar="NAME", help="auto, none or crop_flip")
    what.add_argument("--cutout", metavar="N", type=int, help="cover squares of N x N pixels")
    what.add_argument("--model", metavar="NAME", help="simple, small, rednet26, ..., resnet50")
    what.add_argument("--layers", metavar="N", type=int, help="blocks of the simple model")
    what.add_argument(
        "--head-relu", action=on_off,
        help="of the simple model: a ReLU after the first two dense layers (default)",
    )  # fmt: skip
    what.add_argument(
        "--signed", action=on_off, help="of the simple model: no ReLU before a block's sum"
    )
    what.add_argument(
        "--recompute", action=on_off,
        help="of the simple model on a CPU: save memory (default), or a tenth of the time",
    )  # fmt: skip
    what.add_argument(
        "--spatial", metavar="NAME",
        help="of the small model: involution, convolution or depthwise",
    )  # fmt: skip
    what.add_argument("--width", metavar="N", type=int, help="channels of the small model")
    what.add_argument("--seed", metavar="N", type=int)
    what.add_argument("--device", metavar="NAME", help="auto, cpu, cuda or cuda:i")

    how = parser.add_argument_group("training")
    how.add_argument("--epochs", metavar="N", type=int)
    how.add_argument("--batch-size", metavar="N", type=int, help="of all ranks together")
    how.add_argument(
        "--accumulate", metavar="N", type=int,
        help="cut each batch into N parts to save memory; only batch norm sees a difference",
    )  # fmt: skip
    how.add_argument(
        "--sync-norm", action=on_off,
        help="on several ranks: batch norm sees the batch of all of them (default), or of one",
    )  # fmt: skip
    how.add_argument("--lr", metavar="X", type=float, help="highest learning rate")
    how.add_argument("--schedule", metavar="NAME", help="one_cycle, cosine, step or constant")
    how.add_argument("--warmup", metavar="N", type=int, help="steps in which the rate rises first")
    how.add_argument(
        "--milestones", metavar="X", type=float, nargs="*",
        help="with step: shares of the run at which the rate drops (0.5 0.75)",
    )  # fmt: skip
    how.add_argument("--drop", metavar="X", type=float, help="with step: the factor (0.1)")
    how.add_argument("--momentum", metavar="X", type=float)
    how.add_argument("--nesterov", action=on_off)
    how.add_argument("--weight-decay", metavar="X", type=float)
    how.add_argument("--decay-biases", action=on_off, help="weight decay for biases and norms, too")
    how.add_argument("--clip-norm", metavar="X", type=float, help="largest norm of all gradients")
    how.add_argument("--label-smoothing", metavar="X", type=float)
    how.add_argument("--ema", metavar="X", type=float, help="average the weights; e.g. 0.999")
    how.add_argument(
        "--patience", metavar="N", type=int, help="stop after N epochs that are not better"
    )
    how.add_argument(
        "--overfit", metavar="N", type=int,
        help="train and test on the same N images: should reach 100 %%",
    )  # fmt: skip
    how.add_argument(
        "--smoke", action="store_true",
        help="one short epoch (64 images in batches of 16): does everything work?",
    )  # fmt: skip
    parser.add_argument(
        "--config", metavar="FILE", type=path,
        help="TOML with settings named like these flags (or a run's config.json); flags win",
    )  # fmt: skip


def given_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given: by flags, then ``--smoke``, then the file.

    Raises
    ------
    invocupy.train.ConfigError
        If the file cannot be used.
    """
    from dataclasses import fields

    from invocupy.train import Config, read_settings

    names = {item.name for item in fields(Config)}
    flags = {name: value for name, value in vars(arguments).items() if name in names}
    file = getattr(arguments, "config", None)
    settings = read_settings(file) if file is not None else {}
    if getattr(arguments, "smoke", False):
        settings |= _SMOKE
        if "overfit" in flags | settings:
            del settings["limit"]
    return settings | flags
