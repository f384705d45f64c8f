"""The settings of a run."""

from __future__ import annotations

import json
import math
import os
import re
import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from invocupy.messages import one_line
from invocupy.models import SPATIAL
from invocupy.paths import expand
from invocupy.train.choices import AUGMENT, DATASETS, MODELS, SCHEDULES

_LONGEST = 1 << 20  # bytes of a file of settings
_MOST = 1_000_000  # images that are taken or drawn
_SOME = f"at least 1 and at most {_MOST}"


class ConfigError(ValueError):
    """Settings that make no sense, or do not fit the run. One line: setting, rule, values."""


@dataclass(frozen=True)
class Config:
    """The settings of a run.

    Numbers may be NumPy's; they are kept as Python's. Integers are below 2**31, but for the seed.

    Parameters
    ----------
    dataset : "shapes10" or "cifar10"
    data_dir : str, optional
        Where CIFAR-10 lies; see :func:`invocupy.data.cifar10`.
    model : "simple", "small", "rednet26" to "rednet152", "resnet18" or "resnet50"
        :class:`invocupy.models.SimpleModel`, :class:`invocupy.models.SmallNet`, or one of
        :data:`invocupy.models.NETWORKS` with the stem for small images.
    layers : int
        Of the simple model; at most 10,000.
    head_relu : bool
        Of the simple model: whether a ReLU follows the first and the second dense layer, as in the
        article. Without them the head is a linear map, which learns shapes10 many times slower.
    signed : bool
        Of the simple model: whether its blocks may also take away from their input. The article's
        can only add.
    recompute : bool
        Of the simple model on a CPU: compute what the wide part of a block gives again for the
        gradients, or store it, which takes less time and more memory. Results are the same.
    spatial, width
        Of the small model; the width is at most 1024.
    epochs, batch_size : int
        A batch is that of all ranks together: each computes its share of it.
    accumulate : int
        Parts into which each batch is cut to save memory; the step is that of the whole batch, but
        for batch norm, which then sees the moments of the parts.
    sync_norm : bool
        On several ranks: whether batch norm sees the batch of all ranks, so that the training is
        that of a single process to rounding. Otherwise it sees a rank's share, which needs fewer
        messages and is another training; running statistics are averaged over the ranks.
    lr : float
        The highest learning rate; ``schedule`` gives the share of it in each step.
    momentum, weight_decay, nesterov, decay_biases
        Of :class:`invocupy.optim.SGD`.
    clip_norm : float, optional
        Of :func:`invocupy.optim.clip_by_norm`; None clips nothing.
    schedule : "one_cycle", "cosine", "step" or "constant"
        Over all epochs, step by step; see :mod:`invocupy.optim`.
    milestones, drop
        Of ``"step"``: shares of the run, in [0, 1], at which the rate is multiplied by ``drop``.
    warmup : int
        Steps at the beginning in which the rate rises linearly, before the schedule starts.
    label_smoothing : float
        In training, not in evaluation.
    ema : float
        Decay of an exponential moving average of the weights, which is then what is evaluated and
        saved for use: ``average += (1 - d) * (weights - average)`` after each step, with
        ``d = min(ema, (1 + steps) / (10 + steps))``, so that the first steps fade. 0 for none.
    patience : int, optional
        Stop after so many epochs without a higher test accuracy.
    augment : "auto", "none" or "crop_flip"
        Training images are shifted by up to four pixels and mirrored; ``"auto"`` does so for
        CIFAR-10.
    cutout : int
        Side, in pixels, of a square that is covered in each training image, at most 32; 0 for none.
    seed : int
        Of the initial weights, the order of the images and their augmentation.
    limit : int, optional
        Take the first so many images only, of the training and of the test set; at most 1,000,000.
        Without it, shapes10 has 10,000 and 1,000.
    overfit : int, optional
        Train on the first so many training images and test on the same: a model and loop that are
        right reach 100 %. Without augmentation, unless it is asked for.
    device : "auto", "cpu", "cuda" or "cuda:i"
        ``"auto"`` takes a GPU if CuPy finds one. On several ranks the communicator decides.

    Raises
    ------
    ConfigError
        If a setting has another type or lies out of range.

    Examples
    --------
    >>> from invocupy.train import Config
    >>> config = Config(layers=2, lr=0.1)
    >>> Config.from_json(config.to_json()) == config
    True
    >>> Config(dataset="mnist")
    Traceback (most recent call last):
    ...
    invocupy.train.config.ConfigError: dataset must be one of shapes10, cifar10, got 'mnist'
    """

    dataset: str = "shapes10"
    data_dir: str | None = None
    model: str = "simple"
    layers: int = 2
    head_relu: bool = True
    signed: bool = False
    recompute: bool = True
    spatial: str = "involution"
    width: int = 64
    epochs: int = 4
    batch_size: int = 32
    accumulate: int = 1
    sync_norm: bool = True
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    nesterov: bool = True
    decay_biases: bool = True
    clip_norm: float | None = None
    schedule: str = "one_cycle"
    milestones: tuple[float, ...] = (0.5, 0.75)
    drop: float = 0.1
    warmup: int = 0
    label_smoothing: float = 0.0
    ema: float = 0.0
    patience: int | None = None
    augment: str = "auto"
    cutout: int = 0
    seed: int = 0
    limit: int | None = None
    overfit: int | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        for item in fields(self):
            value = _plain(getattr(self, item.name))
            if not _accepts(str(item.type), value):
                raise ConfigError(f"{item.name} must be of type {item.type}, got {_shown(value)}")
            if type(value) is int and item.name != "seed" and value >= 1 << 31:
                raise ConfigError(f"{item.name} must be below 2**31, got {_shown(value)}")
            object.__setattr__(self, item.name, value)
        for name, known in (
            ("dataset", DATASETS), ("model", MODELS), ("schedule", SCHEDULES),
            ("augment", ("auto", *AUGMENT)), ("spatial", SPATIAL),
        ):  # fmt: skip
            if getattr(self, name) not in known:
                shown = _shown(getattr(self, name))
                raise ConfigError(f"{name} must be one of {', '.join(known)}, got {shown}")
        device = re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,9})?", self.device) is not None
        for name, right, rule in (
            (
                "data_dir", self.data_dir is None or (self.data_dir and "\0" not in self.data_dir),
                "the path of a folder: not empty, without NUL",
            ),
            ("layers", 0 <= self.layers <= 10_000, "at least 0 and at most 10000"),
            (
                "width",
                2 <= self.width <= 1024 and (self.spatial != "involution" or self.width % 32 == 0),
                "at least 2 and at most 1024, and with involution a multiple of 32",
            ),
            ("epochs", self.epochs >= 1, "at least 1"),
            ("batch_size", self.batch_size >= 1, "at least 1"),
            (
                "accumulate", 1 <= self.accumulate <= self.batch_size,
                f"at least 1 and at most batch_size={_shown(self.batch_size)}",
            ),
            ("lr", 0 < self.lr < math.inf, "a finite number above 0"),
            ("momentum", 0 <= self.momentum < 1, "in [0, 1)"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "a finite number from 0 on"),
            ("nesterov", self.momentum > 0 or not self.nesterov, "false without a momentum"),
            (
                "clip_norm", self.clip_norm is None or 0 < self.clip_norm < math.inf,
                "above 0 and finite",
            ),
            ("milestones", all(0 <= m <= 1 for m in self.milestones), "shares in [0, 1]"),
            ("drop", 0 < self.drop <= 1, "in (0, 1]"),
            ("warmup", self.warmup >= 0, "at least 0"),
            ("label_smoothing", 0 <= self.label_smoothing <= 1, "in [0, 1]"),
            ("ema", 0 <= self.ema < 1, "in [0, 1)"),
            ("patience", self.patience is None or self.patience >= 1, "at least 1"),
            ("cutout", 0 <= self.cutout <= 32, "at least 0 and at most 32, the side of the images"),
            ("seed", 0 <= self.seed < 1 << 128, "at least 0 and below 2**128"),
            ("limit", self.limit is None or 1 <= self.limit <= _MOST, _SOME),
            ("overfit", self.overfit is None or 1 <= self.overfit <= _MOST, _SOME),
            ("overfit", self.overfit is None or self.limit is None, "given without limit"),
            ("device", device, "auto, cpu, cuda or cuda:i"),
        ):  # fmt: skip
            if not right:
                raise ConfigError(f"{name} must be {rule}, got {_shown(getattr(self, name))}")

    def to_json(self) -> str:
        """All settings as a JSON object, indented for reading."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @staticmethod
    def from_json(text: str) -> Config:
        """Settings from a JSON object; those it does not name have their defaults.

        Raises
        ------
        ConfigError
            If it is not such an object.
        """
        try:
            values = json.loads(text.removeprefix("\ufeff"))
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"config must be JSON: {error}") from error
        return Config(**_known("config", values))


def read_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Settings from a TOML file, or from the ``config.json`` of a run.

    Parameters
    ----------
    path
        One key a setting, named as in :class:`Config`; a hyphen may stand for an underscore.

    Returns
    -------
    dict
        For ``Config(**settings)``: the settings that the file names.

    Raises
    ------
    ConfigError
        If the file cannot be read, is not TOML (JSON), or names a setting that does not exist.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from invocupy.train import read_settings
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "long.toml")
    ...     _ = path.write_text("layers = 10\\nbatch-size = 128\\n")
    ...     read_settings(path)
    {'layers': 10, 'batch_size': 128}
    """
    path = expand(path)
    try:
        with path.open("rb") as file:
            content = file.read(_LONGEST + 1)
        if len(content) > _LONGEST:  # a device never ends
            raise ValueError(f"it has more than {_LONGEST} bytes")
        text = content.decode("utf-8-sig")
        values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"config {path} cannot be read ({one_line(error)})") from error
    except (ValueError, RecursionError) as error:
        reason = one_line(error)
        raise ConfigError(f"config {path} must be TOML (or JSON, named .json): {reason}") from error
    if isinstance(values, dict):
        names = [name.replace("-", "_") for name in values]
        if twice := [name for name, times in Counter(names).items() if times > 1]:
            raise ConfigError(f"config {path} has {', '.join(twice)} twice, with - and with _")
        values = dict(zip(names, values.values(), strict=True))
    return _known(f"config {path}", values)


def _known(where: str, values: Any) -> dict[str, Any]:
    """``values`` itself, if it is a mapping of settings."""
    names = {item.name for item in fields(Config)}
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where} must be a JSON object with {', '.join(sorted(names))} only")
    if unknown := sorted(values.keys() - names):
        raise ConfigError(
            f"{where} has {', '.join(unknown)}, but only these settings exist: "
            f"{', '.join(sorted(names))}"
        )
    return dict(values)


def _plain(value: Any) -> Any:
    """A setting in Python's own types: numbers, paths as text, lists as tuples."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, np.ndarray):
        value = value[()] if value.ndim == 0 else list(value)
    if isinstance(value, (list, tuple)):  # JSON and TOML have no tuples
        return tuple(map(_plain, value))
    if isinstance(value, np.floating):
        return float(value)  # item() of a longdouble is one
    return value.item() if isinstance(value, np.generic) else value


def _shown(value: Any) -> str:
    """A value as text for a message: one line, shortened."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # an integer of more digits than Python writes
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _accepts(annotation: str, value: Any) -> bool:
    """Whether a value has the type of a setting: an int will do for a float, a bool for neither."""
    if annotation == "tuple[float, ...]":
        return isinstance(value, tuple) and all(_accepts("float", v) for v in value)
    name = type(value).__name__.replace("NoneType", "None")
    return name in [*annotation.split(" | "), *(["int"] if "float" in annotation else [])]
