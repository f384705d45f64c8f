"""Photographs parts of a run's report into ``docs/_static/report.png``, which README shows.

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

WIDTH, GAP = 1160, 8
SECTION = """(() => {
  const heads = [...document.querySelectorAll("h2")];
  const box = heads[%s].parentElement.getBoundingClientRect();
  return [scrollX + box.left, scrollY + box.top, scrollX + box.right, scrollY + box.bottom];
})()"""


def main(report: Path) -> None:
    """The curves, and below them the explorer."""
    with tempfile.TemporaryDirectory() as folder, chromium(Path(folder)) as browser:
        browser.open(report.resolve(), width=WIDTH)
        boxes = [browser.run(SECTION % f'heads.findIndex(h => h.textContent.includes("{word}"))')
                 for word in (" on ", "kernel at each")]  # fmt: skip
        whole = Image.open(BytesIO(browser.screenshot())).convert("RGB")
    parts = [whole.crop(tuple(map(round, box))) for box in boxes]
    width = max(part.width for part in parts)
    picture = Image.new("RGB", (width, sum(part.height for part in parts) + GAP), "white")
    picture.paste(parts[0], (0, 0))
    picture.paste(parts[1], (0, parts[0].height + GAP))
    picture.quantize(128).save(ROOT / "docs" / "_static" / "report.png", optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
