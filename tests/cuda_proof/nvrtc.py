"""NVIDIA's compiler and disassembler from pip wheels: machine code and PTX without a driver.

Reached through ctypes: six functions of libnvrtc, and the program ``nvdisasm``.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import host

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)


@dataclass(frozen=True)
class Resources:
    """What one kernel takes of one architecture's multiprocessor."""

    registers: int
    spill_bytes: int  # stored and loaded
    shared_bytes: int
    wide_loads: int  # 16-byte global loads in the machine code


def _wheel_file(pattern: str) -> Path | None:
    spec = importlib.util.find_spec("nvidia")
    for root in spec.submodule_search_locations or () if spec else ():
        for path in sorted(Path(root).glob(pattern)):
            return path
    return None


def missing() -> str | None:
    """Why nothing can be compiled here, or None."""
    for pattern in ("*/lib/libnvrtc.so.*", "*/bin/nvdisasm", "*/include/cuda_fp16.h"):
        if _wheel_file(pattern) is None:
            return f"no {pattern[2:]} from pip: pip install 'invocupy[cuda-proof]'"
    return None


@functools.cache
def _library() -> Any:
    ctypes.CDLL(str(_wheel_file("*/lib/libnvrtc-builtins.so.*")))  # else it looks in system folders
    return ctypes.CDLL(str(_wheel_file("*/lib/libnvrtc.so.*")))


def version() -> str:
    """The compiler's version, as in the heading of the PTX it makes."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return f"{major.value}.{minor.value}"


def compile_source(
    source: str, macros: dict[str, Any], options: tuple[str, ...], *, ptx: bool = False
) -> tuple[bytes, str]:
    """Compile for ``-arch=...`` given in ``options``: (machine code or PTX, the compiler's log).

    The options that CuPy adds are added here too: C++17, and denormals flushed to zero.
    """
    nvrtc, program = _library(), ctypes.c_void_p()
    flags = [
        "-std=c++17",
        "-ftz=true",
        "--device-as-default-execution-space",
        f"-I{host.headers()}",
        *(f"-D{key}={value}" for key, value in macros.items()),
        *options,
    ]
    nvrtc.nvrtcCreateProgram(
        ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None
    )
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


def resources(source: str, macros: dict[str, Any], arch: int) -> dict[str, Resources]:
    """Compile for ``sm_<arch>`` and read ptxas's report and the machine code, by kernel name."""
    cubin, log = compile_source(source, macros, (f"-arch=sm_{arch}", "--ptxas-options=-v"))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(_wheel_file("*/bin/nvdisasm")), "-c", file.name]
        listing = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    code: dict[str, str] = {}
    for part in re.split(r"^\s*\.section\s+\.text\.", listing, flags=re.M)[1:]:
        code[re.match(r"[\w$]+", part)[0]] = part  # type: ignore[index]
    found = {}
    for name, report in re.findall(
        r"Compiling entry function '(\w+)'(.*?)(?=Compiling entry function|\Z)", log, re.S
    ):
        found[name] = Resources(
            registers=int(re.search(r"Used (\d+) registers", report)[1]),  # type: ignore[index]
            spill_bytes=sum(map(int, re.findall(r"(\d+) bytes spill", report))),
            shared_bytes=sum(map(int, re.findall(r"(\d+) bytes smem", report))),
            wide_loads=len(re.findall(r"\bLDG\.E(?:\.\w+)*\.128", code[name])),
        )
    return found
