"""Photographs the top of a run's report into ``docs/_static/report.png``, which README shows.

``python docs/draw_report.py REPORT.html``; it needs Chromium and Pillow.
"""

from __future__ import annotations

import sys
import tempfile
from io import BytesIO
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from browser import chromium

WIDTH, PARTS = 1000, ("curves", "explorer")


def main(report: Path) -> None:
    with tempfile.TemporaryDirectory() as folder, chromium(Path(folder)) as browser:
        browser.open(report.resolve(), width=WIDTH)
        picture = Image.open(BytesIO(browser.screenshot())).convert("RGB")
    picture.quantize(128).save(ROOT / "docs" / "_static" / "report.png", optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
