"""Photographs parts of a run's report into ``docs/_static``, in both themes: README shows them.

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

WIDTH, MARGIN = 1160, 20
SECTION = """(() => {
  const heads = [...document.querySelectorAll("h2")];
  const box = heads[%s].parentElement.getBoundingClientRect();
  return [scrollX + box.left, scrollY + box.top, scrollX + box.right, scrollY + box.bottom];
})()"""


def main(report: Path) -> None:
    """The curves, and below them the explorer."""
    with tempfile.TemporaryDirectory() as folder, chromium(Path(folder)) as browser:
        for theme in "light", "dark":
            browser.open(report.resolve(), width=WIDTH, dark=theme == "dark")
            boxes = [
                browser.run(SECTION % f'heads.findIndex(h => h.textContent.includes("{word}"))')
                for word in (" on ", "kernel at each")
            ]
            whole = Image.open(BytesIO(browser.screenshot())).convert("RGB")
            parts = [whole.crop(tuple(map(round, box))) for box in boxes]
            width, height = max(p.width for p in parts), sum(p.height for p in parts)
            size = width + 2 * MARGIN, height + MARGIN
            picture = Image.new("RGB", size, whole.getpixel((0, 0)))
            picture.paste(parts[0], (MARGIN, 0))
            picture.paste(parts[1], (MARGIN, parts[0].height))
            file = ROOT / "docs" / "_static" / f"report-{theme}.png"
            picture.quantize(256, kmeans=2).save(file, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
