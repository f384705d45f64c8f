"""Constraints that hold the package's dependencies at the lowest versions that it says it takes.

The tools of the tests stay at the versions of ``locked.txt``.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def name(line: str) -> str:
    return re.split(r"[=<>~! \[]", line, maxsplit=1)[0]


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lowest = [line.partition(",")[0].replace(">=", "==") for line in project["dependencies"]]
    theirs = {name(line) for line in lowest} | {"llvmlite"}
    locked = (ROOT / ".ci" / "locked.txt").read_text().splitlines()
    tools = [line for line in locked if line[0] != "#" and name(line) not in theirs]
    print("\n".join(lowest + tools))


if __name__ == "__main__":
    main()
