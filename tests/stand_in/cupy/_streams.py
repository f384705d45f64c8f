"""Streams and events of the stand-in: all work is done when it is given, but its order is watched.

Each stream counts its operations, and knows behind which operation of each other stream it is
ordered: by events, by what the host has waited for, and by the null stream, which waits for the
blocking streams of its device as they do for it. Each block of memory knows who wrote and read it
last. Work that may, on a device, overtake what it needs is a :class:`StreamError` here.
"""

from __future__ import annotations

import threading
import weakref
from collections import defaultdict
from functools import cache
from itertools import count
from typing import Any

from cupy import cuda

Clock = dict[int, int]  # a number of operations for each stream, by its key

_local = threading.local()
_host: Clock = {}  # what the host has waited for
_streams: weakref.WeakSet[Stream] = weakref.WeakSet()
_keys = count(1)


class StreamError(RuntimeError):
    """Work of two streams on the same memory, in an order that nothing makes."""


class Block:
    """The memory of an allocation, and its users: the last write, and the reads since."""

    __slots__ = ("born", "readers", "size", "start", "writer")

    def __init__(self, size: int, born: Stream) -> None:
        self.size, self.born, self.writer, self.start = size, born, (0, 0), 0
        # A pool gives out again what was freed on the same stream, whoever else still uses it.
        self.readers = born.freed

    def read(self, stream: Stream) -> None:
        stream.follows(*self.writer, "reads", "writes")
        self.readers = self.readers | {stream.key: stream.count + 1}

    def write(self, stream: Stream) -> None:
        stream.follows(*self.writer, "writes", "writes")
        for user in self.readers.items():
            stream.follows(*user, "writes", "reads")
        self.writer, self.readers = (stream.key, stream.count + 1), {}

    def free(self) -> None:
        users = self.born.freed | self.readers
        users[self.writer[0]] = max(self.writer[1], users.get(self.writer[0], 0))
        users.pop(self.born.key, None)
        before = self.born.clock() if users.keys() - {0} else {}
        self.born.freed = {key: n for key, n in users.items() if n > before.get(key, 0)}


class _Null:
    """``Stream.null``: that of the current device."""

    def __get__(self, stream: Any, kind: Any) -> Stream:
        return null_of(cuda.Device().id)


class Stream:
    """A stream of the current device."""

    null = _Null()
    _nodes: Any = None  # of the graph that it captures
    _invalid = False

    def __init__(
        self,
        null: bool = False,
        non_blocking: bool = False,
        ptds: bool = False,
        priority: Any = None,
    ) -> None:
        self.device_id, self.key, self.blocking = cuda.Device().id, next(_keys), not non_blocking
        self.ptr = 0 if null else self.key << 12
        self.count, self.freed, self._behind = 0, Clock(), Clock()
        _streams.add(self)

    def clock(self) -> Clock:
        """Up to where each stream is done when the next operation of this one begins."""
        self._behind = later(self._behind, _host, {self.key: self.count})
        if self.blocking:
            null = null_of(self.device_id)
            for other in list(_streams) if self is null else [null]:
                if other.blocking and other.device_id == self.device_id:
                    self._behind = later(self._behind, other._behind, {other.key: other.count})
        return self._behind

    def follows(self, key: int, number: int, does: str, did: str) -> None:
        """Raise a StreamError unless that operation of another stream comes before the next one."""
        if number and key != self.key and self.clock().get(key, 0) < number:
            raise StreamError(
                f"stream {self.key} {does} what stream {key} {did}, and no event orders them"
            )

    def record(self, event: Any = None) -> Event:
        event = Event() if event is None else event
        event.clock = self.clock()
        return event  # type: ignore[no-any-return]

    def wait_event(self, event: Event) -> None:
        self._behind = later(self.clock(), event.clock)

    def synchronize(self) -> None:
        cuda.wait()
        done(self.clock())

    def begin_capture(self, mode: Any = None) -> None:
        if not self.ptr:
            raise RuntimeError("cannot capture on the default (legacy) stream")
        self._nodes, self._invalid = [], False

    def end_capture(self) -> Any:
        return cuda._graphs.end(self)

    def is_capturing(self) -> bool:
        return self._nodes is not None

    def use(self) -> Stream:
        _stack(self.device_id)[-1:] = [self]
        return self

    def __enter__(self) -> Stream:
        _stack(self.device_id).append(self)
        return self

    def __exit__(self, *error: object) -> None:
        _stack(self.device_id).pop()


class Event:
    """A place in the stream that records it."""

    done = True

    def __init__(
        self, block: bool = False, disable_timing: bool = False, interprocess: bool = False
    ) -> None:
        self.clock: Clock = {}

    def record(self, stream: Any = None) -> None:
        (stream or get_current_stream()).record(self)

    def synchronize(self) -> None:
        cuda.wait()
        done(self.clock)


def later(*clocks: Clock) -> Clock:
    """What is done where all of these are."""
    together: Clock = {}
    for clock in clocks:
        for key, number in clock.items():
            together[key] = max(number, together.get(key, 0))
    return together


def done(clock: Clock) -> None:
    """The host has waited for it."""
    _host.update(later(_host, clock))


def get_current_stream(device_id: int = -1) -> Stream:
    return _stack(cuda.Device().id if device_id < 0 else device_id)[-1]


@cache
def null_of(device: int) -> Stream:
    with cuda.Device(device):
        return Stream(null=True)


def of_device(device: int) -> list[Stream]:
    return [stream for stream in list(_streams) if stream.device_id == device]


def _stack(device: int) -> list[Stream]:
    if not hasattr(_local, "stacks"):
        _local.stacks = defaultdict(list)
    stack: list[Stream] = _local.stacks[device]
    if not stack:
        stack.append(null_of(device))
    return stack
