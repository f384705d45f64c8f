"""Python code in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from typing import Any

INVOLUTION = """
    import os, sys, threading
    import numpy as np
    from invocupy.backends.cpu import threads
    from invocupy.backends.cpu import involution as cpu
    from invocupy.backends.reference import involution as reference
    from invocupy.geometry import Geometry

    g = Geometry.of((4, 18, 40, 40), (4, 2, 3, 3, 40, 40))
    rng = np.random.default_rng(0)
    x = rng.standard_normal(g.x_shape).astype(np.float32)
    kernel = rng.standard_normal(g.kernel_shape).astype(np.float32)
    right = np.empty(g.out_shape, np.float32)
    reference.forward(x, kernel, g, right)
    threads.set_num_threads(3)

    def right_again():
        out = np.empty(g.out_shape, np.float32)
        cpu.forward(x, kernel, g, out)
        return bool(np.allclose(out, right, atol=1e-5))
"""


def start(*code: str, arguments: Any = (), cwd: Any = None, **environment: Any) -> Any:
    """Pieces of code one after the other; of the environment, None removes a variable."""
    body = "".join(map(textwrap.dedent, code))
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", body, *map(str, arguments)],
        env={k: v for k, v in {**os.environ, **environment}.items() if v is not None},
        cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def others(errors: str) -> str:
    """Standard error without the line that kernels are compiled."""
    lines = errors.splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("invocupy: compiling"))


def script(*code: str, noisy: bool = False, **options: Any) -> str:
    """Standard output of code that neither fails nor hangs nor, unless it is noisy, warns."""
    with start(*code, **options) as process:
        try:
            out, errors = process.communicate(timeout=200)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    assert process.returncode == 0, errors
    assert noisy or not others(errors), errors
    return str(out.strip())
