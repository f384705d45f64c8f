"""Compare the lines of each folder of the package with ``lines.txt``; fail where one is past them.

Python and CUDA count, docstrings included. A folder's lines are those of all files in it and below,
but for folders that have a line of their own. ``budget.py --write`` sets what there is, rounded up.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / ".ci" / "lines.txt"
SUFFIXES = {".py", ".cu", ".cuh"}
ADVICE = (
    "Remove what is said or done twice, or what nobody uses. If the folder must grow, raise its "
    "number in .ci/lines.txt and say in the commit message what for."
)


def budgets(text: str) -> dict[str, int]:
    """Lines by folder; what follows # is a comment."""
    rows = [line.partition("#")[0].split() for line in text.splitlines()]
    return {folder: int(lines) for folder, lines in filter(None, rows)}


def counted(root: Path, folders: dict[str, int]) -> Counter[str]:
    """Each file counts for the nearest of the folders above it, and for none but that."""
    lines: Counter[str] = Counter(dict.fromkeys(folders, 0))
    for path in (root / "invocupy").rglob("*"):
        if path.suffix in SUFFIXES:
            above = (folder.relative_to(root).as_posix() for folder in path.parents)
            nearest = next(folder for folder in above if folder in folders)
            lines[nearest] += len(path.read_text("utf-8").splitlines())
    return lines


def main(*arguments: str, root: Path = ROOT, file: Path = FILE) -> int:
    text = file.read_text("utf-8")
    wanted = budgets(text)
    lines = counted(root, wanted)
    if arguments == ("--write",):
        comments = [line for line in text.splitlines() if line.startswith("#")]
        rows = [f"{folder:<28}{-(-lines[folder] // 20) * 20:>6}" for folder in wanted]
        file.write_text("\n".join([*comments, *rows]) + "\n", "utf-8")
        return 0
    past = {folder: n for folder, n in lines.items() if n > wanted[folder]}
    for folder, number in past.items():
        print(f"{folder}: {number} lines, {number - wanted[folder]} past its {wanted[folder]}")
    print(ADVICE if past else f"{sum(lines.values())} lines, within every folder's number")
    return bool(past)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
