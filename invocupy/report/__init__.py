"""A finished run, to look at: what it found, as pictures and as a page.

``findings`` gathers it as arrays, ``figures`` draws them with matplotlib, ``page`` puts the same
pictures into one HTML file that needs nothing else.
"""

from __future__ import annotations

from invocupy.report.figures import draw, load_matplotlib
from invocupy.report.findings import Findings, gather, heat_maps
from invocupy.report.page import write_page

__all__ = ["Findings", "draw", "gather", "heat_maps", "load_matplotlib", "write_page"]
