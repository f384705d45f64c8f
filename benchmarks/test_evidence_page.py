"""The page on CIFAR-10 shows the records, and says no more."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import evidence
import evidence_page as page
import pytest

from invocupy.train import read_settings

ROOT = Path(__file__).parents[1]

PAGE = ROOT / "docs" / "cifar10.md"
RECORDS = page.read(evidence.RESULTS)
TOMLS = sorted(evidence.CONFIGS.glob("*.toml"))
TINY = """# Shows that
# the program works.
layers = 0
epochs = 3
limit = 40
batch-size = 10
ema = 0.5
device = "cpu"
"""

# --- what every record must be ------------------------------------------------------------------


def test_each_configuration_is_of_an_honest_run() -> None:
    for path in TOMLS:
        what, config = evidence.committed(path.stem)
        assert what.endswith("."), path
        assert config.dataset == "cifar10"
        assert config.limit is config.overfit is None  # all images
        assert config.patience is None  # the test set must not say when to stop
        assert "data_dir" not in read_settings(path)


def test_the_page_shows_the_records() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert page.filled(text, RECORDS) == text
    blocks = [match.group(2) for match in page.BLOCK.finditer(text)]
    assert text.count("<!-- evidence:") == text.count("<!-- end -->") == len(blocks)
    assert {"table", "curves", "run"} <= set(blocks)


# --- the program, on generated images -----------------------------------------------------------


def run(place: Path, *arguments: str) -> int:
    return int(evidence.main(["tiny", "--runs", str(place / "runs"), *arguments]))


def result(place: Path) -> dict[str, Any]:
    return dict(json.loads((place / "results" / "tiny.json").read_text()))


# --- the checks, and the page -------------------------------------------------------------------


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A record to spoil and to show."""
    folder = tmp_path_factory.mktemp("evidence")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evidence, "CONFIGS", folder)
        patch.setattr(evidence, "RESULTS", folder / "results")
        (folder / "tiny.toml").write_text(TINY)
        assert run(folder) == 0
        return result(folder)


BLOCKS = """# Page

<!-- evidence: table second -->
old
<!-- end -->
between
<!-- evidence: curves -->
<!-- end -->
<!-- evidence: run tiny -->
<!-- end -->
<!-- evidence: run missing -->
<!-- end -->
after
"""


def test_blocks(record: dict[str, Any]) -> None:
    nothing = page.filled(BLOCKS, {})
    assert "No run has been recorded yet." in nothing
    assert "old" not in nothing
    assert "![" not in nothing
    cut = copy.deepcopy(record)
    cut["config"]["epochs"], cut["status"] = 9, "cut after epoch 3 of 9"
    cut["stopped"] = "interrupted in epoch 4 after step 13"
    text = page.filled(BLOCKS, {"tiny": record, "second": cut})
    assert page.filled(text, {"tiny": record, "second": cut}) == text
    assert re.findall(r"^\| `(\w+)` .* \| (\d.*?) \| [\d.]+ \| [\d.]+ \| \*\*", text, re.M) == [
        ("second", "3 of 9, cut"), ("tiny", "3"),
    ]  # fmt: skip
    assert "between\n<!-- evidence: curves -->\n![" in text
    assert text.endswith("<!-- evidence: run missing -->\n<!-- end -->\nafter\n")
    assert f"**{100 * record['test_accuracy']:.2f} %** of 40 test images are right after" in text
    for label, row in zip(record["classes"], record["confusion"], strict=True):
        assert f"| {label} | {' | '.join(map(str, row))} |" in text
    one = page.filled("<!-- evidence: run second -->\n<!-- end -->", {"second": cut})
    assert "**The run was cut** (interrupted in epoch 4 after step 13)" in one
    with pytest.raises(ValueError, match="block must be one of"):
        page.filled("<!-- evidence: chart -->\n<!-- end -->", {})
