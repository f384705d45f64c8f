"""The files around the package: workflows call parts of ``.ci/run``, and no address is decided."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(not (ROOT / ".ci" / "run").exists(), reason="not in a clone")


def parts() -> set[str]:
    found = re.search(r"^parts=\((.*)\)$", (ROOT / ".ci" / "run").read_text(), re.M)
    assert found
    return set(found[1].split())


def test_the_tests_workflow_runs_every_part() -> None:
    text = (ROOT / ".github" / "workflows" / "tests.yml").read_text()
    (listed,) = re.findall(r"^ +part: \[(.*)\]$", text, re.M)
    assert set(listed.split(", ")) == parts()


def test_links_of_pages_that_sphinx_does_not_build_exist() -> None:
    pages = [ROOT / "CHANGELOG.md", *(ROOT / ".github").glob("*.md")]  # README has its own test
    links = [
        page.parent / link
        for page in pages
        for link in re.findall(r"\]\((?!\w+:)([^)#]+)", page.read_text("utf-8"))
    ]
    assert len(links) >= 4
    assert [str(link) for link in links if not link.exists()] == []


@pytest.mark.parametrize("name", ["nightly", "release"])
def test_workflows_name_parts_that_exist(name: str) -> None:
    text = (ROOT / ".github" / "workflows" / f"{name}.yml").read_text()
    named = " ".join(re.findall(r"^ +part: \[(.*)\]$|\.ci/run ([a-z ]+)$", text, re.M)[0])
    assert named.strip()
    assert set(re.findall("[a-z]+", named)) <= parts()


def test_an_unknown_part_is_refused() -> None:
    done = subprocess.run([ROOT / ".ci" / "run", "tets"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "no part tets; there are train test gpu" in done.stderr


def test_the_address_of_the_repository_is_not_filled_in() -> None:
    # When it is decided: enter it in pyproject.toml and delete this test.
    command = [
        sys.executable,
        ".ci/release.py",
        "--tag",
        "v0.1.0",
        "invocupy-0.1.0.tar.gz",
        "wheel",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode != 0
    assert "repository.invalid/invocupy is a placeholder" in done.stderr


def test_the_address_of_the_repository_has_one_place() -> None:
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT)
    texts = [ROOT / name for name in listed.stdout.split() if Path(name) != Path(__file__)]
    holding = [
        path.relative_to(ROOT).as_posix()
        for path in texts
        if path.suffix in {".md", ".py", ".toml", ".yml", ".yaml", ".cff"}
        and "repository.invalid" in path.read_text()
    ]
    assert set(holding) <= {"pyproject.toml", "tests/test_readme.py", "tests/test_repository.py"}
