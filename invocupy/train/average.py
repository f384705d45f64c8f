"""An exponential moving average of a model's weights, which is evaluated instead of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from invocupy import nn
from invocupy.arrays import on_device, wide
from invocupy.geometry import number


class Average:
    """Averages of all floating arrays of a model, also running statistics, on its device.

    Other state (the number of batches) is copied. With a decay of 0 there are no averages.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = number("ema", decay, 0, 1)
        # In half types small steps would be lost in rounding.
        self.arrays = {
            name: holder.data.astype(wide(holder.data.dtype) or holder.data.dtype)
            for name, holder in model.named_state()
            if self.decay
        }

    def update(self, model: nn.Module, steps: int) -> None:
        """Take in the weights after the update number ``steps`` (from 1); nothing is read back."""
        if not self.arrays:
            return
        keep = min(self.decay, (1 + steps) / (10 + steps))
        for name, holder in model.named_state():
            with on_device(holder.data):
                if holder.data.dtype.kind in "fV":
                    self.arrays[name] += (1 - keep) * (holder.data - self.arrays[name])
                else:
                    self.arrays[name] = holder.data

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
