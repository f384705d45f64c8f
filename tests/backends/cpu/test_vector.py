"""The vectors that code is compiled for."""

from __future__ import annotations

from processes import script


def test_vectors_are_those_that_numba_compiles_for():
    body = "from invocupy.backends.cpu import vector; print(vector.VECTOR_BYTES, vector.WIDE)"
    for environment in (
        {"NUMBA_CPU_NAME": "generic"},
        {"NUMBA_ENABLE_AVX": "0"},
        {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": "+sse2,-avx2,-avx512vl"},
    ):
        assert script(body, **environment) == "16 False"
    wide = {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": "+avx2,+fma"}
    assert script(body, **wide) == "32 False"
