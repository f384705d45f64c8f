"""What is drawn: geometries in their limits and of every kind, layouts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import find, given
from hypothesis import strategies as st

import invocupy
from invocupy import testing
from invocupy.testing import lay_out

# ---------------------------------------------------------------------------- strategies


@given(testing.geometries())
def test_geometries_are_in_their_limits(g: invocupy.Geometry) -> None:
    assert invocupy.Geometry.of(g.x_shape, g.kernel_shape, **testing.options(g)) == g
    assert g.batch <= 3
    assert g.groups <= 3
    assert g.channels_per_group <= 5
    assert max(g.kernel) <= 5


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_geometries_of_each_number_of_dimensions(dims: int) -> None:
    find(testing.geometries(dims=dims), lambda g: g.dims == dims and max(g.kernel) > 1)
    find(testing.geometries(dims=(1, 2, 3)), lambda g: g.dims == dims)


@pytest.mark.parametrize("dims", [0, 4, (), (2, 4)])
def test_geometries_of_other_dimensions_are_refused(dims: Any) -> None:
    with pytest.raises(ValueError, match=r"^dims must be 1, 2 or 3, or several of them, got"):
        find(testing.geometries(dims=dims), lambda g: True)


@pytest.mark.parametrize(
    "kind",
    [
        lambda g: g.batch == 0,
        lambda g: g.out[0] == 0,
        lambda g: g.kernel[0] % 2 == 0,
        lambda g: g.kernel[0] != g.kernel[1],
        lambda g: g.stride[0] > g.kernel[0],
        lambda g: g.groups == g.channels > 1,
        lambda g: g.dilation[1] > 1 < g.kernel[1] and g.stride[1] > 1,
        lambda g: g.padding[1] > g.dilation[1] * (g.kernel[1] - 1),  # some windows see zeros only
    ],
)
def test_geometries_reach_every_kind(kind: Callable[[Any], bool]) -> None:
    find(testing.geometries(), kind)


@given(testing.geometries(max_size=3, max_width=200, empty=False))
def test_geometries_without_empty_ones(g: invocupy.Geometry) -> None:
    assert min(*g.x_shape, *g.out_shape) >= 1


@given(st.data(), st.sampled_from(testing.NUMPY_LAYOUTS))
def test_layouts_are_what_their_names_say(data: st.DataObject, layout: str) -> None:
    array = data.draw(testing.arrays((3, 4), layouts=[layout]))
    little = array.astype(array.dtype.newbyteorder("="))
    flags, strides = array.flags, np.array(array.strides)
    facts = {
        "C": flags.c_contiguous,
        "Fortran": flags.f_contiguous and not flags.c_contiguous,
        "negative strides": (strides < 0).all(),
        "zero strides": strides[-1] == 0 < strides[0],
        "sliced": array.base is not None and array.base.shape == (7, 9),
        "big-endian": not array.dtype.isnative,
        "unaligned": not flags.aligned,
        "read-only": not flags.writeable and flags.c_contiguous,
    }
    assert facts[layout]
    if layout != "zero strides":
        assert (lay_out(little, layout) == little).all()


def test_unknown_layout_is_refused() -> None:
    with pytest.raises(ValueError, match="layout must be one of"):
        lay_out(np.ones(3), "diagonal")


# ---------------------------------------------------------------------------- tolerance


def test_without_hypothesis_its_extra_is_named() -> None:
    code = "import sys; sys.modules['hypothesis'] = None; import invocupy.testing"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install 'invocupy[testing]'" in done.stderr
