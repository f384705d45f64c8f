"""NCCL of the stand-in, for one rank."""

from __future__ import annotations

import ctypes
from typing import Any

available = True
NCCL_UINT8, NCCL_INT64, NCCL_FLOAT32, NCCL_FLOAT64, NCCL_SUM = 1, 4, 7, 8, 0


class NcclError(RuntimeError):
    pass


def get_unique_id() -> bytes:
    return bytes(128)


class NcclCommunicator:
    """Of one rank."""

    def __init__(self, size: int, name: Any, rank: int) -> None:
        if size != 1:
            raise NcclError("NCCL_ERROR_INVALID_USAGE: the stand-in has one rank")

    def allGather(self, source: int, to: int, count: int, dtype: int, stream: int) -> None:  # noqa: N802
        ctypes.memmove(to, source, count)

    def allReduce(  # noqa: N802
        self, source: int, to: int, count: int, dtype: int, operation: int, stream: int
    ) -> None:
        assert source == to

    def broadcast(
        self, source: int, to: int, count: int, dtype: int, root: int, stream: int
    ) -> None:
        assert source == to

    def check_async_error(self) -> None:
        pass
