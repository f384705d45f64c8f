"""NVIDIA's compiler and disassembler from pip wheels: machine code and PTX without a driver.

Reached through ctypes: six functions of libnvrtc, and the program ``nvdisasm``.
"""

from __future__ import annotations

import ctypes
import functools
import re
import subprocess
import tempfile
from typing import Any

from invocupy.backends import cuda

from . import host, wheel_file

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)


@functools.cache
def _library() -> Any:
    ctypes.CDLL(str(wheel_file("*/lib/libnvrtc-builtins.so.*")))  # else it looks in system folders
    return ctypes.CDLL(str(wheel_file("*/lib/libnvrtc.so.*")))


def version() -> str:
    """The compiler's version, as in the heading of the PTX it makes."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return f"{major.value}.{minor.value}"


@functools.cache
def check_options(options: tuple[str, ...]) -> None:
    """A RuntimeError if NVRTC refuses one of them."""
    compile_source("", ("-arch=compute_90",), ptx=True, own=options)


def compile_source(
    source: str, options: tuple[str, ...], *, ptx: bool = False,
    own: tuple[str, ...] = cuda.OPTIONS,
) -> tuple[bytes, str]:  # fmt: skip
    """Compile for ``-arch=...`` given in ``options``: (machine code or PTX, the compiler's log).

    The options of the library are used, and what CuPy adds to them.
    """
    nvrtc, program = _library(), ctypes.c_void_p()
    flags = [
        *own,
        "-ftz=true",
        "--device-as-default-execution-space",
        f"-I{host.headers()}",
        *options,
    ]
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None)
    encoded = (ctypes.c_char_p * len(flags))(*(flag.encode() for flag in flags))
    status = nvrtc.nvrtcCompileProgram(program, len(flags), encoded)
    log = _get(program, "ProgramLog").rstrip(b"\0").decode()
    if status:
        raise RuntimeError(f"NVRTC refuses the source ({' '.join(flags)}):\n{log[:4000]}")
    code = _get(program, "PTX" if ptx else "CUBIN")
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return code, log


def _get(program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    getattr(_library(), f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    data = ctypes.create_string_buffer(size.value)
    getattr(_library(), f"nvrtcGet{what}")(program, data)
    return data.raw


def resources(name: str, source: str, arch: int) -> tuple[list[int], bytes]:
    """Registers, bytes spilled, bytes of shared memory on ``sm_<arch>``; and the machine code."""
    cubin, log = compile_source(source, (f"-arch=sm_{arch}", "--ptxas-options=-v"))
    report = log.partition(f"entry function '{name}'")[2].partition("entry function")[0]
    registers = re.findall(r"Used (\d+) registers", report)
    if len(registers) != 1:
        raise RuntimeError(f"expected a report on {name}, got:\n{log[:2000]}")
    spilled = sum(map(int, re.findall(r"(\d+) bytes spill", report)))  # stored, and loaded
    shared = sum(map(int, re.findall(r"(\d+) bytes smem", report)))
    return [int(registers[0]), spilled, shared], cubin


def wide_loads(name: str, cubin: bytes) -> int:
    """How many 16-byte loads from global memory are in the machine code of a kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(wheel_file("*/bin/nvdisasm")), "-c", "-ndf", file.name]
        listing = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    code = listing.partition(f".text.{name}:")[2].partition(".section")[0]
    return len(re.findall(r"\bLDG\.E(?:\.\w+)*\.128", code))


def ptx(source: str, arch: int) -> str:
    """The PTX for ``compute_<arch>``."""
    text, _ = compile_source(source, (f"-arch=compute_{arch}",), ptx=True)
    return text.decode().rstrip("\0")
