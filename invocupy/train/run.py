"""A run in memory, and its files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from invocupy import checkpoint, machine, nn, optim
from invocupy._version import __version__
from invocupy.arrays import Array, device_of, namespace, to_device
from invocupy.train.average import Average
from invocupy.train.config import Config, ConfigError
from invocupy.train.evaluation import Evaluation
from invocupy.train.replica import Replica
from invocupy.train.saved import (
    BEST,
    CONFIG,
    FILES,
    LAST,
    MACHINE,
    METRICS,
    Row,
    State,
    counted,
    name_of,
    read,
    to_resume,
    under,
)
from invocupy.train.sets import About
from invocupy.train.setup import rate


class NonFiniteLoss(ArithmeticError):  # noqa: N818
    """The loss became NaN or infinite. The message says in which step, and the first bad array."""


@dataclass
class Run:
    """A run in memory; ``folder`` is None if nothing is to be written, as on ranks other than 0."""

    config: Config
    folder: Path | None
    model: nn.Module
    optimiser: optim.SGD
    steps: int  # an epoch
    average: Average
    replica: Replica
    about: About
    state: State = field(default_factory=State)

    def __post_init__(self) -> None:
        self.best = Average(self.model, 0)  # the best epoch's weights, where there is validation

    @property
    def done(self) -> int:
        """Steps, of the whole run."""
        return self.state.epoch * self.steps + self.state.step

    def begin(self, resume: bool) -> None:
        """Restore a run and write its files, first the checkpoint, from which it can be resumed."""
        if resume and self.replica.is_root:
            self.restore()
        if self.folder is None:
            return
        checkpoint.sweep(self.folder, FILES)
        try:
            if not resume:
                self.save("last")
            checkpoint.write_atomically(self.folder / CONFIG, self.config.to_json().encode())
            about = {**machine.describe(), "ranks": self.replica.comm.size}
            text = json.dumps(about, indent=2) + "\n"
            checkpoint.write_atomically(self.folder / MACHINE, text.encode())
            self._write_metrics()
        except BaseException:
            if not resume:  # as it was: the same command begins again
                (self.folder / LAST).unlink(missing_ok=True)
            raise

    def restore(self) -> None:
        """Load the last checkpoint; ConfigError if its settings differ."""
        if self.folder is None:
            raise ConfigError("out must be given to resume: the run's folder")
        _, state, _, saved, _ = to_resume(
            self.config, self.folder, self.about, self.steps, self.model
        )
        own = self.arrays(everywhere=True)
        arrays = {
            name: to_device(saved[name].astype(own[name].dtype), device_of(own[name]))
            for name in own
            if name in saved
        }
        self.put(state, arrays)
        if self.config.validation and state.history:
            saved = read(self.folder / BEST, self.model).arrays
            chosen = under("average." if self.config.ema else "model.", saved)
            device = self.replica.comm.device
            self.best.arrays = {name: to_device(a, device) for name, a in chosen.items()}

    def spread(self) -> None:
        """Copy the state of rank 0 to all ranks."""
        state, names = self.replica.from_root((asdict(self.state), [*self.arrays()]))
        own = self.arrays(everywhere=True)
        self.put(State(**state), {name: self.replica.broadcast(own[name]) for name in names})
        names, own = self.replica.from_root([*self.best.arrays]), self.evaluated()
        own |= self.best.arrays
        self.best.arrays = {name: self.replica.broadcast(own[name]) for name in names}

    def evaluated(self) -> dict[str, Array]:
        """The arrays that are evaluated: those of the model, or their averages."""
        own = {name: holder.data for name, holder in self.model.named_state()}
        return own | self.average.arrays

    def arrays(self, everywhere: bool = False) -> dict[str, Array]:
        """All arrays that training changes, by their names in a checkpoint.

        A parameter has a velocity after its first update, or with ``everywhere``.
        """
        moved = zip(self.model.named_parameters(), self.optimiser.velocities, strict=True)
        velocities = ((name, p.data if v is None and everywhere else v) for (name, p), v in moved)
        return {
            **{f"model.{name}": holder.data for name, holder in self.model.named_state()},
            **{f"velocity.{name}": array for name, array in velocities if array is not None},
            **{f"average.{name}": a for name, a in self.average.arrays.items()},
        }

    def put(self, state: State, arrays: Mapping[str, Array]) -> None:
        """Set the state and the arrays."""
        self.state = state
        for name, holder in self.model.named_state():
            holder.data = arrays[f"model.{name}"]
        names = (f"velocity.{name}" for name, _ in self.model.named_parameters())
        self.optimiser.velocities = [arrays.get(name) for name in names]
        self.average.arrays = under("average.", arrays)

    def average_norms(self) -> None:
        """Average the running statistics over the ranks where each has its own."""
        self.replica.average_norms(self.model, self.average.arrays)

    def save(self, which: str) -> None:
        """Write a checkpoint, ``"last"`` or ``"best"``."""
        if self.folder is None:
            return
        arrays = {name: to_device(array, "cpu") for name, array in self.arrays().items()}
        info = {
            "invocupy": __version__,
            "config": asdict(self.config),
            "state": asdict(self.state),
            "data": self.about._asdict(),
            "model": name_of(self.model),
            "best_accuracy": (counted(self.state.history) or {}).get("val_accuracy"),
        }
        checkpoint.save(self.folder / f"{which}.safetensors", arrays, info)

    def row(self, result: Evaluation) -> Row:
        """The line of the epoch whose steps are done."""
        state, total = self.state, self.config.epochs * self.steps
        loss = result.loss if math.isfinite(result.loss) else None
        measured = {"test_loss": loss, "test_accuracy": result.accuracy}
        if self.config.validation:
            measured = {
                "val_loss": loss, "val_accuracy": result.accuracy,
                "test_loss": None, "test_accuracy": None,
            }  # fmt: skip
        return {
            "epoch": state.epoch + 1,
            "step": (state.epoch + 1) * self.steps,
            "train_loss": state.loss / state.images,
            "train_accuracy": state.correct / state.images,
            **measured,
            "seconds": state.seconds,
            "images_per_second": state.images / max(state.seconds, 1e-9),
            "lr": rate(self.config, (state.epoch + 1) * self.steps - 1, total),
        }

    def end_epoch(self, row: Row) -> None:
        """Add a line to the history and save, what can be resumed before what is to be read."""
        self.state = State(epoch=self.state.epoch + 1, history=[*self.state.history, row])
        if counted(self.state.history) is row:
            self.save("best")
            if self.config.validation:
                self.best.arrays = {name: a.copy() for name, a in self.evaluated().items()}
        self.save("last")
        self._write_metrics()

    @property
    def untested(self) -> bool:
        """Whether the test set, which is read once at the end, has not been read."""
        history = self.state.history
        return bool(history) and history[-1].get("test_accuracy") is None

    def end(self, result: Evaluation) -> None:
        """Add the test result of the best weights to the last line."""
        loss = result.loss if math.isfinite(result.loss) else None
        self.state.history[-1] |= {"test_loss": loss, "test_accuracy": result.accuracy}
        self.save("last")
        self._write_metrics()

    def stalled(self) -> bool:
        """Whether the last ``patience`` epochs brought no higher validation accuracy."""
        best = counted(self.state.history)
        if self.config.patience is None or best is None:
            return False
        return self.state.epoch - int(best["epoch"]) >= self.config.patience

    def non_finite(self, loss: float, step: int) -> NonFiniteLoss:
        """The error that says which step of this epoch it was, and where to look."""
        named = [*self.model.named_parameters()]
        arrays = [(f"parameter {name}", parameter.data) for name, parameter in named]
        arrays += [(f"gradient of {name}", p.grad) for name, p in named if p.grad is not None]
        wrong = (name for name, array in arrays if not namespace(array).isfinite(array).all())
        first = next((f" (first non-finite: {name})" for name in wrong), "")
        kept = f"; {self.folder / LAST} is from before" if self.folder else ""
        return NonFiniteLoss(
            f"training loss is {loss} in epoch {self.state.epoch + 1}, step "
            f"{self.state.epoch * self.steps + step}{first}: train with a lower lr than "
            f"{self.config.lr:g}{kept}"
        )

    def _write_metrics(self) -> None:
        # The whole file is rewritten, so that it agrees with the checkpoint after a crash.
        if self.folder is not None:
            lines = "".join(json.dumps(row) + "\n" for row in self.state.history)
            checkpoint.write_atomically(self.folder / METRICS, lines.encode())
