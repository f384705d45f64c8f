"""The flags for a run's settings, and the settings that they and a file make."""

from __future__ import annotations

import argparse
import sys
from dataclasses import Field, fields
from typing import TYPE_CHECKING, Any

from invocupy.cli.options import Parser, path

if TYPE_CHECKING:
    from invocupy.train import Config

_SMOKE = {"limit": 64, "batch_size": 16, "epochs": 1}
_KINDS: dict[str, dict[str, Any]] = {
    "int": {"type": int, "metavar": "N"},
    "float": {"type": float, "metavar": "X"},
    "tuple[float,": {"type": float, "metavar": "X", "nargs": "*"},
    "bool": {"action": argparse.BooleanOptionalAction},
    "str": {"metavar": "NAME"},
    "auto": {
        "type": lambda text: {"on": True, "off": False}.get(text, text),
        "metavar": "auto|on|off",
    },
    "DIR": {"type": path, "metavar": "DIR"},
}


def add_settings(parser: Parser) -> None:
    """Add a flag for each setting to a parser whose ``argument_default`` is ``SUPPRESS``."""
    from invocupy.train import Config

    groups: dict[str, Any] = {}
    for item in fields(Config):
        name = item.metadata["group"]
        group = groups[name] = groups.get(name) or parser.add_argument_group(name)
        unit = "auto" if item.type == "str | bool" else item.metadata["unit"]
        kind = _KINDS[unit if unit in _KINDS else item.type.split()[0]]
        group.add_argument(f"--{item.name.replace('_', '-')}", help=_help(item), **kind)
    parser.add_argument(
        "--smoke", action="store_true",
        help="check the installation: one short epoch (64 images in batches of 16)",
    )  # fmt: skip
    parser.add_argument(
        "--config", metavar="FILE", type=path,
        help="read settings named like these flags from a TOML file (or a run's config.json); "
        "flags override it",
    )  # fmt: skip


def _help(item: Field[Any]) -> str:
    """The first sentence about a setting, its choices and its default."""
    text = str(item.metadata["help"]).partition(". ")[0]
    notes = [", ".join(item.metadata["choices"])] if item.metadata["choices"] else []
    if isinstance(item.default, bool):
        notes += ["default on" if item.default else "default off"]
    elif isinstance(item.default, tuple):
        notes += ["default " + " ".join(map(str, item.default))]
    elif item.default is not None:
        notes += [f"default {item.default}"]
    return f"{text} ({'; '.join(notes)})".removesuffix(" ()").replace("%", "%%")


def given_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The given settings: flags override ``--smoke``, which overrides the file."""
    from invocupy.train import Config, read_settings

    given = vars(arguments)
    flags = {item.name: given[item.name] for item in fields(Config) if item.name in given}
    settings = read_settings(given["config"]) if "config" in given else {}
    if "smoke" in given:
        settings |= _SMOKE
        if "overfit" in flags | settings:
            del settings["limit"]
    return settings | flags


def tell_unused(config: Config) -> None:
    """A line for each setting that has no effect."""
    for line in config.unused():
        print(f"invocupy: {line}", file=sys.stderr)
