"""Measures the size of an installation on disk: ``python benchmarks/install.py --out FILE``.

Each set of extras gets a virtual environment of its own; sizes are those of the installed packages
without the package itself, pip and compiled bytecode.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import tomllib
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXTRAS = "", "plots", "cuda13x"


def requirements(extra: str) -> list[str]:
    """What pip installs in addition to the package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *project["optional-dependencies"].get(extra, [])]


def megabytes(wanted: list[str]) -> int:
    """The size of packages and of what they need."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile"]
        subprocess.run([*command, "--target", folder, *wanted], check=True)
        files = [path for path in Path(folder).rglob("*") if path.is_file()]
        return round(sum(path.stat().st_size for path in files) / 1e6)


def main() -> None:
    """Read the command line, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    sizes = {extra or "none": megabytes(requirements(extra)) for extra in EXTRAS}
    about = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "platform": platform.platform()}
    about |= {"python": platform.python_version()}
    asked.out.write_text(json.dumps({**about, "megabytes": sizes}, indent=1) + "\n")


if __name__ == "__main__":
    main()
