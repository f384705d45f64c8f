"""A run: all that its next step depends on, and the folder that it is kept in."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from invocupy import checkpoint, machine, nn, optim
from invocupy._version import __version__
from invocupy.arrays import Array, device_of, namespace, to_device
from invocupy.checkpoint import CheckpointError
from invocupy.docstrings import documented
from invocupy.paths import expand
from invocupy.train.average import Average
from invocupy.train.config import Config, ConfigError, read_settings
from invocupy.train.evaluation import Evaluation
from invocupy.train.replica import Replica
from invocupy.train.setup import build, rate

Row = dict[str, Any]
"""One line of ``metrics.jsonl``: names to numbers."""

Saved = tuple[Config, "State", nn.Module, dict[str, Array]]
"""Settings, state, model and all arrays of a checkpoint."""

_FILES = _LAST, _BEST, _CONFIG, _MACHINE, _METRICS = (
    "last.safetensors", "best.safetensors", "config.json", "machine.json", "metrics.jsonl",
)  # fmt: skip
_FREE_AT_RESUME = {item.name for item in fields(Config) if item.metadata["free"]}


class NonFiniteLoss(ArithmeticError):  # noqa: N818
    """The loss became NaN or infinite. Says in which step, and where it can be seen first."""


def measured_on(row: Row) -> str:
    """The images that an epoch was measured on, as in its names: ``"val"`` or ``"test"``."""
    return "val" if "val_accuracy" in row else "test"


def counted(history: Sequence[Row]) -> Row | None:
    """The epoch that counts: the first of the best ones in validation, without it the last one."""
    if history and "val_accuracy" in history[-1]:
        return max(history, key=lambda row: row.get("val_accuracy", 0))
    return history[-1] if history else None


@documented
def load_run(
    folder: str | os.PathLike[str], which: str = "best"
) -> tuple[Config, nn.Module, list[Row]]:
    """Settings, trained model and history from a run's folder.

    ``which`` checkpoint is ``"best"``, of the epoch with the highest validation accuracy (without
    ``config.validation`` that of the last epoch), or ``"last"``. The model is on the CPU, in
    evaluation mode, with the averaged weights if ``config.ema`` asked for them. The history has the
    epochs until then, as from :func:`invocupy.train.fit`.

    Raises
    ------
    invocupy.checkpoint.CheckpointError
        If the checkpoint is missing, damaged, or not one of a run.

    >>> load_run("no/such/folder")
    Traceback (most recent call last):
    invocupy.checkpoint.CheckpointError: no/such/folder/best.safetensors cannot be read (...): ...
    """
    config, state, model, arrays = _read(expand(folder) / f"{which}.safetensors")
    if config.ema:
        model.load_state_dict(_under("average.", arrays))
    return config, model.eval(), state.history


@dataclass
class State:
    """Where a run stands: with the arrays, all that its next step depends on."""

    epoch: int = 0  # epochs finished
    step: int = 0  # steps done of the one after them, and sums over these steps:
    images: int = 0
    loss: float = 0.0
    correct: int = 0
    seconds: float = 0.0
    history: list[Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        rows = self.history if isinstance(self.history, list) else [None]
        numbers: list[Any] = [self.loss, self.seconds]
        for row in rows:
            known = isinstance(row, dict)
            numbers.append(row.get(f"{measured_on(row)}_accuracy") if known else None)
        if not (
            all(
                type(count) is int and count >= 0
                for count in (self.epoch, self.step, self.images, self.correct)
            )
            and all(type(value) in (int, float) and math.isfinite(value) for value in numbers)
            and len(rows) == self.epoch
        ):
            raise ValueError("its state is not that of a run")


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
    state: State = field(default_factory=State)

    def __post_init__(self) -> None:
        self.best = Average(self.model, 0)  # the best epoch's weights, where there is validation

    @property
    def done(self) -> int:
        """Steps, of the whole run."""
        return self.state.epoch * self.steps + self.state.step

    def begin(self, resume: bool) -> None:
        """Restore and write the folder's files, the checkpoint first: who has one goes on."""
        if resume and self.replica.is_root:
            self.restore()
        if self.folder is None:
            return
        checkpoint.sweep(self.folder, _FILES)
        try:
            if not resume:
                self.save("last")
            checkpoint.write_atomically(self.folder / _CONFIG, self.config.to_json().encode())
            about = {**machine.describe(), "ranks": self.replica.comm.size}
            text = json.dumps(about, indent=2) + "\n"
            checkpoint.write_atomically(self.folder / _MACHINE, text.encode())
            self._write_metrics()
        except BaseException:
            if not resume:  # as it was: the same command begins again
                (self.folder / _LAST).unlink(missing_ok=True)
            raise

    def restore(self) -> None:
        """Take over the folder's last checkpoint; ConfigError if it is of other settings."""
        if self.folder is None:
            raise ConfigError("out must be given to resume: the run's folder")
        _, state, _, saved = to_resume(self.config, self.folder, self.steps, self.model)
        own = self.arrays(everywhere=True)
        arrays = {
            name: to_device(saved[name].astype(own[name].dtype), device_of(own[name]))
            for name in own
            if name in saved
        }
        self.put(state, arrays)
        if self.config.validation and state.history:
            config, _, _, saved = _read(self.folder / _BEST, self.model)
            chosen = _under("average." if config.ema else "model.", saved)
            device = self.replica.comm.device
            self.best.arrays = {name: to_device(a, device) for name, a in chosen.items()}

    def spread(self) -> None:
        """Let all ranks stand where rank 0 does, with its bits."""
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
        """All that training changes, by the names in a checkpoint.

        A parameter has a velocity once it was moved, or ``everywhere``.
        """
        moved = zip(self.model.named_parameters(), self.optimiser.velocities, strict=True)
        velocities = ((name, p.data if v is None and everywhere else v) for (name, p), v in moved)
        return {
            **{f"model.{name}": holder.data for name, holder in self.model.named_state()},
            **{f"velocity.{name}": array for name, array in velocities if array is not None},
            **{f"average.{name}": a for name, a in self.average.arrays.items()},
        }

    def put(self, state: State, arrays: Mapping[str, Array]) -> None:
        """Stand at a state with these arrays."""
        self.state = state
        for name, holder in self.model.named_state():
            holder.data = arrays[f"model.{name}"]
        names = (f"velocity.{name}" for name, _ in self.model.named_parameters())
        self.optimiser.velocities = [arrays.get(name) for name in names]
        self.average.arrays = _under("average.", arrays)

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
        """Add to the last line what the best weights do on the test set."""
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
        kept = f"; {self.folder / _LAST} is from before" if self.folder else ""
        return NonFiniteLoss(
            f"training loss is {loss} in epoch {self.state.epoch + 1}, step "
            f"{self.state.epoch * self.steps + step}{first}: train with a lower lr than "
            f"{self.config.lr}{kept}"
        )

    def _write_metrics(self) -> None:
        # The whole file anew, so that it agrees with the checkpoint whatever was killed when.
        if self.folder is not None:
            lines = "".join(json.dumps(row) + "\n" for row in self.state.history)
            checkpoint.write_atomically(self.folder / _METRICS, lines.encode())


def check_folder(
    config: Config, folder: Path, resume: bool, model: nn.Module | None = None
) -> None:
    """Refuse a folder in which the run cannot begin, or not go on with these settings.

    ``model`` is that of the caller, where it is not built from the settings.
    """
    if resume:
        to_resume(config, folder, model=model)
        return
    if os.path.lexists(folder) and not folder.is_dir():
        raise ConfigError(f"out {folder} is a file: give a folder")
    there = [name for name in _FILES if os.path.lexists(folder / name)]
    if there and not _was_never_begun(folder, there):
        raise ConfigError(
            f"out {folder} holds a run already ({', '.join(there)}): give another folder, or "
            "resume it"
        )


def _was_never_begun(folder: Path, there: list[str]) -> bool:
    """Whether these files are what older versions left that were killed before a checkpoint."""
    config, metrics = folder / _CONFIG, folder / _METRICS
    if there[0] != _CONFIG or (metrics.exists() and metrics.stat().st_size):
        return False
    try:
        return not config.stat().st_size or bool(read_settings(config))
    except (ConfigError, OSError):
        return False


def to_resume(
    config: Config, folder: Path, steps: int | None = None, model: nn.Module | None = None
) -> Saved:
    """The last checkpoint of a run that can go on with these settings; else ConfigError.

    ``steps`` are those of an epoch, once its data is read; ``model`` as in :func:`check_folder`.
    """
    saved = _read(folder / _LAST, model)
    its, state = asdict(saved[0]), saved[1]
    wrong = [
        f"{name} is {its[name]!r} there, not {mine!r}"
        for name, mine in asdict(config).items()
        if mine != its[name] and name not in _FREE_AT_RESUME
    ]
    begun = state.epoch + (state.step > 0)
    if config.epochs < begun:
        wrong.append(f"epochs must be at least {begun}, which has begun there")
    if steps is not None and state.step > steps:
        wrong.append(f"an epoch of this data has {steps} steps, there {state.step} are done")
    if wrong:
        raise ConfigError(f"settings contradict the run in {folder}: {'; '.join(wrong)}")
    return saved


def _read(path: Path, own: nn.Module | None = None) -> Saved:
    if not os.path.isdir(path.parent):  # noqa: PTH112  (pathlib's raises for a name too long)
        raise CheckpointError(
            f"{path} cannot be read (there is no folder {path.parent}): give the folder of a run, "
            "which training names at its end"
        )
    arrays, info = checkpoint.load(path)
    try:
        config, state = Config(**info["config"]), State(**info["state"])
        model = build(config) if own is None else own
        before = model.state_dict()
        try:
            if config.ema:  # the names and shapes, for whoever takes them
                model.load_state_dict(_under("average.", arrays))
            model.load_state_dict(_under("model.", arrays))
        finally:
            if own is not None:
                own.load_state_dict(before)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} is whole, but not a run of this version"
            f"{'' if own is None else ' and model'} ({error}): use the version that wrote "
            f"it ({info.get('invocupy', 'unknown')}), or train again"
        ) from error
    return config, state, model, arrays


def _under(prefix: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}
