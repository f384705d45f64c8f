"""What holds for every file: sizes that a reader can take in, and one word for each thing."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from runpy import run_path

import pytest

ROOT = Path(__file__).parents[1]
SUFFIXES = {".py", ".cu", ".cuh", ".cpp", ".h"}
LINES, PARAMETERS, NESTING = 400, 12, 5
BLOCKS = (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.Match)

# The word that the project uses, and those for which it stands.
GLOSSARY = {
    "is_root": r"\bspeaks\b",
    "allreduce_sum": r"\badd_up\b",
    "abort_all": r"\bend_all\b",
    "cast_like": r"\bnative\(",
    "vjp": r"\bpartials\b",
    "broadcast": r"\bv\.spread\(|\bspread_\w",
    "mask": r"(?<!\.)\blanes\(",
    "transposed": r"\bturned[:=]",
    "publish, retract": r"\bhang(s|ing)? (up|out)\b|\bhung\b",
    "per second": r"(images|GB|steps|pixels|operations|bytes) a second",
    "layer": r"\brooms?\b (below|above|beside)",
}

TOP = {path.name for folder in (ROOT, ROOT / "invocupy") for path in folder.iterdir()}


def sources(*folders: str, suffixes: set[str] = SUFFIXES) -> Iterator[Path]:
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in suffixes and not {".build", "_build", "__pycache__"} & {*path.parts}:
                yield path


def nesting(node: ast.AST) -> int:
    """How many blocks lie in each other, where elif counts as the if that it continues."""
    deepest = 0
    for field, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, (ast.FunctionDef, ast.ClassDef)):
                continue
            chained = field == "orelse" and isinstance(node, ast.If) and len(value) == 1
            block = isinstance(child, BLOCKS) and not (chained and isinstance(child, ast.If))
            deepest = max(deepest, block + nesting(child))
    return deepest


def faults_of(name: str, text: str) -> list[str]:
    """Each in one line that begins with the place."""
    count = len(text.splitlines())
    found = [f"{name}: {count} lines, at most {LINES}"] if count > LINES else []
    for node in ast.walk(ast.parse(text)) if name.endswith(".py") else ():
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            place = f"{name}: {node.name}"
            a = node.args
            parameters = [
                *a.posonlyargs,
                *a.args,
                *a.kwonlyargs,
                *filter(None, [a.vararg, a.kwarg]),
            ]
            if len(parameters) > PARAMETERS and not name.startswith("tests/"):
                found.append(f"{place}: {len(parameters)} parameters, at most {PARAMETERS}")
            if nesting(node) > NESTING:
                found.append(f"{place}: nesting {nesting(node)}, at most {NESTING}")
    return found


def words_of(name: str, text: str) -> list[str]:
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        for word, others in GLOSSARY.items():
            other = re.search(others, line)
            if other and not (word == "vjp" and "testing" in name):  # of check_partials
                found.append(f"{name}:{number}: say {word}, not {other[0]!r}")
    return found


def test_sizes() -> None:
    paths = sources("invocupy", "tests", "benchmarks")
    texts = {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in paths}
    assert len(texts) > 200
    found = [fault for name, text in texts.items() for fault in faults_of(name, text)]
    assert not found, "\n".join(found)


def test_glossary() -> None:
    paths = [*sources("invocupy", "docs", suffixes=SUFFIXES | {".md"}), ROOT / "README.md"]
    texts = {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in paths}
    found = [fault for name, text in texts.items() for fault in words_of(name, text)]
    assert not found, "\n".join(found)


def test_pages_name_files_that_exist() -> None:
    pages = [*sources("docs", suffixes={".md"}), ROOT / "README.md", ROOT / "CHANGELOG.md"]
    named = [
        (p.name, n)
        for p in pages
        for n in re.findall(r"`([a-z_./-]+/[a-z_.-]*)`", p.read_text("utf-8"))
    ]
    ours = [(p, n) for p, n in named if n.split("/")[0] in TOP]
    assert len(ours) > 30
    wrong = [
        (p, n) for p, n in ours if not ((ROOT / n).exists() or (ROOT / "invocupy" / n).exists())
    ]
    assert not wrong


DEEP = "def f(x):\n" + "".join("    " * n + "if x:\n" for n in range(1, 7)) + "    " * 7 + "pass\n"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("\n" * (LINES + 1), "401 lines"),
        (f"def f({', '.join(f'a{n}' for n in range(11))}, *b, **c): pass", "13 parameters"),
        (DEEP, "nesting 6"),
        ("def f(x):\n    if x: pass\n" + "    elif x: pass\n" * 9, ""),
        (DEEP.replace("if x:", "while x:", 1), "nesting 6"),
        (DEEP.replace("        if x", "        with x", 1), "nesting 6"),
    ],
)
def test_what_is_too_large_is_found(text: str, fault: str) -> None:
    found = faults_of("invocupy/new.py", text)
    assert len(found) == bool(fault)
    assert all(fault in line and line.startswith("invocupy/new.py") for line in found)


@pytest.mark.parametrize(
    "line",
    [
        "if comm.speaks:",
        "_, partials = op(x)",
        "v.spread(x)",
        "hangs up a job",
        "9 images a second",
    ],
)
def test_other_words_are_found(line: str) -> None:
    (found,) = words_of("page.md", f"fine\n{line}\n")
    assert found.startswith("page.md:2: say ")
    assert not words_of("x", "functools.partial(f); check_partials(op); partial sums; spread out")


def test_a_folder_that_grows_past_its_lines_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    budget = run_path(str(ROOT / ".ci" / "budget.py"))["main"]
    for name, lines in {"a.py": 3, "new/b.py": 4, "wing/c.cu": 5, "wing/op/d.cuh": 6}.items():
        path = tmp_path / "invocupy" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n" * lines)
    file = tmp_path / "lines.txt"
    file.write_text("# of folders\ninvocupy 7\ninvocupy/wing 11 # both\n")
    assert budget(root=tmp_path, file=file) == 0
    (tmp_path / "invocupy" / "new" / "b.py").write_text("\n" * 5)
    assert budget(root=tmp_path, file=file) == 1
    said = capsys.readouterr().out
    assert "invocupy: 8 lines, 1 past its 7" in said
    assert "invocupy/wing" not in said
    assert "raise its number in .ci/lines.txt" in said
    budget("--write", root=tmp_path, file=file)
    assert budget(root=tmp_path, file=file) == 0
