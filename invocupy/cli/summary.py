"""``invocupy summary``: what a run would cost, without running it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from invocupy.cli.options import Commands, command, print_json, table
from invocupy.cli.settings import add_settings, given_settings

if TYPE_CHECKING:
    from invocupy.summary import Layer


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    command(
        commands, "summary", _run, late=add_settings, argument_default=argparse.SUPPRESS,
        help="layers, parameters, multiply-adds and estimated memory of a run; nothing is trained",
        description="What the run that train would start with these flags costs.",
    )  # fmt: skip


def _run(arguments: argparse.Namespace) -> int:
    from dataclasses import asdict

    from invocupy.summary import layers
    from invocupy.train import Config, build, estimate, free_memory, pick_device
    from invocupy.train.needs import size

    config = Config(**given_settings(arguments))
    device = pick_device(config.device)
    model = build(config).to(device)
    rows = layers(model)
    needs, free = estimate(config, model), free_memory(device)
    step, evaluation = needs.training_peak(config), needs.evaluation_peak()
    if arguments.json:
        result = {
            "layers": [row._asdict() for row in rows],
            "parameters": rows[0].parameters, "macs": rows[0].macs,
            "memory": {
                "training": step, "evaluation": evaluation, "program": needs.program,
                "data": needs.data, "free": free, "fits": max(step, evaluation) <= free,
                "training_per_image": needs.training.per_image,
            },
            "device": device, "config": asdict(config),
        }  # fmt: skip
        print_json(result)
        return 0
    cells = [("layer", "kind", "output", "parameters", "multiply-adds"), *_lines(rows)]
    print(table(cells, "<<<>>"))
    batch = f"batches of {config.batch_size}"
    if config.accumulate > 1:
        batch += f" in {config.accumulate} parts"
    fits = "fits" if max(step, evaluation) <= free else "DOES NOT FIT"
    print(
        f"\n{rows[0].parameters:,} parameters, {rows[0].macs:,} multiply-adds an image\n"
        f"memory on {device}: training step {size(step)} ({batch}), evaluation {size(evaluation)} "
        f"({needs.tested} images at a time); {fits}, {size(free)} are free\n"
        f"of it the program {size(needs.program)}, the images {size(needs.data)}, weights, "
        f"gradients and velocities {size(needs.training.fixed)}, and each image of a batch "
        f"{size(needs.training.per_image)}"
    )
    return 0


def _lines(rows: list[Layer]) -> list[tuple[str, ...]]:
    """A line a layer; siblings that are alike share one."""
    below: dict[str, list[int]] = {}
    for i, row in enumerate(rows[1:], 1):
        below.setdefault(row.name.rpartition(".")[0], []).append(i)

    def alike(i: int, j: int) -> bool:
        one, other = rows[i], rows[j]
        inner, others = below.get(one.name, []), below.get(other.name, [])
        return (
            one[1:] == other[1:]
            and len(inner) == len(others)
            and all(map(alike, inner, others))
        )  # fmt: skip

    def walk(parent: str, depth: int) -> list[tuple[str, ...]]:
        lines = []
        rest = below.get(parent, [])
        while rest:
            first = rows[rest[0]]
            count = 1
            while count < len(rest) and alike(rest[0], rest[count]):
                count += 1
            name, times = first.name.rpartition(".")[2], f"{count} x " if count > 1 else ""
            if count > 1:
                name += f" to {rows[rest[count - 1]].name.rpartition('.')[2]}"
            costs = (f"{times}{n:,}" if n else "" for n in (first.parameters, first.macs))
            shape = " x ".join(map(str, first.shape))
            lines += [("  " * depth + name, first.kind, shape, *costs)]
            lines += walk(first.name, depth + 1)
            rest = rest[count:]
        return lines

    return walk("", 0)
