"""The only module that uses Numba: it compiles kernels and caches them.

Compiled kernels are stored in ``$INVOCUPY_CACHE_DIR`` (by default ``~/.cache/invocupy``; not at all
if empty). Numba's own cache is not used: it fails without a writable directory, fails at every
start once a file is damaged, and can mix up specialisations that two processes save at once. Here a
specialisation is one file, named by a digest of all that it depends on (the code that this process
runs, see :mod:`invocupy.backends.cpu.content`, the compilers and the processor that Numba compiles
for) and written in one step; a file that is missing, damaged or not ours is compiled again. As in
Numba's cache the content is a pickle, so the directory must belong to the user and be writable by
nobody else.
"""
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import hashlib
import os
import pickle
import re
import sys
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numpy as np
from llvmlite import ir
from numba.core.caching import _Cache
from numba.core.compiler import CompileResult
from numba.core.dispatcher import Dispatcher
from numba.core.registry import CPUDispatcher, cpu_target
from numba.core.serialize import dumps

from invocupy import backends, settings
from invocupy.backends.cpu.checking import CHECKED, checked
from invocupy.backends.cpu.compiling import whole
from invocupy.backends.cpu.content import lasting_digest

_config: Any = numba.config
_DIGEST = hashlib.sha256().digest_size
_OPTIONS = {"nopython": True, "nogil": True, "error_model": "numpy", "boundscheck": None}
# Numba's settings that cannot change the code of a serial CPU kernel; most others can.
_WITHOUT_EFFECT = re.compile("CACHE|COLOR|CUDA|DISABLE_JIT|DUMP|GDB|HELP|THREAD|TRACE|WARN")


def jit(function: Any, **options: Any) -> Any:
    """Compile ``function`` when it is first called: no GIL, no Python errors, no fast-math."""
    # Object files of one function with different sizes, compiled by different processes, may define
    # the same symbols, and all but the first to be loaded would run its code.
    name = hashlib.sha256(repr(_identity(function)).encode()).hexdigest()[:16]
    function.__qualname__ += f"_{name}"
    dispatcher: Any = CPUDispatcher(function, targetoptions=_OPTIONS | options)
    dispatcher._cache = _Files(function)
    dispatcher.compile = partial(whole, _compile, dispatcher.compile)
    return dispatcher


def inlined(function: Any) -> Any:
    """:func:`jit` for a part of a loop: a call for each tile, with its arguments, would cost."""
    function.__qualname__ += "_inlined"  # what calls it is other code than with a call
    return jit(function, forceinline=True)


def _compile(compile_: Callable[[Any], Any], signature: Any) -> Any:
    """Compile even if NUMBA_DISABLE_JIT is set, since kernels cannot run in Python."""
    disabled, _config.DISABLE_JIT = _config.DISABLE_JIT, 0
    try:
        return compile_(signature)
    finally:
        _config.DISABLE_JIT = disabled


def features() -> set[str]:
    """The processor and features for Numba's compiler, under LLVM's names.

    ``NUMBA_CPU_NAME`` and ``NUMBA_CPU_FEATURES`` set them. With a name alone Numba uses the
    features of this machine, with the name "generic" none.
    """
    _, _, listed = cpu_target.target_context.codegen().magic_tuple()
    return {feature[1:] for feature in listed.split(",") if feature.startswith("+")}


def machine_code(name: str, arguments: int, write: Callable[[Any, Any], None]) -> int:
    """The address of a function of so many integers, whose code ``write(builder, values)`` emits.

    It stays there for the life of the process.
    """
    return whole(_machine_code, name, arguments, write)


def _machine_code(name: str, arguments: int, write: Callable[[Any, Any], None]) -> int:
    name = f"invocupy_{name}_{len(_kept)}"  # of one name LLVM would run what came first
    library = cpu_target.target_context.codegen().create_library(name)
    module = library.create_ir_module(name)
    kind = ir.FunctionType(ir.VoidType(), [ir.IntType(64)] * arguments)
    function = ir.Function(module, kind, name)
    builder = ir.IRBuilder(function.append_basic_block())
    write(builder, function.args)
    builder.ret_void()
    library.add_ir_module(module)
    library.finalize()
    _kept.append(library)
    address: int = library.get_pointer_to_function(name)
    return address


_kept: list[Any] = []


class _Files(_Cache):
    """Numba's interface to a cache, for one function; never raises."""

    def __init__(self, function: Any) -> None:
        self._function = function

    @property
    def cache_path(self) -> str | None:
        directory = cache_directory()
        return None if directory is None else str(directory)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        target_context.refresh()
        try:
            path = self._path(sig, target_context.codegen())
            if not path.is_file():  # a pipe would keep the reader waiting
                raise OSError("no file")
            blob = path.read_bytes()
            if hashlib.sha256(blob[_DIGEST:]).digest() != blob[:_DIGEST]:
                raise OSError("a damaged file")
            content = pickle.loads(blob[_DIGEST:])  # noqa: S301
            return CompileResult._rebuild(target_context, *content)
        except Exception:
            _tell(self._function, False)
            return None  # compiled again, and written again

    def save_overload(self, sig: Any, data: Any) -> None:
        _tell(self._function, True)
        try:
            path, content = self._path(sig, data.codegen), dumps(data._reduce())
            with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
                try:
                    file.write(hashlib.sha256(content).digest() + content)
                    file.close()
                    Path(file.name).replace(path)
                except BaseException:
                    Path(file.name).unlink(missing_ok=True)
                    raise
        except Exception:
            return  # the compiled kernel works all the same

    def flush(self) -> None:
        """Files are never stale: their names say what they depend on."""

    enable = disable = flush  # always on; where the files go decides

    def _path(self, sig: Any, codegen: Any) -> Path:
        directory = cache_directory()
        if directory is None:
            raise OSError("no directory for compiled kernels")
        versions = numba.__version__, llvmlite.__version__, np.__version__, sys.version
        # of a named tuple the type's text does not say which fields it has, and in which order
        fields = [getattr(kind, "fields", ()) for kind in getattr(sig, "args", sig)]
        depends = (
            lasting_digest(self._function), _OPTIONS, _identity(self._function), str(sig), fields,
            codegen.magic_tuple(), _settings(), versions, CHECKED and lasting_digest(checked),
        )  # fmt: skip
        name = hashlib.sha256(repr(depends).encode()).hexdigest()[:32]
        return directory / f"{self._function.__name__}-{name}"


def _settings() -> list[tuple[str, str]]:
    """Numba's settings that may change the code, from the environment or set since."""
    return [
        (name, repr(value))
        for name, value in sorted(vars(_config).items())
        if name.isupper() and not _WITHOUT_EFFECT.search(name)
    ]


def _tell(function: Any, done: bool) -> None:
    if backends.on_compile is None:
        return
    try:
        backends.on_compile(function.__name__, done)
    except Exception:
        backends.on_compile = None
        sys.excepthook(*sys.exc_info())


def _identity(function: Any) -> tuple[Any, ...]:
    """Which function, with which sizes: its closure holds integers and other compiled functions."""
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    values = [_identity(v.py_func) if isinstance(v, Dispatcher) else v for v in cells]
    return function.__module__, function.__qualname__, *values


def cache_directory() -> Path | None:
    """The folder of compiled kernels; None if there is no private folder."""
    return _place()[0]


def why_not_kept() -> str:
    """Why compiled kernels are not stored on disk; empty if they are."""
    return _place()[1]


@cache
def _place() -> tuple[Path | None, str]:
    if os.environ.get("INVOCUPY_CACHE_DIR") == "":
        return None, "INVOCUPY_CACHE_DIR is empty"
    try:
        directory = settings.folder("INVOCUPY_CACHE_DIR") or settings.cache_root()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if hasattr(os, "getuid"):
            rule, state = "belong to this user and be writable by nobody else", directory.stat()
            private = state.st_uid == os.getuid() and not state.st_mode & 0o022
        else:  # Windows, where the mode does not say who may write
            rule = f"be in this user's folder {Path.home()}, where nobody else may write"
            private = directory.resolve().is_relative_to(Path.home().resolve())
    except (OSError, ValueError, RuntimeError) as error:
        return None, str(error)
    if not private:
        return None, f"{directory} must {rule}"
    if not os.access(directory, os.W_OK | os.X_OK):
        return None, f"{directory} is not writable"
    return directory, ""
