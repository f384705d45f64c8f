"""How the documentation is built: ``sphinx-build -W docs docs/_build`` (no network needed)."""

from __future__ import annotations

import inspect
import os
import re
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.ext.autodoc.mock import mock
from sphinx.ext.autosummary import Autosummary

sys.path.insert(0, str(Path(__file__).parent))

from draw_pictures import draw_all
from myst_parser.parsers.sphinx_ import MystParser
from notebook import to_markdown

import invocupy

project = "invocupy"
author = "The invocupy authors"
version = release = invocupy.__version__
copyright = author  # noqa: A001

extensions = [
    "myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon",
    "sphinx_copybutton",
]  # fmt: skip
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3

autosummary_generate = False
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_mock_imports = [name for name in ("torch", "jax", "dask") if find_spec(name) is None]
autodoc_typehints = "none"  # the docstrings say shapes and dtypes, which is more
napoleon_google_docstring = False
napoleon_use_rtype = False

html_theme = "furo"
html_title = "invocupy"
html_static_path = ["_static"]
html_css_files = ["invocupy.css"]
html_copy_source = False
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True


def inline_math(writer: Any, node: nodes.math) -> None:
    """Formulas as MathML, which browsers show by themselves."""
    writer.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def block_math(writer: Any, node: nodes.math_block) -> None:
    writer.body.append(f'<div class="math">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


def trim_blocks(app: Sphinx, doctree: nodes.document) -> None:
    """Examples end with an empty line, for doctest's sake; readers need not see it."""
    for block in doctree.findall(nodes.literal_block):
        if block.rawsource == block.astext():
            block.rawsource = block.rawsource.rstrip()
            block.children = [nodes.Text(block.rawsource)]


def pair_pictures(app: Sphinx, doctree: nodes.document) -> None:
    """A picture ``-light`` stands for itself on light pages, and for ``-dark`` on dark ones."""
    for light in list(doctree.findall(nodes.image)):
        if "-light." in light["uri"]:
            dark = light.deepcopy()
            dark["uri"] = light["uri"].replace("-light.", "-dark.")
            light["classes"].append("only-light")
            dark["classes"].append("only-dark")
            light.parent.insert(light.parent.index(light) + 1, dark)


def escape_axes(app: Sphinx, what: str, name: str, *rest: Any) -> None:
    """The axes ``*S`` of a shape, and ``*`` in a path, would begin an emphasis."""
    lines = rest[-1]
    text = re.sub(
        r"``.*?``|(?<!\\)\*(?=[A-Z]\b)|(?<=/)\*",
        lambda found: r"\*" if found[0] == "*" else found[0],
        "\n".join(lines),
        flags=re.DOTALL,
    )
    lines[:] = text.split("\n")


def skip_fields(app: Sphinx, what: str, name: str, item: Any, *rest: Any) -> bool | None:
    """Fields of a named tuple have a docstring that says nothing."""
    return True if (item.__doc__ or "").startswith("Alias for field number") else None


class Overview(Autosummary):
    """``.. overview:: MODULE``: its public names, with the first sentence of each."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        with mock(self.config.autodoc_mock_imports):
            module = import_module(self.arguments[0])
        names = [
            name
            for name in getattr(module, "__all__", vars(module))
            if not name.startswith("_")
            and (inspect.isroutine(item := getattr(module, name)) or inspect.isclass(item))
            and f"{item.__module__}.".startswith(f"{module.__name__}.")
        ]
        self.options["nosignatures"] = True
        lines = [f"~{module.__name__}.{name}" for name in names]
        self.content = StringList(lines, items=[(module.__name__, i) for i in range(len(lines))])
        return super().run()


class NotebookParser(MystParser):
    """Notebooks, as the Markdown that their cells and outputs make."""

    supported = ("notebook",)

    def parse(self, inputstring: str, document: nodes.document) -> None:
        super().parse(to_markdown(inputstring), document)


def setup(app: Sphinx) -> None:
    app.add_source_suffix(".ipynb", "notebook")
    app.add_source_parser(NotebookParser)
    app.connect("autodoc-process-docstring", escape_axes, priority=600)  # after napoleon
    app.connect("autodoc-skip-member", skip_fields)
    app.connect("doctree-read", trim_blocks)
    app.connect("doctree-read", pair_pictures, priority=400)  # before Sphinx copies pictures
    app.add_directive("overview", Overview)
    app.add_html_math_renderer("mathml", (inline_math, None), (block_math, None))
    if not os.environ.get("DOCS_KEEP_PICTURES"):  # to build again without drawing again
        app.connect("builder-inited", lambda _: draw_all())


html_math_renderer = "mathml"
