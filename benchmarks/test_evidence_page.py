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
        assert config.dataset in ("cifar10", "folder")
        assert config.limit is config.overfit is None  # all images
        assert config.patience is None or config.validation  # the test set must not say when
        assert "data_dir" not in read_settings(path)


def test_the_page_shows_the_records() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert page.filled(text, RECORDS) == text
    blocks = [match.group(2) for match in page.BLOCK.finditer(text)]
    assert text.count("<!-- evidence:") == text.count("<!-- end -->") == len(blocks)
    assert {"table", "chart", "runs"} <= set(blocks)


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
<!-- evidence: chart -->
<!-- end -->
<!-- evidence: runs -->
<!-- end -->
after
"""


def test_blocks(record: dict[str, Any]) -> None:
    nothing = page.filled(BLOCKS, {})
    assert "No run has been recorded yet." in nothing
    assert "old" not in nothing
    assert "![" not in nothing
    cut, other = copy.deepcopy(record), copy.deepcopy(record)
    cut["config"]["epochs"], cut["status"] = 9, "cut after epoch 3 of 9"
    cut["stopped"] = "interrupted in epoch 4 after step 13"
    other["config"]["seed"], other["test_accuracy"] = 1, record["test_accuracy"] + 0.1
    records = {"tiny": record, "second": cut, "tiny-seed-1": other}
    text = page.filled(BLOCKS, records)
    assert page.filled(text, records) == text
    mean, low = 100 * (record["test_accuracy"] + 0.05), 100 * record["test_accuracy"]
    rows = re.findall(
        r"^\| `(\w+)` \| .*? \| (.*?) \| (.*?) \| .* M \| (\d.*?) \| [\d.]+ \| (\d) \|$", text, re.M
    )
    assert rows == [
        ("second", f"**{low:.2f} %**", "-", "3 of 9, cut", "1"),
        ("tiny", f"**{mean:.2f} %**", f"{low:.2f} to {low + 10:.2f} %", "3", "2"),
    ]  # fmt: skip
    assert "between\n<!-- evidence: chart -->\n![" in text
    assert text.endswith("<!-- end -->\nafter\n")
    assert f"- `tiny`: {low:.2f} % of 40 test images; seed 0;" in text
    assert "**cut after epoch 3 of 9** (interrupted in epoch 4 after step 13)" in text
    with pytest.raises(ValueError, match="block must be one of"):
        page.filled("<!-- evidence: curves -->\n<!-- end -->", {})


def test_a_spread_is_of_seeds_or_of_the_number_of_images(record: dict[str, Any]) -> None:
    record = {**record, "test_accuracy": 0.5, "confusion": [[50, 50], [0, 0]]}
    assert page.spread([record]) == pytest.approx((0.5, 0.402, 0.598))
    assert page.spread([record, {**record, "test_accuracy": 0.6}]) == pytest.approx(
        (0.55, 0.5, 0.6)
    )
