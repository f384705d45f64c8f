"""Write ``settings.md`` from the fields of ``Config`` and the table of environment variables.

``python docs/write_settings.py``; a test fails when the page differs from them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from invocupy.settings import VARIABLES
from invocupy.train import Config
from invocupy.train.fields import values

PAGE = Path(__file__).parent / "settings.md"


def page() -> str:
    return "\n".join(lines())


def lines() -> Iterator[str]:
    yield from (
        "# Settings", "", "<!-- made by docs/write_settings.py -->", "",
        "Each is a flag of `invocupy train` and `invocupy summary`, a key of the TOML file that "
        "`--config` reads,", "and an argument of {class}`invocupy.train.Config`. Those marked * "
        "may change when a run is resumed.",
    )  # fmt: skip
    groups: dict[str, list[Field[Any]]] = {}
    for item in fields(Config):
        groups.setdefault(item.metadata["group"], []).append(item)
    for name, items in groups.items():
        yield from ("", f"## {name.capitalize()}", "")
        yield from ("| flag | meaning | default | values |", "| --- | --- | --- | --- |")
        yield from map(row, items)
    yield from ("", "## Environment variables", "")
    yield from ("| variable | sets | default |", "| --- | --- | --- |")
    for name, (sets, default) in VARIABLES.items():
        yield f"| `{name}` | {sets} | {default} |"
    yield from (
        "", "The cache folder is `$XDG_CACHE_HOME/invocupy` if that path is absolute, else "
        "`~/.cache/invocupy` on Linux", "([other systems](platforms.md)). `~` is your home folder "
        "in names of folders.", "",
    )  # fmt: skip


def row(item: Field[Any]) -> str:
    flag = item.name.replace("_", "-")
    if item.type == "bool":
        flag, default, allowed = f"[no-]{flag}", "on" if item.default else "off", "on, off"
    else:
        default = item.default
        default = " ".join(map(str, default)) if isinstance(default, tuple) else default
        default = "" if default is None else f"`{default}`"
        allowed = values(item) or "any"
    text = item.metadata["help"]
    meaning = re.sub(r":(\w+):`", r"{\1}`", text[0].upper() + text[1:]).replace("``", "`")
    star = "*" if item.metadata["free"] else ""
    return f"| `--{flag}`{star} | {meaning} | {default} | {allowed} |".replace("  ", " ")


if __name__ == "__main__":
    PAGE.write_text(page())
