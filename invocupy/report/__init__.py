"""A finished run, to look at: what it found, as pictures and as a page.

``findings`` gathers it as arrays, with the generated ``kernels``; ``figures`` draws them with
matplotlib; ``page`` puts the same pictures into one HTML file that needs nothing else, with an
``explorer`` of the kernel at each pixel.
"""

from __future__ import annotations

from invocupy.report.explorer import explore
from invocupy.report.figures import draw, load_matplotlib
from invocupy.report.findings import Findings, gather
from invocupy.report.kernels import heat_maps
from invocupy.report.page import write_explorer, write_page

__all__ = [
    "Findings", "draw", "explore", "gather", "heat_maps", "load_matplotlib", "write_explorer",
    "write_page",
]  # fmt: skip
