"""Reports of a finished run: pictures and HTML pages.

``findings`` gathers the data as arrays, with the generated ``kernels``; ``figures`` draws them with
matplotlib; ``page`` puts the same pictures into one self-contained HTML file, with an ``explorer``
of the kernel at each pixel.
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
