"""Checked mode finds one element outside of each array, table and scratch, by name."""

from __future__ import annotations

import json

import pytest
from processes import script

PLANTED = """
import json
from collections import namedtuple
import numpy as np
from invocupy.backends.cpu.access import Record, pointer, read
from invocupy.backends.cpu.checking import OutsideError
from invocupy.backends.cpu.jit import jit
from invocupy.backends.cpu.pool import launch
from invocupy.backends.cpu.vector import call, micro

Plan = namedtuple("Plan", "table code mode")
Call = namedtuple("Call", "plan source out offset which")

@micro(2)
def copy(v, args):
    v.store(v.load(args[0]), args[1])

@micro(2)
def copy_masked(v, args):
    inside = v.mask(None, v.load_word(args[1]))
    v.store_masked(v.load_masked(args[0], inside), args[0], inside)

@micro(2)
def gather(v, args):
    inside = v.mask(None, v.load_word(args[1]))
    v.store_masked(v.gather(args[0], 1, inside), args[0], inside)

@jit
def index(task, turn, scratch, words):
    c = read(words, Call)
    p = read(c.plan, Plan)
    if c.which == 0:
        pointer(c.out, 64)[0] = pointer(c.source, 64)[c.offset]
    elif c.which == 1:
        pointer(c.out, 64)[c.offset] = 1
    elif c.which == 2:
        pointer(c.out, 64)[0] = pointer(p.table, 64)[c.offset]
    else:
        pointer(scratch, 64)[c.offset] = 1

@jit
def vectors(task, turn, scratch, words):
    c = read(words, Call)
    p = read(c.plan, Plan)
    source, out = c.source, c.out
    if p.mode == 1:  # with masks the number of lanes is in the table
        call(p.code, (source + 8 * c.offset, p.table))
    elif c.which == 0:
        call(p.code, (source + 8 * c.offset, out))
    else:
        call(p.code, (source, out + 8 * c.offset))

def found(body, plan, which, offset, length):
    memory = np.zeros((3, 64))  # so that nothing else begins near an array
    table, source, out = memory[0, 16:24], memory[1, 16:16 + length], memory[2, 16:16 + length]
    table.view(np.int64)[0] = 3
    try:
        launch(body, 1, 1, 64, Call(Record(Plan(table, *plan)), source, out, offset, which))
    except OutsideError as error:
        return str(error).split("'")[1]

results = {}
for which, name in enumerate(["source", "out", "plan.table", "scratch"]):
    results["index", name] = [found(index, (0, 0), which, i, 8) for i in (0, 7, -1, 8)]
for which, name in enumerate(["source", "out"]):
    results["vector", name] = [
        found(vectors, (copy(4, 64), 0), which, i, 8) for i in (0, 4, -1, 5)
    ]
for kernel in copy_masked, gather:
    results[kernel.__name__, "source"] = [
        found(vectors, (kernel(4, 64), 1), 0, i, 8) for i in (0, 5, -1, 6)
    ]
print(json.dumps([[*key, value] for key, value in results.items()]))
"""


def test_an_element_outside_of_each_array_is_found_by_name():
    results = json.loads(script(PLANTED, INVOCUPY_CHECKED="1"))
    assert len(results) == 8
    for _, name, found in results:
        assert found == [None, None, name, name]


@pytest.mark.parametrize("checked", ["0", "1"])
def test_results_are_the_same(checked):
    body = """
    import numpy as np
    import invocupy
    x, kernel = np.arange(32.0).reshape(1, 2, 4, 4), np.ones((1, 1, 3, 3, 4, 4))
    print(invocupy.involution(x, kernel).sum())
    """
    assert script(body, INVOCUPY_CHECKED=checked) == "3100.0"


SHORT = """
import sys
import numpy as np
from invocupy.backends.cpu import involution
from invocupy.backends.cpu.checking import OutsideError
from invocupy.geometry import Geometry

size = tuple(map(int, sys.argv[2].split("x")))
g = Geometry.of((2, 6, *size), (2, 2, *(3 for _ in size), *size))
shapes = {
    "forward": (g.x_shape, g.kernel_shape, g.out_shape),
    "grad_x": (g.out_shape, g.kernel_shape, g.x_shape),
    "grad_kernel": (g.out_shape, g.x_shape, g.kernel_shape),
}[sys.argv[1]]
for short in (None, 0, 1, 2):
    arrays = [np.ones(shape, np.float32) for shape in shapes]
    if short is not None:
        arrays[short] = arrays[short].ravel()[:-1]
    try:
        getattr(involution, sys.argv[1])(*arrays[:2], g, arrays[2])
        print("fine")
    except OutsideError as error:
        print(error)
"""


@pytest.mark.parametrize("size", ["30", "9x21", "4x5x21"])
@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("forward", ["source", "given", "out"]),
        ("grad_x", ["source", None, "out"]),  # the last number of the kernel meets the border
        ("grad_kernel", ["grad", "source", "out"]),
    ],
)
def test_kernels_that_go_past_an_array_are_caught(
    name: str, fields: list[str | None], size: str
) -> None:
    fine, *found = script(SHORT, arguments=[name, size], INVOCUPY_CHECKED="1").splitlines()
    assert fine == "fine"
    for line, field in zip(found, fields, strict=True):
        assert line == "fine" if field is None else f"4 past the memory of '{field}'" in line
