"""Notebooks without Jupyter: run one, and show one as a page of the documentation.

``python docs/notebook.py [NAME...]`` runs those in ``docs/notebooks`` and writes their outputs into
them. One of them needs PyTorch.
"""

from __future__ import annotations

import ast
import json
import os
import sys
import tempfile
from base64 import b64encode
from contextlib import redirect_stdout
from html import escape
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "notebooks"
Output = dict[str, Any]


def run(cells: list[dict[str, Any]]) -> list[list[Output]]:
    """Run the code cells one after another in a namespace of their own; the outputs of each.

    These are what was printed, the value of a last expression, and the figures of matplotlib.
    """
    scope: dict[str, Any] = {"__name__": "__main__"}
    return [_run(source(cell), scope) for cell in cells if cell["cell_type"] == "code"]


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def _run(code: str, scope: dict[str, Any]) -> list[Output]:
    tree, value, printed = ast.parse(code), None, StringIO()
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    with redirect_stdout(printed):
        exec(compile(tree, "<cell>", "exec"), scope)  # noqa: S102
        if isinstance(last, ast.Expr):
            expression = ast.Expression(last.value)
            value = eval(compile(expression, "<cell>", "eval"), scope)  # noqa: S307
    outputs: list[Output] = []
    if printed.getvalue():
        text = printed.getvalue().splitlines(keepends=True)
        outputs.append({"output_type": "stream", "name": "stdout", "text": text})
    if value is not None:
        outputs.append(_shown(value))
    plt = sys.modules.get("matplotlib.pyplot")
    for number in plt.get_fignums() if plt else ():
        image = BytesIO()
        plt.figure(number).savefig(image, format="png", dpi=80, metadata={"Software": None})
        data = {"image/png": b64encode(image.getvalue()).decode()}
        outputs.append({"output_type": "display_data", "metadata": {}, "data": data})
        plt.close(number)
    return outputs


def _shown(value: Any) -> Output:
    data = {"text/plain": repr(value)}
    if hasattr(value, "_repr_html_"):
        data = {"text/plain": type(value).__name__, "text/html": value._repr_html_()}
    return {"output_type": "execute_result", "execution_count": None, "metadata": {}, "data": data}


def to_markdown(text: str) -> str:
    """A notebook as a MyST page. Pictures have the text of the cell's metadata ``alt``."""
    parts = []
    for cell in json.loads(text)["cells"]:
        if cell["cell_type"] == "markdown":
            parts.append(source(cell))
            continue
        parts.append(f"```python\n{source(cell)}\n```")
        parts += [_as_markdown(output, cell["metadata"]) for output in cell["outputs"]]
    return "\n\n".join(parts) + "\n"


def _as_markdown(output: Output, metadata: dict[str, Any]) -> str:
    if output["output_type"] == "stream":
        return f"```text\n{''.join(output['text']).rstrip()}\n```"
    data = output["data"]
    if "image/png" in data:
        html = (
            f'<p><img src="data:image/png;base64,{data["image/png"]}" '
            f'alt="{escape(metadata["alt"])}"></p>'
        )
    elif "text/html" in data:
        html = f'<div class="output">{data["text/html"]}</div>'
    else:
        return f"```text\n{data['text/plain']}\n```"
    return f"````{{raw}} html\n{html}\n````"


def main() -> None:
    import matplotlib

    matplotlib.use("Agg")
    for path in sorted(FOLDER.glob("*.ipynb")):
        if sys.argv[1:] and path.stem not in sys.argv[1:]:
            continue
        notebook = json.loads(path.read_text("utf-8"))
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            found = iter(run(notebook["cells"]))
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                cell["outputs"] = next(found)
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
