"""Runs the PTX that NVIDIA's compiler makes of a kernel: one NumPy lane a thread.

A register is an array with a value for each thread of several blocks. Threads that wait at the
lowest position go first, so that those which parted meet again, as on the device. It runs what was
really emitted (wide and narrow accesses, contracted multiply-adds, half conversions), faults on a
bad or misaligned address, and counts what a device would do: warp instructions and 32-byte sectors.

Not modelled: fma rounds twice, once to twice the precision (float32) or to 80 bits (float64) and
once to the result. An instruction that our kernels do not use is an error.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from .host import three
from .instructions import BINARY, TYPES, Instruction, Registers

SECTOR = 32
LANES = 1 << 14  # threads that are run together, whole blocks of them


class Fault(Exception):  # noqa: N818
    """What would stop the kernel on a device, with the instruction and the thread."""


class Kernel:
    """One ``.entry`` of a PTX text.

    ``counts`` sums over all launches: ``warps`` (warp instructions), ``fma`` (multiply-adds,
    each thread by itself), ``sectors`` and ``bytes`` (sectors touched by global accesses, and
    the distinct bytes that each warp asked for), ``wide`` (warp accesses of 16 bytes a thread) and
    ``accesses``.
    """

    def __init__(self, ptx: str, name: str) -> None:
        ptx = re.sub(r"//[^\n]*|^\s*\.(?:loc|file)\b[^\n]*", "", ptx, flags=re.M)
        head = re.search(rf"\.entry\s+{name}\((.*?)\)(.*?)\n\{{(.*?)\n\}}", ptx, re.S)
        if head is None:
            raise LookupError(f"no kernel {name} in the PTX")
        self.name = name
        self.parameters, self.parameter_sizes = {}, []
        offset = 0
        for align, kind, symbol, count in re.findall(
            r"\.param\s+(?:\.align (\d+)\s+)?\.(\w+)\s+(\w+)(?:\[(\d+)\])?", head[1]
        ):
            size = np.dtype(TYPES[kind]).itemsize * int(count or 1)
            offset = -(-offset // int(align or size)) * int(align or size)
            self.parameters[symbol] = offset
            self.parameter_sizes.append((offset, size))
            offset += size
        self.registers: dict[str, np.dtype] = {}
        self.shared: dict[str, int] = {}
        self.shared_size = 0
        self.labels: dict[str, int] = {}
        self.blocks: list[list[Instruction]] = [[]]  # runs of instructions that go together
        self.counts: Counter[str] = Counter()
        # Scopes, which inline assembly opens, matter for nothing here; labels end like statements.
        body = re.sub(r"^\s*\{|(?<=;)\s*\}", "", head[3], flags=re.M)
        body = re.sub(r"^\s*\}", "", body, flags=re.M)
        for statement in re.sub(r"^([$\w]+:)", r"\1;", body, flags=re.M).split(";"):
            self._read(statement.strip())

    def _read(self, text: str) -> None:
        if not text or text.startswith(".pragma"):
            return
        if text.endswith(":"):
            self.labels[text[:-1]] = len(self.blocks)
            self.blocks.append([])
        elif text.startswith(".reg"):
            kind, names = re.fullmatch(r"\.reg\s+\.(\w+)\s+(.*)", text, re.S).groups()
            for register in names.split(","):
                stem, _, count = register.strip().rstrip(">").partition("<")
                every = [f"{stem}{i}" for i in range(int(count))] if count else [stem]
                self.registers |= dict.fromkeys(every, np.dtype(TYPES[kind.replace("b", "u")]))
        elif text.startswith(".shared"):
            align, symbol, size = re.fullmatch(
                r"\.shared\s+\.align\s+(\d+)\s+\.b8\s+(\w+)\[(\d+)\]", text
            ).groups()
            start = -(-self.shared_size // int(align)) * int(align)
            self.shared[symbol], self.shared_size = start, start + int(size)
        elif text.startswith("."):
            raise NotImplementedError(f"{self.name}: {text} (local memory is never meant)")
        else:
            instruction = Instruction(text)
            # The same bits under another type: no instruction in machine code.
            instruction.free = re.fullmatch(r"mov\.b\d+\s+%\w+,\s*%\w+", text) is not None
            self.blocks[-1].append(instruction)
            if instruction.name in ("bra", "ret", "exit", "bar", "barrier"):
                self.blocks.append([])

    def __call__(self, grid: Sequence[int], block: Sequence[int], args: Sequence[Any]) -> None:
        """Launch on NumPy arrays (changed in place), structured scalars and NumPy scalars."""
        grid, block = three("grid", grid), three("block", block)
        memory = _Memory([a for a in args if isinstance(a, np.ndarray)])
        data = bytearray(sum(self.parameter_sizes[-1]))
        addresses = iter(memory.addresses)
        for (offset, size), arg in zip(self.parameter_sizes, args, strict=True):
            value = np.uint64(next(addresses)) if isinstance(arg, np.ndarray) else arg
            if value.nbytes != size:
                raise Fault(f"{self.name}: argument of {value.nbytes} bytes for {size}")
            data[offset : offset + size] = value.tobytes()
        threads, blocks = math.prod(block), math.prod(grid)
        step = max(1, LANES // threads)
        with np.errstate(all="ignore"):
            for first in range(0, blocks, step):
                count = min(step, blocks - first)
                _Run(self, memory, np.frombuffer(bytes(data), np.uint8), grid, block, first, count)
        memory.copy_back()


class _Memory:
    """The arrays of a launch in one buffer, each with room around it that belongs to nobody."""

    ROOM = 1 << 16
    BASE = 1 << 32

    def __init__(self, arrays: list[np.ndarray]) -> None:
        self.arrays, self.addresses = arrays, []
        end = self.BASE
        for array in arrays:
            # Aligned as CuPy would, and off 16 bytes by as much as NumPy's array is.
            end = -(-(end + self.ROOM) // 256) * 256 + array.ctypes.data % 16
            self.addresses.append(end)
            end += array.nbytes
        self.bytes = np.zeros(-(-(end + self.ROOM - self.BASE) // 16) * 16, np.uint8)
        self.starts = np.array(self.addresses, np.int64)
        self.ends = self.starts + [array.nbytes for array in arrays]
        for array, start in zip(arrays, self.starts - self.BASE, strict=True):
            self.bytes[start : start + array.nbytes] = np.frombuffer(array.tobytes(), np.uint8)

    def copy_back(self) -> None:
        for array, start in zip(self.arrays, self.starts - self.BASE, strict=True):
            if array.flags.writeable:
                array[...] = (
                    self.bytes[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
                )

    def outside(self, address: np.ndarray, size: int) -> np.ndarray:
        region = np.searchsorted(self.starts, address, "right") - 1
        return (region < 0) | (address + size > self.ends[region])


class _Run(Registers):
    """Some blocks of one launch, from start to end."""

    def __init__(
        self, kernel: Kernel, memory: _Memory, parameters: np.ndarray, grid: Any, block: Any,
        first: int, count: int,
    ) -> None:  # fmt: skip
        self.kernel, self.memory, self.parameters = kernel, memory, parameters
        self.constants = kernel.shared
        threads = math.prod(block)
        lanes = threads * count
        thread = np.arange(lanes, dtype=np.uint32) % np.uint32(threads)
        number = np.uint32(first) + np.arange(lanes, dtype=np.uint32) // np.uint32(threads)
        self.cta = number - np.uint32(first)
        # A warp is 32 threads of one block; the last of a block may be short.
        per_block = -(-threads // 32)
        self.warp = self.cta.astype(np.int64) * per_block + thread // 32
        self.warp_count = per_block * count
        self.lane = (thread % 32).astype(np.int64)
        full = np.ones(lanes, np.uint32)
        self.registers: dict[str, np.ndarray] = {
            name: np.zeros(lanes, dtype) for name, dtype in kernel.registers.items()
        }
        self.special = {"%laneid": thread % 32, "%warpid": thread // 32}
        for axis, name in enumerate("xyz"):
            below_t, below_b = math.prod(block[:axis]), math.prod(grid[:axis])
            self.special |= {
                f"%ntid.{name}": full * np.uint32(block[axis]),
                f"%nctaid.{name}": full * np.uint32(grid[axis]),
                f"%tid.{name}": thread // np.uint32(below_t) % np.uint32(block[axis]),
                f"%ctaid.{name}": number // np.uint32(below_b) % np.uint32(grid[axis]),
            }
        self.shared = np.zeros(kernel.shared_size * count, np.uint8)
        self.position = np.zeros(lanes, np.int64)  # index of the next run of instructions
        self.waiting = np.zeros(lanes, bool)
        self.done = len(kernel.blocks)
        self.run()

    def run(self) -> None:
        counts = self.kernel.counts
        while True:
            runnable = np.where(self.waiting, self.done, self.position)
            current = int(runnable.min())
            if current == self.done:
                if not self.waiting.any():
                    return
                # A block goes on when all of its threads wait at the same barrier.
                waiting, position = (
                    lanes.reshape(self.cta[-1] + 1, -1) for lanes in (self.waiting, self.position)
                )
                ready = waiting.all(1) & (position.min(1) == position.max(1))
                if not ready.any():
                    raise Fault(f"{self.kernel.name}: a barrier that not all threads reach")
                self.waiting &= ~ready[self.cta]
                continue
            mask = runnable == current
            self.position[mask] = current + 1
            alive = self.position < self.done
            self.mask, self.full = mask, bool((mask | ~alive).all()) and bool(mask.any())
            warps = len(np.unique(self.warp[mask]))
            for instruction in self.kernel.blocks[current]:
                counts["warps"] += 0 if instruction.free else warps
                self.step(instruction, mask, warps)

    def step(self, i: Instruction, mask: np.ndarray, warps: int) -> None:
        full, self.ftz = self.full, "ftz" in i.modifiers
        if i.predicate:
            chosen = self.registers[i.predicate] ^ i.negated
            self.mask, self.full = mask & chosen, full and bool(chosen.all())
        handler = getattr(self, f"do_{i.name}", None)
        try:
            if handler is not None:
                handler(i)
            elif i.name in BINARY:
                a, b = (self.read(o, i.types[0]) for o in i.operands[1:])
                keep_nan = {"min": np.minimum, "max": np.maximum} if "NaN" in i.modifiers else {}
                self.write(i.operands[0], keep_nan.get(i.name, BINARY[i.name])(a, b))
            else:
                raise NotImplementedError("unknown instruction")
            if i.name == "fma":
                self.kernel.counts["fma"] += int(np.count_nonzero(self.mask))
        except (Fault, NotImplementedError, LookupError) as error:
            raise type(error)(f"{self.kernel.name}: {i.text}: {error}") from error
        self.mask, self.full = mask, full

    # ------------------------------------------------------------------------- memory and threads

    def place(self, i: Instruction, operand: str) -> tuple[np.ndarray, int]:
        """The address of each active lane, and the bytes that each moves."""
        base, _, offset = operand[1:-1].partition("+")
        address = np.asarray(self.read(base, np.dtype(np.int64))) + int(offset or 0)
        size = i.types[0].itemsize * next((n for n in (2, 4) if f"v{n}" in i.modifiers), 1)
        address = np.broadcast_to(address, self.mask.shape)[self.mask]
        if (bad := address % size != 0).any():
            raise Fault(f"misaligned address for {size} bytes, {self.whose(bad)}")
        return address, size

    def whose(self, bad: np.ndarray) -> str:
        lane = np.flatnonzero(self.mask)[int(np.argmax(bad))]
        return f"thread {self.special['%tid.x'][lane]} of block {self.special['%ctaid.x'][lane]}"

    def locate(self, i: Instruction, operand: str) -> tuple[np.ndarray, np.ndarray]:
        """The buffer that an access means, and where in it each active lane reads or writes."""
        address, size = self.place(i, operand)
        if "shared" in i.modifiers:
            if (bad := (address < 0) | (address + size > self.kernel.shared_size)).any():
                raise Fault(f"outside of shared memory, {self.whose(bad)}")
            block = self.cta[self.mask].astype(np.int64)
            return self.shared, address + block * self.kernel.shared_size
        if "local" in i.modifiers:
            raise NotImplementedError("local memory")
        if (bad := self.memory.outside(address, size)).any():
            raise Fault(f"out of bounds, {self.whose(bad)}")
        self.count(address, size)
        return self.memory.bytes, address - self.memory.BASE

    def count(self, address: np.ndarray, size: int) -> None:
        counts = self.kernel.counts
        table = np.full((self.warp_count, 32), -1, np.int64)
        table[self.warp[self.mask], self.lane[self.mask]] = address
        distinct = np.sort(table, 1)
        counts["bytes"] += size * _distinct(distinct)
        counts["sectors"] += _distinct(np.where(distinct < 0, -1, distinct // SECTOR))
        warps = int((distinct[:, -1] >= 0).sum())
        counts["accesses"] += warps
        counts["wide"] += warps * (size == 16)

    def do_ld(self, i: Instruction) -> None:
        to, operand = i.operands
        names = to if isinstance(to, list) else [to]
        dtype = i.types[0]
        if "param" in i.modifiers:
            symbol, _, offset = operand[1:-1].partition("+")
            start = self.kernel.parameters[symbol] + int(offset or 0)
            values = self.parameters[start : start + dtype.itemsize * len(names)].view(dtype)
            for name, value in zip(names, values, strict=True):
                self.write(name, value)
            return
        if not self.mask.any():
            return
        buffer, start = self.locate(i, operand)
        cells = buffer[: buffer.size // dtype.itemsize * dtype.itemsize].view(dtype)
        for k, name in enumerate(names):
            value = np.zeros(self.mask.shape, dtype)
            value[self.mask] = cells[start // dtype.itemsize + k]
            self.write(name, value)

    def do_st(self, i: Instruction) -> None:
        operand, source = i.operands
        if not self.mask.any():
            return
        buffer, start = self.locate(i, operand)
        dtype = i.types[0]
        cells = buffer[: buffer.size // dtype.itemsize * dtype.itemsize].view(dtype)
        for k, name in enumerate(source if isinstance(source, list) else [source]):
            value = np.broadcast_to(self.read(name, dtype), self.mask.shape)
            cells[start // dtype.itemsize + k] = value[self.mask]

    def do_shfl(self, i: Instruction) -> None:
        to, source = i.operands[0], i.operands[-4]  # to may have a predicate beside it
        lane, by = self.special["%laneid"], self.read(i.operands[-3], np.dtype(np.uint32))
        other = {"bfly": lane ^ by, "down": lane + by, "up": lane - by, "idx": lane & 0 | by}
        target = other[i.modifiers[1]]
        target = np.where(target < 32, target, lane)
        if (np.bincount(self.warp, self.mask) % 32).any():
            raise Fault("a shuffle that not all threads of a warp reach")
        value = np.broadcast_to(self.read(source, i.types[0]), self.mask.shape)
        self.write(to, value[np.arange(len(lane)) - lane + target])

    def do_bra(self, i: Instruction) -> None:
        self.position[self.mask] = self.kernel.labels[i.operands[-1]]

    def do_ret(self, i: Instruction) -> None:
        self.position[self.mask] = self.done

    do_exit = do_ret

    def do_bar(self, i: Instruction) -> None:
        self.waiting |= self.mask

    do_barrier = do_bar


def _distinct(rows: np.ndarray) -> int:
    """Distinct values, but for -1, in each sorted row, summed."""
    new = np.ones(rows.shape, bool)
    new[:, 1:] = rows[:, 1:] != rows[:, :-1]
    return int((new & (rows >= 0)).sum())
