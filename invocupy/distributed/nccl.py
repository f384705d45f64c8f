"""Ranks on GPUs, one each: NCCL through CuPy, with MPI as control plane."""

from __future__ import annotations

from collections import deque
from typing import Any

from invocupy.distributed.comm import Comm, contiguous
from invocupy.distributed.environment import LaunchError
from invocupy.distributed.mpi import MPI
from invocupy.extras import MissingExtra


class NCCL(Comm):
    """GPUs that exchange CuPy arrays, on the current stream and without waiting for it.

    Small values are sent by ``control``, which has as many ranks; ``device`` is the number of this
    rank's GPU. Raises MissingExtra without the NCCL library, and LaunchError if it cannot connect
    the ranks.
    """

    def __init__(self, control: MPI, device: int) -> None:
        import cupy

        self._nccl = nccl = _load()
        self._cupy = cupy
        self.rank, self.size = control.rank, control.size
        self.local_rank, self.local_size = control.local_rank, control.local_size
        self.device = f"cuda:{device}"
        self._control = control
        self._gpu = cupy.cuda.Device(device)
        self._gpu.use()
        name = nccl.get_unique_id().hex() if self.rank == 0 else None
        name = bytes.fromhex(control.exchange(name)[0])
        try:
            self._ranks = control.watch.wait(
                "the start of NCCL", nccl.NcclCommunicator, self.size, name, self.rank
            )
        except nccl.NcclError as error:
            raise LaunchError(
                f"NCCL cannot join the ranks ({error}): each needs a GPU of its own, so start at "
                "most as many ranks on a machine as it has GPUs; NCCL_DEBUG=INFO tells more"
            ) from error
        # Marks on the stream behind each sum, oldest first: a GPU that does not get past its mark
        # waits for another one.
        self._marks: deque[Any] = deque()
        control.watch.clocks.append(self._behind)

    def allgather(self, array: Any) -> Any:
        cupy = self._cupy
        array = cupy.ascontiguousarray(array).reshape(array.shape)
        result = cupy.empty((self.size, *array.shape), array.dtype)
        self._ranks.allGather(
            array.data.ptr, result.data.ptr, array.nbytes, self._nccl.NCCL_UINT8, self._stream()
        )
        return result

    def allreduce_sum(self, buffer: Any) -> None:
        place = contiguous(buffer).data.ptr
        dtype = getattr(self._nccl, f"NCCL_{buffer.dtype.name.upper()}")
        self._ranks.allReduce(place, place, buffer.size, dtype, self._nccl.NCCL_SUM, self._stream())
        mark = self._cupy.cuda.Event(disable_timing=True)
        mark.record()
        self._marks.append(mark)

    def broadcast(self, array: Any, root: int = 0) -> None:
        place = contiguous(array).data.ptr
        self._ranks.broadcast(
            place, place, array.nbytes, self._nccl.NCCL_UINT8, root, self._stream()
        )

    def exchange(self, value: Any) -> list[Any]:
        return self._control.exchange(value)

    def _stream(self) -> int:
        return int(self._cupy.cuda.get_current_stream().ptr)

    def _behind(self) -> tuple[Any, str] | None:
        """For the watching thread: the oldest mark that the GPU has not reached; NCCL's errors."""
        self._gpu.use()
        self._ranks.check_async_error()
        while self._marks and self._marks[0].done:
            self._marks.popleft()
        return (self._marks[0], "allreduce_sum on the GPU") if self._marks else None


def _load() -> Any:
    """``cupy.cuda.nccl``, which must be imported explicitly."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the library is missing, which is said below
        from cupy.cuda import nccl
    if not nccl.available:
        raise MissingExtra(
            "several GPUs need NCCL, which CuPy does not find: pip install nvidia-nccl-cu13 (or "
            "nvidia-nccl-cu12, like CuPy itself)"
        )
    return nccl
