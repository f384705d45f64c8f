"""``Config``, the settings of a run, and how they are read from a file."""

from __future__ import annotations

import json
import os
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from invocupy.docstrings import documented
from invocupy.messages import did_you_mean, one_line, shown
from invocupy.models import SPATIAL
from invocupy.paths import expand
from invocupy.train.choices import AUGMENT, DATASETS, MODELS, SCHEDULES
from invocupy.train.fields import (
    DEVICE,
    FOLDER,
    GRAPH,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    SHARES,
    at_least,
    parameters,
    plain,
    problem,
    setting,
    within,
)

_LONGEST = 1 << 20  # bytes of a file of settings
_IMAGES = at_least(1, 1_000_000)
_WHAT, _HOW = "data and model", "training"
_ONLY = {  # the settings that only one choice uses
    ("dataset", "folder"): ("image_size", "skip_broken"),
    ("model", "simple"): ("layers", "head_relu", "signed", "recompute"),
    ("model", "small"): ("spatial", "width"),
    ("schedule", "step"): ("milestones", "drop"),
}


class ConfigError(ValueError):
    """Invalid settings, or settings that contradict the run. One line: setting, rule, values."""


@dataclass(frozen=True)
class Config:
    """The settings of a run.

    NumPy numbers become Python numbers. Integers are below 2**31, except the seed.

    PARAMETERS

    Raises
    ------
    ConfigError
        If a setting has the wrong type or is out of range; TypeError for an unknown name.

    Examples
    --------
    >>> config = Config(layers=2, lr=0.1)
    >>> Config.from_json(config.to_json()) == config
    True
    >>> Config(dataset="mnist")
    Traceback (most recent call last):
    ...
    invocupy.train.config.ConfigError: dataset must be one of shapes10, cifar10, ..., got 'mnist'
    """

    # fmt: off
    dataset: str = setting("shapes10", _WHAT, "the data set; shapes10 is synthetic",
        choices=DATASETS)
    data_dir: str | None = setting(None, _WHAT, "the folder with the files of cifar10 or "
        "cifar100, or with train/CLASS/* and test/CLASS/* for folder. See "
        ":func:`invocupy.data.cifar10` and :func:`invocupy.data.image_folder`", FOLDER,
        unit="DIR", free=True)
    image_size: int = setting(32, _WHAT, "folder: crop and shrink images to squares of N pixels. "
        "Smaller images are an error", at_least(1, 4096))
    skip_broken: bool = setting(False, _WHAT, "folder: skip files that are no images or too small. "
        "Each is named; without it they are an error")
    model: str = setting("simple", _WHAT, "the network. :class:`invocupy.models.SimpleModel`, "
        ":class:`invocupy.models.SmallNet`, or one of :data:`invocupy.models.NETWORKS` with the "
        "stem for small images", choices=MODELS)
    layers: int = setting(2, _WHAT, "simple model: number of blocks", at_least(0, 10_000))
    head_relu: bool = setting(True, _WHAT, "simple model: a ReLU after the first two dense "
        "layers, as in the article. Without them the head is a linear map, which learns shapes10 "
        "many times slower")
    signed: bool = setting(False, _WHAT, "simple model: no ReLU before the sum of a block. Then "
        "blocks can also subtract from their input; those of the article can only add")
    recompute: bool = setting(True, _WHAT, "simple model on a CPU: save memory; off saves a tenth "
        "of the time. The wide part of a block is recomputed for the gradients, or stored; the "
        "results are equal", free=True)
    spatial: str = setting("involution", _WHAT, "small model: kind of the spatial layers",
        choices=SPATIAL)
    width: int = setting(64, _WHAT, "small model: channels. A multiple of 32 with involution",
        at_least(2, 1024))
    epochs: int = setting(4, _HOW, "passes over the training images", at_least(1), free=True)
    batch_size: int = setting(32, _HOW, "images per step, over all ranks. Each rank computes its "
        "share of them", at_least(1))
    accumulate: int = setting(1, _HOW, "split each batch into N parts to save memory; only "
        "batch norm differs. The step is that of the whole batch, but batch norm uses the moments "
        "of each part", at_least(1), free=True)
    sync_norm: bool = setting(True, _HOW, "several ranks: batch norm uses the batch of all ranks, "
        "not of each. Then the result is that of a single process up to rounding. Without it there "
        "are fewer messages, the result differs, and running statistics are averaged over ranks")
    lr: float = setting(0.01, _HOW, "highest learning rate. The schedule multiplies it by a "
        "factor in each step", POSITIVE)
    momentum: float = setting(0.9, _HOW, "momentum of SGD. See :class:`invocupy.optim.SGD`",
        within("[0, 1)"))
    weight_decay: float = setting(5e-4, _HOW, "factor of the weights that are added to their "
        "gradients. See :class:`invocupy.optim.SGD`", NOT_NEGATIVE)
    nesterov: bool = setting(True, _HOW, "Nesterov momentum; needs a momentum above 0")
    decay_biases: bool = setting(True, _HOW, "also apply weight decay to biases and norms")
    clip_norm: float | None = setting(None, _HOW, "clip the norm of all gradients to X. See "
        ":func:`invocupy.optim.clip_by_norm`", POSITIVE._replace(text="above 0 and finite"))
    schedule: str = setting("one_cycle", _HOW, "how the learning rate changes over the run. "
        "See :mod:`invocupy.optim`", choices=SCHEDULES)
    milestones: tuple[float, ...] = setting((0.5, 0.75), _HOW, "schedule step: fractions of the "
        "run at which the rate drops", SHARES)
    drop: float = setting(0.1, _HOW, "schedule step: factor of the rate at each milestone",
        within("(0, 1]"))
    warmup: int = setting(0, _HOW, "warm-up steps (learning rate rises linearly). The schedule "
        "starts after them", at_least(0))
    label_smoothing: float = setting(0.0, _HOW, "label smoothing in training", within("[0, 1]"))
    ema: float = setting(0.0, _HOW, "decay of averaged weights, such as 0.999; 0 for none. The "
        "exponential moving average is then evaluated, and saved for use: "
        "``average += (1 - d) * (weights - average)`` after each step, with ``d = "
        "min(ema, (1 + steps) / (10 + steps))``, so that the first weights fade", within("[0, 1)"))
    validation: float = setting(0.0, _HOW, "hold out this fraction of the training images to "
        "choose the best epoch. They are drawn from the seed. Best is the first epoch with the "
        "highest accuracy on them; its weights are tested once, at the end. Without validation the "
        "last epoch counts", within("[0, 1)"))
    patience: int | None = setting(None, _HOW, "stop after N epochs without a higher validation "
        "accuracy. Needs validation", at_least(1), free=True)
    augment: str = setting("auto", _WHAT, "augmentation; auto: crop_flip for cifar10 and "
        "cifar100, else none. crop_flip shifts images by up to 4 pixels and mirrors half of them",
        choices=("auto", *AUGMENT))
    cutout: int = setting(0, _WHAT, "cover a square of N x N pixels in each training image",
        at_least(0, 32))
    seed: int = setting(0, _WHAT, "seed of initial weights, image order and augmentation", SEED)
    limit: int | None = setting(None, _WHAT, "use only the first N images of the training and of "
        "the test set. Without it, shapes10 has 10,000 and 1,000", _IMAGES)
    overfit: int | None = setting(None, _HOW, "train and test on the same N images; should reach "
        "100 %. They are the first of the training set, without augmentation unless it is set",
        _IMAGES)
    device: str = setting("auto", _WHAT, "where to compute; auto uses a GPU if CuPy finds one. "
        "With several ranks the communicator decides", DEVICE, unit="NAME", free=True)
    graph: str | bool = setting("auto", _HOW, "on a GPU, record a step once and then start it by "
        "one call. A CUDA graph: Python is not waited for, and the weights are the same to the "
        "bit. With auto not for modules of your own; where it is not possible, a warning says why",
        GRAPH, free=True)
    # fmt: on

    def __new__(cls, *_: Any, **settings: Any) -> Config:
        """Refuse unknown names with a suggestion."""
        names = {item.name for item in fields(cls)}
        for name in settings.keys() - names:
            raise TypeError(f"Config has no setting {name}{did_you_mean(name, names)}")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for item in fields(self):
            value = plain(getattr(self, item.name))
            object.__setattr__(self, item.name, value)
            if rule := problem(item, value):
                choices = item.metadata["choices"]
                near = did_you_mean(value, choices) if isinstance(value, str) else ""
                raise ConfigError(f"{item.name} must be {rule}, got {shown(value)}{near}")
        for name, right, rule in self._together():
            if not right:
                raise ConfigError(f"{name} must be {rule}, got {shown(getattr(self, name))}")

    def _together(self) -> Iterator[tuple[str, bool, str]]:
        """Rules between settings: which setting, whether it holds, what it must be."""
        single = self.spatial != "involution"
        yield "width", single or self.width % 32 == 0, "with involution a multiple of 32"
        most = f"at least 1 and at most batch_size={self.batch_size}"
        yield "accumulate", self.accumulate <= self.batch_size, most
        yield "nesterov", self.momentum > 0 or not self.nesterov, "false without a momentum"
        yield "overfit", self.overfit is None or self.limit is None, "given without limit"
        folder = self.dataset == "folder"
        yield "data_dir", self.data_dir is not None or not folder, "given with the data set folder"
        yield "validation", self.overfit is None or not self.validation, "0 with overfit"

    def unused(self) -> list[str]:
        """A sentence for each setting that is not the default and has no effect with the others."""
        found = {
            name: f"with {of} {getattr(self, of)}: it is for {of} {choice}"
            for (of, choice), names in _ONLY.items() if getattr(self, of) != choice
            for name in names
        }  # fmt: skip
        if self.dataset == "shapes10":
            found["data_dir"] = "with dataset shapes10, whose images are generated"
        if not self.validation:
            found["patience"] = "without validation"
        changed = [item.name for item in fields(self) if getattr(self, item.name) != item.default]
        return [f"{name} has no effect {found[name]}" for name in changed if name in found]

    @property
    def part(self) -> int:
        """Images of a batch that the model processes at a time."""
        return -(-self.batch_size // self.accumulate)

    def to_json(self) -> str:
        """All settings as a JSON object, indented for reading."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @staticmethod
    def from_json(text: str) -> Config:
        """Settings from a JSON object; missing ones have their defaults.

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


if Config.__doc__:  # python -OO has none
    Config.__doc__ = Config.__doc__.replace(
        "PARAMETERS", parameters(fields(Config)).replace("\n", "\n    ")
    )


@documented
def read_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read settings from a TOML file, or the ``config.json`` of a run.

    They are for ``Config(**settings)``. The file has one key for each, named as in :class:`Config`;
    a hyphen may stand for an underscore.

    Raises
    ------
    ConfigError
        If the file cannot be read, is not TOML (JSON), or names a setting that does not exist.

    >>> import tempfile
    >>> from pathlib import Path
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
    names = sorted(item.name for item in fields(Config))
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where} must be a JSON object with {', '.join(names)} only")
    if unknown := sorted(values.keys() - {*names}):
        near = [did_you_mean(name, names) for name in unknown]
        if all(near):
            hints = "; ".join(map("{}{}".format, unknown, near))
            raise ConfigError(f"{where} has no setting {hints}")
        raise ConfigError(
            f"{where} has {', '.join(unknown)}, but only these settings exist: {', '.join(names)}"
        )
    return dict(values)
