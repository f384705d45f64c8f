"""The data of a report, as arrays."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from invocupy import nn
from invocupy.arrays import Array
from invocupy.checkpoint import CheckpointError
from invocupy.data.own import Images, own_test_set
from invocupy.messages import shown
from invocupy.paths import AnyPath, existing, expand
from invocupy.report.explorer import Explored, explore
from invocupy.report.kernels import HeatMap, heat_maps, involution_layers
from invocupy.train import Config, open_run, pick_device, predict
from invocupy.train.saved import measured_on, read
from invocupy.train.sets import read_test_set

_NUMBERS = "epoch", "train_loss", "train_accuracy", "seconds", "images_per_second", "lr"
_SHOWN = 24  # images in a grid
_MAPPED = 3  # images with heat maps
_EXPLORED = 64 * 64  # pixels at most, so that the page stays small


class Shots(NamedTuple):
    """Some test images with the model's answers."""

    images: NDArray[np.uint8]  # (n, C, H, W)
    labels: NDArray[np.int64]  # (n,)
    probabilities: NDArray[np.float64]  # (n, K)

    def take(self, index: Array | slice) -> Shots:
        """The samples with these indices."""
        return Shots(self.images[index], self.labels[index], self.probabilities[index])


class Findings(NamedTuple):
    """The result of :func:`gather`."""

    name: str  # of the run's folder
    epoch: int  # of the checkpoint
    config: Config
    history: list[dict[str, Any]]
    machine: dict[str, Any]  # {} for runs from before it was noted
    classes: tuple[str, ...]
    dataset: str  # its name
    images: int  # in the test set
    accuracy: float
    confusion: NDArray[np.int64]  # (K, K), rows: the label, columns: the model's answer
    samples: Shots
    mistakes: Shots  # the most certain ones first; maybe none
    mapped: Shots
    maps: list[HeatMap]
    explored: Explored | None  # the first of these; None if large or without involutions


def gather(
    folder: AnyPath,
    *,
    which: str = "best",
    involutions: Sequence[int] | None = None,
    device: str = "auto",
    data_dir: str | None = None,
    model: nn.Module | None = None,
    data: Images | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Findings:
    """Run a trained model over its test set, and keep the data of a report.

    Parameters
    ----------
    folder
        The folder of the run.
    which : "best" or "last"
        The checkpoint.
    involutions : sequence of int, optional
        Layers for heat maps, from 0; by default up to four, evenly spaced.
    device, data_dir
        As in :class:`invocupy.train.Config`; they replace those of the run.
    model
        An untrained model for the weights, if :func:`invocupy.train.fit` was given one.
    data
        Test images and labels, if ``fit`` was given arrays.
    progress
        Called with the number of batches done, and of all batches.

    Returns
    -------
    Findings

    Raises
    ------
    invocupy.checkpoint.CheckpointError, invocupy.data.DataError, invocupy.train.ConfigError
        If the run or its data cannot be read, or there is no such involution layer.

    Examples
    --------
    >>> import tempfile
    >>> from invocupy.train import fit
    >>> with tempfile.TemporaryDirectory() as run:
    ...     _ = fit(Config(layers=1, epochs=1, limit=20, device="cpu"), run)
    ...     found = gather(run)
    >>> found.confusion.sum(), [heat.layer for heat in found.maps]
    (np.int64(20), ['blocks.0.involution'])
    """
    folder = expand(folder)
    config, model, history, about = open_run(folder, which, model)
    epoch = len(history)
    # what was stopped between saving the best and the last has an epoch more in the best
    history = max(read(folder / "last.safetensors", model).state.history, history, key=len)
    _check(folder, history)
    machine = _machine(folder / "machine.json")
    names = involution_layers(model, involutions)
    model.to(pick_device(device))
    known = len(about.classes)
    given = read_test_set(config, about, data_dir) if data is None else own_test_set(data, known)
    images, labels = given
    probabilities = predict(model, images, **about.style(), progress=progress)
    classes = about.names(max(known, probabilities.shape[1]))
    answers = probabilities.argmax(axis=1)
    shots = Shots(images, labels, probabilities)
    certainty = probabilities.max(axis=1)
    wrong = np.flatnonzero((answers != labels) & np.isfinite(certainty))
    worst = wrong[np.argsort(-certainty[wrong], kind="stable")][:_SHOWN]
    mapped = shots.take(_of_many_classes(labels, _MAPPED))
    explored = None
    if names and math.prod(mapped.images.shape[2:]) <= _EXPLORED:
        titles = [about.classes[label] for label in mapped.labels[:1]]
        with suppress(CheckpointError):  # of a network whose numbers are not finite
            explored = explore(model, mapped.images[:1], titles, names, **about.style())
    counts = np.bincount(labels * len(classes) + answers, minlength=len(classes) ** 2)
    return Findings(
        name=os.fsencode(folder.resolve().name).decode(errors="replace"),
        epoch=epoch,
        config=replace(config, device=device, data_dir=data_dir or config.data_dir),
        history=history,
        machine=machine,
        classes=classes,
        dataset=about.dataset,
        images=len(images),
        accuracy=float((answers == labels).mean()),
        confusion=counts.reshape(-1, len(classes)),
        samples=shots.take(_of_many_classes(labels, _SHOWN)),
        mistakes=shots.take(worst),
        mapped=mapped,
        maps=heat_maps(model, mapped.images, names, **about.style()),
        explored=explored,
    )


def _check(folder: Path, history: list[dict[str, Any]]) -> None:
    if not history:
        raise CheckpointError(f"{folder} has no whole epoch to show: resume the run")
    for row in history:
        measured = measured_on(row)
        for name in *_NUMBERS, f"{measured}_loss", f"{measured}_accuracy":
            value = row.get(name, "missing")
            finite = isinstance(value, int | float) and math.isfinite(value)
            if not finite and (name, value) != (f"{measured}_loss", None):
                raise CheckpointError(
                    f"{folder} cannot be shown: {name} of an epoch must be a number, "
                    f"got {shown(value)}"
                )


def _machine(path: Path) -> dict[str, Any]:
    """The content of ``machine.json``; {} for older runs, which have none."""
    try:
        about: dict[str, Any] = json.loads(existing(path).read_text(encoding="utf-8-sig"))
        named = all(isinstance(about[name], dict) for name in ("packages", "devices"))
        if named and {"invocupy", "python", "threads"} <= about.keys():
            return about
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        pass
    raise CheckpointError(f"{path} is damaged: remove it, or resume the run, which writes it")


def _of_many_classes(labels: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Indices of images with the classes in turn: the first of each, then the second, ..."""
    turn = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        of_class = np.flatnonzero(labels == label)
        turn[of_class] = np.arange(len(of_class))
    return np.lexsort((labels, turn))[:count]
