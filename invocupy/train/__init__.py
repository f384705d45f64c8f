"""Training and evaluation: settings, the loop, and runs that can be resumed exactly.

A run is a folder with ``config.json``, ``metrics.jsonl`` and the checkpoints ``last.safetensors``
and ``best.safetensors``. A checkpoint holds everything that the next step depends on, and batches
are drawn from (seed, epoch), so on the CPU the result of an interrupted and resumed run is
bit-identical to that of an uninterrupted one.

``config`` has the settings, made of ``fields``; ``choices`` what their names stand for; ``sets``
has the images, ``setup`` makes model and rates; ``saved`` reads a run's folder, ``run`` writes it;
``evaluation`` measures a model; ``average`` averages weights; ``needs`` says whether a run fits;
``replica`` knows ranks; ``loop`` trains; ``interrupts`` and ``lock`` guard it.
"""

from __future__ import annotations

from invocupy.train.choices import DATASETS, MODELS
from invocupy.train.config import Config, ConfigError, read_settings
from invocupy.train.evaluation import Evaluation, evaluate, predict
from invocupy.train.interrupts import Interrupted
from invocupy.train.loop import Progress, fit
from invocupy.train.needs import check_memory, estimate, free_memory
from invocupy.train.run import NonFiniteLoss
from invocupy.train.saved import OpenRun, load_run, open_run
from invocupy.train.sets import About, hold_out, load_data
from invocupy.train.setup import augmentation, build, pick_device, rate
from invocupy.train.tensorboard import tensorboard

__all__ = [
    "DATASETS", "MODELS", "About", "Config", "ConfigError", "Evaluation", "Interrupted",
    "NonFiniteLoss", "OpenRun", "Progress", "augmentation", "build", "check_memory", "estimate",
    "evaluate", "fit", "free_memory", "hold_out", "load_data", "load_run", "open_run",
    "pick_device", "predict", "rate", "read_settings",
    "tensorboard",
]  # fmt: skip
