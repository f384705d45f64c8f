"""Instructions of PTX, and those that touch registers only, for many threads at once."""

from __future__ import annotations

import functools
import operator
import re
from typing import Any

import ml_dtypes
import numpy as np

TYPES = {
    "pred": np.bool_, "f16": np.float16, "bf16": ml_dtypes.bfloat16, "f32": np.float32,
    "f64": np.float64,
    **{f"{kind}{bits}": getattr(np, f"{'' if kind == 's' else 'u'}int{bits}")
       for kind in "subs" for bits in (8, 16, 32, 64)},
}  # fmt: skip
_WIDE = {4: np.float64, 8: np.longdouble}  # the type in which an fma is exact, or nearly
BINARY = {
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


class Instruction:
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
        self.types = [np.dtype(TYPES[m]) for m in self.modifiers if m in TYPES]
        split = re.findall(r"\{[^}]*\}|\[[^]]*\]|[^,\s|{}\[\]]+", operands)
        self.operands = [
            [part.strip() for part in o[1:-1].split(",")] if o[0] == "{" else o for o in split
        ]


class Registers:
    """Registers with a value for each thread, of which those in ``mask`` are at work."""

    mask: np.ndarray
    full: bool  # all of them
    ftz: bool
    registers: dict[str, np.ndarray]
    special: dict[str, np.ndarray]
    constants: dict[str, int]  # addresses by name

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
        if text in self.constants:
            return dtype.type(self.constants[text])
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

    def do_mov(self, i: Instruction) -> None:
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

    def do_cvta(self, i: Instruction) -> None:
        self.write(i.operands[0], self.read(i.operands[1], i.types[0]))

    def do_cvt(self, i: Instruction) -> None:
        to, source = i.types
        value = self.read(i.operands[1], source)
        if to.kind in "iu" and source.kind not in "iu":
            rounded = {"rzi": np.trunc, "rni": np.rint, "rmi": np.floor, "rpi": np.ceil}
            value = next(rounded[m] for m in i.modifiers if m in rounded)(value)
        if "sat" in i.modifiers:
            raise NotImplementedError("saturation")
        self.write(i.operands[0], value.astype(to))

    def do_fma(self, i: Instruction) -> None:
        a, b, c = (self.read(o, i.types[0]) for o in i.operands[1:])
        wide = _WIDE[i.types[0].itemsize]
        self.write(i.operands[0], (np.multiply(a, b, dtype=wide) + c).astype(i.types[0]))

    def do_mul(self, i: Instruction, *rest: Any) -> None:
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

    def do_div(self, i: Instruction) -> None:
        a, b = (self.read(o, i.types[0]) for o in i.operands[1:])
        if i.types[0].kind == "f":
            return self.write(i.operands[0], a / b)
        quotient = np.floor_divide(a, b)
        if i.types[0].kind == "i":  # towards zero
            quotient = quotient + ((quotient < 0) & (quotient * b != a))
        return self.write(i.operands[0], quotient.astype(i.types[0]))

    def do_rem(self, i: Instruction) -> None:
        self.write(i.operands[0], np.fmod(*(self.read(o, i.types[0]) for o in i.operands[1:])))

    def do_not(self, i: Instruction) -> None:
        self.write(i.operands[0], ~self.read(i.operands[1], i.types[0]))

    def do_neg(self, i: Instruction) -> None:
        self.write(i.operands[0], -self.read(i.operands[1], i.types[0]))

    def do_abs(self, i: Instruction) -> None:
        self.write(i.operands[0], np.abs(self.read(i.operands[1], i.types[0])))

    def do_sqrt(self, i: Instruction) -> None:
        self.write(i.operands[0], np.sqrt(self.read(i.operands[1], i.types[0])))

    def do_rcp(self, i: Instruction) -> None:
        self.write(i.operands[0], i.types[0].type(1) / self.read(i.operands[1], i.types[0]))

    def do_shl(self, i: Instruction) -> None:
        self.shift(i, np.left_shift)

    def do_shr(self, i: Instruction) -> None:
        self.shift(i, np.right_shift)

    def shift(self, i: Instruction, function: Any) -> None:
        by = np.asarray(self.read(i.operands[2], np.dtype(np.uint32))).astype(i.types[0])
        last = i.types[0].type(8 * i.types[0].itemsize - 1)
        value = function(self.read(i.operands[1], i.types[0]), np.minimum(by, last))
        if i.types[0].kind == "u":
            value = np.where(by > last, i.types[0].type(0), value)
        self.write(i.operands[0], value)

    def do_bfi(self, i: Instruction) -> None:
        bits, into = (self.read(o, i.types[0]) for o in i.operands[1:3])
        start, length = (int(self.read(o, i.types[0])) for o in i.operands[3:])  # constants
        field = i.types[0].type(((1 << length) - 1) << start)
        self.write(i.operands[0], (bits << i.types[0].type(start)) & field | into & ~field)

    def do_setp(self, i: Instruction) -> None:
        to, *rest = i.operands
        value = _COMPARE[i.modifiers[0]](*(self.read(o, i.types[0]) for o in rest[:2]))
        if len(rest) == 3:
            joined = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}
            value = joined[i.modifiers[1]](value, self.read(rest[2], np.dtype(bool)))
        self.write(to, value)

    def do_selp(self, i: Instruction) -> None:
        a, b = (self.read(o, i.types[0]) for o in i.operands[1:3])
        self.write(i.operands[0], np.where(self.registers[i.operands[3]], a, b))
