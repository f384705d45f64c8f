"""An exponential moving average of a model's weights, which is evaluated instead of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from invocupy import backends, nn
from invocupy.arrays import Array, on_device, wide
from invocupy.geometry import number


class Average:
    """Averages of all floating arrays of a model, also running statistics, on its device.

    Other state (the number of batches) is copied. With a decay of 0 there are no averages.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = number("ema", decay, 0, 1)
        # In half types small steps would be lost in rounding.
        self.arrays = {
            name: holder.data.astype(wide(holder.data.dtype) or holder.data.dtype, order="C")
            for name, holder in model.named_state()
            if self.decay
        }

    def share(self, steps: int) -> float:
        """The share that the weights after the update number ``steps`` (from 1) have."""
        return 1 - min(self.decay, (1 + steps) / (10 + steps))

    def update(self, model: nn.Module, steps: int, share: Array | None = None) -> None:
        """Take in the weights after that update, in place; nothing is read back.

        A ``share`` is an array (1,) of float64 on the device from which the share is read.
        """
        kinds: dict[Any, list[tuple[Array, Array]]] = {}
        for name, holder in model.named_state() if self.arrays else ():
            mine = self.arrays[name]
            if holder.data.shape != mine.shape:  # kernels would read past its end
                raise ValueError(
                    f"{name} must keep the shape of its average, {mine.shape}, got "
                    f"{holder.data.shape}"
                )
            if mine.dtype.kind == "f":
                kinds.setdefault(backends.of("sgd", mine), []).append((mine, holder.data))
            else:
                with on_device(mine):
                    mine[...] = holder.data
        for backend, pairs in kinds.items():
            backend.average(
                *zip(*pairs, strict=True), self.share(steps) if share is None else share
            )

    @contextmanager
    def used_by(self, model: nn.Module) -> Iterator[None]:
        """Context in which the model computes with the averages."""
        own = [(holder, holder.data) for _, holder in model.named_state()]
        try:
            self.put_into(model)
            yield
        finally:
            for holder, array in own:
                holder.data = array

    def put_into(self, model: nn.Module) -> None:
        """Replace the weights of the model by the averages."""
        for name, holder in model.named_state():
            if name in self.arrays:
                holder.data = self.arrays[name].astype(holder.data.dtype, copy=False)
