"""The files of a run folder, the state in a checkpoint, and how they are read."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from invocupy import checkpoint, nn
from invocupy.arrays import Array
from invocupy.checkpoint import CheckpointError
from invocupy.docstrings import documented
from invocupy.messages import html_table
from invocupy.paths import expand
from invocupy.train.config import Config, ConfigError, read_settings
from invocupy.train.evaluation import check_model
from invocupy.train.sets import About, describe
from invocupy.train.setup import build

Row = dict[str, Any]
"""One line of ``metrics.jsonl``: names to numbers."""


class OpenRun(NamedTuple):
    """The result of :func:`open_run`. A notebook shows the history as a table."""

    config: Config
    model: nn.Module
    history: list[Row]
    about: About  # of the images: classes, shape, mean and std

    def _repr_html_(self) -> str:
        return html_table(self.history)


class Saved(NamedTuple):
    """The content of a checkpoint."""

    config: Config
    state: State
    model: nn.Module
    arrays: dict[str, Array]
    about: About


FILES = LAST, BEST, CONFIG, MACHINE, METRICS = (
    "last.safetensors", "best.safetensors", "config.json", "machine.json", "metrics.jsonl",
)  # fmt: skip
_FREE_AT_RESUME = {item.name for item in fields(Config) if item.metadata["free"]}


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
    folder: str | os.PathLike[str], which: str = "best", model: nn.Module | None = None
) -> tuple[Config, nn.Module, list[Row]]:
    """Settings, trained model and history from a run's folder: :func:`open_run` without the rest.

    Parameters
    ----------
    which, model
        As in :func:`open_run`.

    >>> load_run("no/such/folder")
    Traceback (most recent call last):
    invocupy.checkpoint.CheckpointError: no/such/folder/best.safetensors cannot be read (...): ...
    """
    return open_run(folder, which, model)[:3]


@documented
def open_run(
    folder: str | os.PathLike[str], which: str = "best", model: nn.Module | None = None
) -> OpenRun:
    """Settings, trained model, history, and the description of the images, from a run folder.

    The model is on the CPU, in evaluation mode, with the averaged weights if ``config.ema`` asked
    for them. The history has the epochs until then, as from :func:`invocupy.train.fit`.

    Parameters
    ----------
    which
        ``"best"``, the checkpoint of the epoch with the highest validation accuracy (without
        ``config.validation`` of the last epoch), or ``"last"``.
    model
        The untrained model, if one was given to ``fit``: it gets the weights.

    Raises
    ------
    invocupy.checkpoint.CheckpointError
        If the checkpoint is missing, damaged, not one of a run, or of another model.

    >>> open_run("no/such/folder")
    Traceback (most recent call last):
    invocupy.checkpoint.CheckpointError: no/such/folder/best.safetensors cannot be read (...): ...
    """
    if model is not None:
        check_model(model)
    saved = read(expand(folder) / f"{which}.safetensors", model)
    kind = "average." if saved.config.ema else "model."
    saved.model.load_state_dict(under(kind, saved.arrays))
    return OpenRun(saved.config, saved.model.eval(), saved.state.history, saved.about)


@dataclass
class State:
    """The progress of a run: with the arrays, everything that the next step depends on."""

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


def check_folder(
    config: Config, folder: Path, resume: bool, about: About, model: nn.Module | None = None
) -> None:
    """ConfigError if the run cannot start in the folder, or continue with these settings.

    ``model`` is that of the caller, if it is not built from the settings.
    """
    if resume:
        to_resume(config, folder, about, model=model)
        return
    if os.path.lexists(folder) and not folder.is_dir():
        raise ConfigError(f"out {folder} is a file: give a folder")
    there = [name for name in FILES if os.path.lexists(folder / name)]
    if there and not _was_never_begun(folder, there):
        raise ConfigError(
            f"out {folder} holds a run already ({', '.join(there)}): give another folder, or "
            "resume it"
        )


def _was_never_begun(folder: Path, there: list[str]) -> bool:
    """Whether these files are of an older version that was killed before its first checkpoint."""
    config, metrics = folder / CONFIG, folder / METRICS
    if there[0] != CONFIG or (metrics.exists() and metrics.stat().st_size):
        return False
    try:
        return not config.stat().st_size or bool(read_settings(config))
    except (ConfigError, OSError):
        return False


def to_resume(
    config: Config, folder: Path, about: About, steps: int | None = None,
    model: nn.Module | None = None,
) -> Saved:  # fmt: skip
    """The last checkpoint of a run that can continue with these settings; else ConfigError.

    ``steps`` are those of an epoch, once the data is read; ``model`` as in :func:`check_folder`.
    """
    saved = read(folder / LAST, model)
    its, state = asdict(saved.config), saved.state
    wrong = [
        f"{name} is {its[name]!r} there, not {mine!r}"
        for name, mine in asdict(config).items()
        if mine != its[name] and name not in _FREE_AT_RESUME
    ]
    if not about.like(saved.about):
        wrong.append(
            "its images are others: of other classes, another shape, or other pixels or labels"
        )
    begun = state.epoch + (state.step > 0)
    if config.epochs < begun:
        wrong.append(f"epochs must be at least {begun}, which has begun there")
    if steps is not None and state.step > steps:
        wrong.append(f"an epoch of this data has {steps} steps, there {state.step} are done")
    if wrong:
        raise ConfigError(f"settings contradict the run in {folder}: {'; '.join(wrong)}")
    return saved


def read(path: Path, own: nn.Module | None = None) -> Saved:
    """The content of a checkpoint; ``own`` is a matching model, which is not changed."""
    if not os.path.lexists(path):  # pathlib's functions raise for a name too long
        why = "has no such file" if os.path.isdir(path.parent) else "is not a folder"  # noqa: PTH112
        raise CheckpointError(
            f"{path} cannot be read ({path.parent} {why}): give the folder of a run, which "
            "training names at its end"
        )
    arrays, info = checkpoint.load(path)
    try:
        config, state = Config(**info["config"]), State(**info["state"])
        about = About.of(info["data"]) if "data" in info else describe(config)
        model = build(config, about) if own is None else own
        its_model = info.get("model", name_of(model))
        if own is None and its_model != name_of(model):
            raise CheckpointError(
                f"{path} has the weights of a model that was given to fit, {its_model}: give it "
                "again, as load_run(folder, model=...), or --model-from module:function"
            )
        before = model.state_dict()
        try:
            if config.ema:  # the names and shapes, for whoever takes them
                model.load_state_dict(under("average.", arrays))
            model.load_state_dict(under("model.", arrays))
        finally:
            if own is not None:
                own.load_state_dict(before)
    except CheckpointError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} is whole, but not a run of this version"
            f"{'' if own is None else ' and model'} ({error}): use the version that wrote "
            f"it ({info.get('invocupy', 'unknown')}), give the model that fit was given, or train "
            "again"
        ) from error
    return Saved(config, state, model, arrays, about)


def name_of(model: nn.Module) -> str:
    """The class of a model, which a checkpoint stores with its weights."""
    return f"{type(model).__module__}.{type(model).__qualname__}"


def under(prefix: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """The arrays whose names start with the prefix, by the rest of their names."""
    return {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}
