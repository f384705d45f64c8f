"""Runs the PTX that NVIDIA's compiler makes of a kernel: one NumPy lane a thread.

A register is an array with a value for each thread of several blocks. Threads that wait at the
lowest position go first, so that those which parted meet again, as on the device. It runs what was
really emitted (wide and narrow accesses, contracted multiply-adds, half conversions), faults on a
bad or misaligned address, and counts what a device would do: warp instructions and 32-byte sectors.

Not modelled: fma rounds twice, once to twice the precision (float32) or to 80 bits (float64) and
once to the result. An instruction that our kernels do not use is an error.
"""

from __future__ import annotations

import functools
import math
import operator
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np

from .host import three

SECTOR = 32
LANES = 1 << 14  # threads that are run together, whole blocks of them

_TYPES = {
    "pred": np.bool_, "f16": np.float16, "bf16": ml_dtypes.bfloat16, "f32": np.float32,
    "f64": np.float64,
    **{f"{kind}{bits}": getattr(np, f"{'' if kind == 's' else 'u'}int{bits}")
       for kind in "subs" for bits in (8, 16, 32, 64)},
}  # fmt: skip
_WIDE = {4: np.float64, 8: np.longdouble}  # the type in which an fma is exact, or nearly
_BINARY = {
    "add": np.add, "sub": np.subtract, "min": np.fmin, "max": np.fmax, "and": np.bitwise_and,
    "or": np.bitwise_or, "xor": np.bitwise_xor,
}  # fmt: skip
_COMPARE = {
    **{name: getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge")},
    **{f"{name}u": functools.partial(lambda f, a, b: f(a, b) | np.isnan(a) | np.isnan(b),
                                     getattr(operator, name))
       for name in ("eq", "ne", "lt", "le", "gt", "ge")},
    "lo": operator.lt, "ls": operator.le, "hi": operator.gt, "hs": operator.ge,
    "num": lambda a, b: ~(np.isnan(a) | np.isnan(b)), "nan": lambda a, b: np.isnan(a) | np.isnan(b),
}  # fmt: skip


class Fault(Exception):  # noqa: N818
    """What would stop the kernel on a device, with the instruction and the thread."""


class _Instruction:
    """``@!%p1 ld.global.nc.v4.u32 {%r1, ...}, [%rd5+16];`` taken apart."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.free = False
        match = re.fullmatch(r"(?:@(!?)([%\w]+)\s+)?([\w.:]+)\s*(.*)", text, re.S)
        if match is None:
            raise NotImplementedError(f"cannot read the instruction: {text}")
        negated, self.predicate, opcode, operands = match.groups()
        self.negated = bool(negated)
        self.name, *self.modifiers = opcode.split(".")
        self.types = [np.dtype(_TYPES[m]) for m in self.modifiers if m in _TYPES]
        split = re.findall(r"\{[^}]*\}|\[[^]]*\]|[^,\s|{}\[\]]+", operands)
        self.operands = [
            [part.strip() for part in o[1:-1].split(",")] if o[0] == "{" else o for o in split
        ]


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
            size = np.dtype(_TYPES[kind]).itemsize * int(count or 1)
            offset = -(-offset // int(align or size)) * int(align or size)
            self.parameters[symbol] = offset
            self.parameter_sizes.append((offset, size))
            offset += size
        self.registers: dict[str, np.dtype] = {}
        self.shared: dict[str, int] = {}
        self.shared_size = 0
        self.labels: dict[str, int] = {}
        self.blocks: list[list[_Instruction]] = [[]]  # runs of instructions that go together
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
                self.registers |= dict.fromkeys(every, np.dtype(_TYPES[kind.replace("b", "u")]))
        elif text.startswith(".shared"):
            align, symbol, size = re.fullmatch(
                r"\.shared\s+\.align\s+(\d+)\s+\.b8\s+(\w+)\[(\d+)\]", text
            ).groups()
            start = -(-self.shared_size // int(align)) * int(align)
            self.shared[symbol], self.shared_size = start, start + int(size)
        elif text.startswith("."):
            raise NotImplementedError(f"{self.name}: {text} (local memory is never meant)")
        else:
            instruction = _Instruction(text)
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


class _Run:
    """Some blocks of one launch, from start to end."""

    def __init__(
        self, kernel: Kernel, memory: _Memory, parameters: np.ndarray, grid: Any, block: Any,
        first: int, count: int,
    ) -> None:  # fmt: skip
        self.kernel, self.memory, self.parameters = kernel, memory, parameters
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

    def step(self, i: _Instruction, mask: np.ndarray, warps: int) -> None:
        full, self.ftz = self.full, "ftz" in i.modifiers
        if i.predicate:
            chosen = self.registers[i.predicate] ^ i.negated
            self.mask, self.full = mask & chosen, full and bool(chosen.all())
        handler = getattr(self, f"do_{i.name}", None)
        try:
            if handler is not None:
                handler(i)
            elif i.name in _BINARY:
                a, b = (self.read(o, i.types[0]) for o in i.operands[1:])
                keep_nan = {"min": np.minimum, "max": np.maximum} if "NaN" in i.modifiers else {}
                self.write(i.operands[0], keep_nan.get(i.name, _BINARY[i.name])(a, b))
            else:
                raise NotImplementedError("unknown instruction")
            if i.name == "fma":
                self.kernel.counts["fma"] += int(np.count_nonzero(self.mask))
        except (Fault, NotImplementedError, LookupError) as error:
            raise type(error)(f"{self.kernel.name}: {i.text}: {error}") from error
        self.mask, self.full = mask, full

    def read(self, operand: str, dtype: np.dtype) -> Any:
        register = self.registers.get(operand)
        if register is None:
            register = self.special.get(operand)
        if register is None:
            return self.constant(operand, dtype)
        if register.dtype.itemsize == dtype.itemsize:
            return self.flushed(register.view(dtype))
        return register.astype(f"u{dtype.itemsize}").view(dtype)  # the low bits

    def constant(self, text: str, dtype: np.dtype) -> Any:
        if text in self.kernel.shared:
            return dtype.type(self.kernel.shared[text])
        if text[:2] in ("0f", "0d"):
            bits = int(text[2:], 16)
            return np.array(bits, f"u{len(text) // 2 - 1}").view(dtype)[()]
        if dtype.kind == "b":
            return np.bool_(int(text))
        mask = (1 << 8 * dtype.itemsize) - 1
        return np.array(int(text, 0) & mask, f"u{dtype.itemsize}").view(dtype)[()]

    def flushed(self, value: np.ndarray) -> np.ndarray:
        """With ``.ftz`` a float32 that is subnormal goes in and comes out as zero, sign kept."""
        if self.ftz and value.dtype == np.float32:
            tiny = (value.view(np.uint32) & np.uint32(0x7F800000)) == 0
            if tiny.any():
                return np.where(tiny, np.copysign(np.float32(0), value), value)
        return value

    def write(self, name: str, value: Any) -> None:
        if name == "_":
            return
        register = self.registers[name]
        value = self.flushed(np.asarray(value))
        if value.dtype != register.dtype:
            if value.dtype.itemsize == register.dtype.itemsize:
                value = value.view(register.dtype)
            else:  # widened by its own sign, or cut
                value = value.view(f"{'i' if value.dtype.kind == 'i' else 'u'}{value.itemsize}")
                value = value.astype(register.dtype)
        np.copyto(register, value, where=True if self.full else self.mask)

    # ------------------------------------------------------------------------------ arithmetic

    def do_mov(self, i: _Instruction) -> None:
        to, source = i.operands
        if isinstance(to, list):  # split a register in parts, low part first
            parts = np.atleast_1d(self.read(source, i.types[0]))[:, None]
            size = i.types[0].itemsize // len(to)
            parts = np.ascontiguousarray(parts).view(f"u{size}")
            for k, name in enumerate(to):
                self.write(name, parts[:, k])
        elif isinstance(source, list):
            part = np.dtype(f"u{i.types[0].itemsize // len(source)}")
            columns = [np.broadcast_to(self.read(s, part), self.mask.shape) for s in source]
            self.write(to, np.stack(columns, 1).view(i.types[0])[:, 0])
        else:
            self.write(to, self.read(source, i.types[0]))

    def do_cvta(self, i: _Instruction) -> None:
        self.write(i.operands[0], self.read(i.operands[1], i.types[0]))

    def do_cvt(self, i: _Instruction) -> None:
        to, source = i.types
        value = self.read(i.operands[1], source)
        if to.kind in "iu" and source.kind not in "iu":
            rounded = {"rzi": np.trunc, "rni": np.rint, "rmi": np.floor, "rpi": np.ceil}
            value = next(rounded[m] for m in i.modifiers if m in rounded)(value)
        if "sat" in i.modifiers:
            raise NotImplementedError("saturation")
        self.write(i.operands[0], value.astype(to))

    def do_fma(self, i: _Instruction) -> None:
        a, b, c = (self.read(o, i.types[0]) for o in i.operands[1:])
        wide = _WIDE[i.types[0].itemsize]
        self.write(i.operands[0], (np.multiply(a, b, dtype=wide) + c).astype(i.types[0]))

    def do_mul(self, i: _Instruction, *rest: Any) -> None:
        a, b = (self.read(o, i.types[0]) for o in i.operands[1:3])
        if "wide" in i.modifiers:
            double = np.dtype(f"{i.types[0].kind}{2 * i.types[0].itemsize}")
            value = np.multiply(a, b, dtype=double)
        elif "hi" in i.modifiers and i.types[0].itemsize == 4:
            double = np.dtype(f"{i.types[0].kind}8")
            value = (np.multiply(a, b, dtype=double) >> double.type(32)).astype(i.types[0])
        elif "hi" in i.modifiers:
            raise NotImplementedError("high half of a 64-bit product")
        else:
            value = np.multiply(a, b)
        if len(i.operands) == 4:
            value = value + self.read(i.operands[3], np.asarray(value).dtype)
        self.write(i.operands[0], value)

    do_mad = do_mul

    def do_div(self, i: _Instruction) -> None:
        a, b = (self.read(o, i.types[0]) for o in i.operands[1:])
        if i.types[0].kind == "f":
            return self.write(i.operands[0], a / b)
        quotient = np.floor_divide(a, b)
        if i.types[0].kind == "i":  # towards zero
            quotient = quotient + ((quotient < 0) & (quotient * b != a))
        return self.write(i.operands[0], quotient.astype(i.types[0]))

    def do_rem(self, i: _Instruction) -> None:
        self.write(i.operands[0], np.fmod(*(self.read(o, i.types[0]) for o in i.operands[1:])))

    def do_not(self, i: _Instruction) -> None:
        self.write(i.operands[0], ~self.read(i.operands[1], i.types[0]))

    def do_neg(self, i: _Instruction) -> None:
        self.write(i.operands[0], -self.read(i.operands[1], i.types[0]))

    def do_abs(self, i: _Instruction) -> None:
        self.write(i.operands[0], np.abs(self.read(i.operands[1], i.types[0])))

    def do_sqrt(self, i: _Instruction) -> None:
        self.write(i.operands[0], np.sqrt(self.read(i.operands[1], i.types[0])))

    def do_rcp(self, i: _Instruction) -> None:
        self.write(i.operands[0], i.types[0].type(1) / self.read(i.operands[1], i.types[0]))

    def do_shl(self, i: _Instruction) -> None:
        self.shift(i, np.left_shift)

    def do_shr(self, i: _Instruction) -> None:
        self.shift(i, np.right_shift)

    def shift(self, i: _Instruction, function: Any) -> None:
        by = np.asarray(self.read(i.operands[2], np.dtype(np.uint32))).astype(i.types[0])
        last = i.types[0].type(8 * i.types[0].itemsize - 1)
        value = function(self.read(i.operands[1], i.types[0]), np.minimum(by, last))
        if i.types[0].kind == "u":
            value = np.where(by > last, i.types[0].type(0), value)
        self.write(i.operands[0], value)

    def do_bfi(self, i: _Instruction) -> None:
        bits, into = (self.read(o, i.types[0]) for o in i.operands[1:3])
        start, length = (int(self.read(o, i.types[0])) for o in i.operands[3:])  # constants
        field = i.types[0].type(((1 << length) - 1) << start)
        self.write(i.operands[0], (bits << i.types[0].type(start)) & field | into & ~field)

    def do_setp(self, i: _Instruction) -> None:
        to, *rest = i.operands
        value = _COMPARE[i.modifiers[0]](*(self.read(o, i.types[0]) for o in rest[:2]))
        if len(rest) == 3:
            joined = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}
            value = joined[i.modifiers[1]](value, self.read(rest[2], np.dtype(bool)))
        self.write(to, value)

    def do_selp(self, i: _Instruction) -> None:
        a, b = (self.read(o, i.types[0]) for o in i.operands[1:3])
        self.write(i.operands[0], np.where(self.registers[i.operands[3]], a, b))

    # ------------------------------------------------------------------------- memory and threads

    def place(self, i: _Instruction, operand: str) -> tuple[np.ndarray, int]:
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

    def locate(self, i: _Instruction, operand: str) -> tuple[np.ndarray, np.ndarray]:
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

    def do_ld(self, i: _Instruction) -> None:
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

    def do_st(self, i: _Instruction) -> None:
        operand, source = i.operands
        if not self.mask.any():
            return
        buffer, start = self.locate(i, operand)
        dtype = i.types[0]
        cells = buffer[: buffer.size // dtype.itemsize * dtype.itemsize].view(dtype)
        for k, name in enumerate(source if isinstance(source, list) else [source]):
            value = np.broadcast_to(self.read(name, dtype), self.mask.shape)
            cells[start // dtype.itemsize + k] = value[self.mask]

    def do_shfl(self, i: _Instruction) -> None:
        to, source = i.operands[0], i.operands[-4]  # to may have a predicate beside it
        lane, by = self.special["%laneid"], self.read(i.operands[-3], np.dtype(np.uint32))
        other = {"bfly": lane ^ by, "down": lane + by, "up": lane - by, "idx": lane & 0 | by}
        target = other[i.modifiers[1]]
        target = np.where(target < 32, target, lane)
        if (np.bincount(self.warp, self.mask) % 32).any():
            raise Fault("a shuffle that not all threads of a warp reach")
        value = np.broadcast_to(self.read(source, i.types[0]), self.mask.shape)
        self.write(to, value[np.arange(len(lane)) - lane + target])

    def do_bra(self, i: _Instruction) -> None:
        self.position[self.mask] = self.kernel.labels[i.operands[-1]]

    def do_ret(self, i: _Instruction) -> None:
        self.position[self.mask] = self.done

    do_exit = do_ret

    def do_bar(self, i: _Instruction) -> None:
        self.waiting |= self.mask

    do_barrier = do_bar


def _distinct(rows: np.ndarray) -> int:
    """Distinct values, but for -1, in each sorted row, summed."""
    new = np.ones(rows.shape, bool)
    new[:, 1:] = rows[:, 1:] != rows[:, :-1]
    return int((new & (rows >= 0)).sum())
