"""``invocupy summary``: the size and memory of a run; nothing is trained."""

from __future__ import annotations

import argparse
from collections.abc import Hashable
from itertools import groupby
from typing import TYPE_CHECKING

from invocupy.cli.options import Commands, command, table, tell
from invocupy.cli.settings import add_settings, given_settings, tell_unused

if TYPE_CHECKING:
    from invocupy.summary import Layer


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    command(
        commands, "summary", _run, late=add_settings, argument_default=argparse.SUPPRESS,
        help="layers, parameters, multiply-adds and estimated memory of a run; nothing is trained",
        description="Sizes and memory of the run that train would start with the same flags.",
    )  # fmt: skip


def _run(arguments: argparse.Namespace) -> int:
    from dataclasses import asdict

    from invocupy.summary import layers
    from invocupy.train import Config, build, estimate, free_memory, pick_device
    from invocupy.train.needs import size
    from invocupy.train.sets import describe

    config = Config(**given_settings(arguments))
    tell_unused(config)
    device = pick_device(config.device)
    about = describe(config)
    model = build(config, about).to(device)
    rows = layers(model, about.shape)
    needs, free = estimate(config, model, about), free_memory(device)
    step, evaluation = needs.training_peak(config), needs.evaluation_peak()
    fits = max(step, evaluation) <= free
    result = {
        "layers": [row._asdict() for row in rows],
        "parameters": rows[0].parameters, "macs": rows[0].macs,
        "memory": {
            "training": step, "evaluation": evaluation, "program": needs.program,
            "data": needs.data, "free": free, "fits": fits,
            "training_per_image": needs.training.per_image,
        },
        "device": device, "config": asdict(config),
    }  # fmt: skip
    cells = [("layer", "kind", "output", "parameters", "multiply-adds"), *_lines(rows)]
    parts = f" in {config.accumulate} parts" if config.accumulate > 1 else ""
    return tell(
        arguments,
        result,
        table(cells, "<<<>>"),
        f"\n{rows[0].parameters:,} parameters, {rows[0].macs:,} multiply-adds per image",
        f"memory on {device}: training step {size(step)} (batches of {config.batch_size}{parts}), "
        f"evaluation {size(evaluation)} ({needs.tested} images at a time); "
        f"{'fits' if fits else 'DOES NOT FIT'}, {size(free)} are free",
        f"including program {size(needs.program)}; images {size(needs.data)}; weights, gradients "
        f"and velocities {size(needs.training.fixed)}; each image of a batch "
        f"{size(needs.training.per_image)}",
    )


def _lines(rows: list[Layer]) -> list[tuple[str, ...]]:
    """One line per layer; equal neighbours, with all below them, share one."""
    below: dict[str, list[Layer]] = {}
    for row in rows[1:]:
        below.setdefault(row.name.rpartition(".")[0], []).append(row)

    def content(row: Layer) -> Hashable:
        return row[1:], *map(content, below.get(row.name, []))

    def walk(parent: str, depth: int) -> list[tuple[str, ...]]:
        lines = []
        for _, group in groupby(below.get(parent, []), content):
            first, *others = group
            name, times = first.name.rpartition(".")[2], ""
            if others:
                name += f" to {others[-1].name.rpartition('.')[2]}"
                times = f"{len(others) + 1} x "
            costs = (f"{times}{n:,}" if n else "" for n in (first.parameters, first.macs))
            shape = " x ".join(map(str, first.shape))
            lines += [("  " * depth + name, first.kind, shape, *costs)]
            lines += walk(first.name, depth + 1)
        return lines

    return walk("", 0)
