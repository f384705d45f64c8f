"""Are source archive and wheel complete, and nothing else in them?

``release.py [--tag vX.Y.Z] SDIST WHEEL``; with a tag also: may they be published under it?
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

SUFFIXES = {".py", ".pyi", ".cu", ".cuh", ".html", ".typed"}
IN_SDIST = ("invocupy/", "tests/", "benchmarks/", "docs/")
BESIDE = {"README.md", "CHANGELOG.md", "CITATION.cff", "LICENSE", "pyproject.toml"}
ADDED = {"PKG-INFO", ".gitignore"}  # by the build


def same(what: str, found: set[str], wanted: set[str]) -> None:
    if found != wanted:
        sys.exit(f"{what}: unasked {sorted(found - wanted)}, missing {sorted(wanted - found)}")


def may_publish(tag: str, sdist: str) -> None:
    """Refuse a tag that is not the version's, and an address that nobody has decided."""
    address = tomllib.loads(Path("pyproject.toml").read_text())["project"]["urls"]["Repository"]
    if ".invalid/" in address:
        sys.exit(f"pyproject.toml: {address} is a placeholder: enter the repository's address")
    if tag != f"v{Path(sdist).name.removeprefix('invocupy-').removesuffix('.tar.gz')}":
        sys.exit(f"tag {tag} is not the version of {Path(sdist).name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tag")
    parser.add_argument("sdist")
    parser.add_argument("wheel")
    asked = parser.parse_args()
    if asked.tag:
        may_publish(asked.tag, asked.sdist)
    complete(asked.sdist, asked.wheel)


def complete(sdist: str, wheel: str) -> None:
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True)
    tracked = set(listed.stdout.split())

    with tarfile.open(sdist) as archive:
        names = {Path(m.name).relative_to(Path(m.name).parts[0]) for m in archive if m.isfile()}
    wanted = {name for name in tracked if name.startswith(IN_SDIST)} | BESIDE | ADDED
    same("source archive", {name.as_posix() for name in names}, wanted)

    files = set(zipfile.ZipFile(wheel).namelist())
    package = {name for name in tracked if name.startswith("invocupy/")}
    if odd := {name for name in package if Path(name).suffix not in SUFFIXES}:
        sys.exit(f"package: neither source nor a page: {sorted(odd)}")
    about = {name for name in files if name.split("/")[0].endswith(".dist-info")}
    same("wheel", files - about, package)
    print(f"source archive {len(names)} files, wheel {len(files)}")


if __name__ == "__main__":
    main()
