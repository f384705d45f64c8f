"""Numbers of a run for TensorBoard, as a hook that ``fit`` calls after each epoch."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from invocupy.checkpoint import strict
from invocupy.extras import require
from invocupy.paths import AnyPath, expand
from invocupy.train.saved import Row


def tensorboard(folder: AnyPath) -> Callable[[object, Row], None]:
    """A function that writes the numbers of each epoch for TensorBoard.

    Losses and accuracies share a chart (``loss/train``, ``loss/val``, ``loss/test``); every other
    number has its own, also those that your own ``after_epoch`` has added, if that calls this one.
    A resumed run continues in the same folder. With validation, the test result is known only after
    ``fit``: then call the function once more, with the last line of the history.

    Parameters
    ----------
    folder : path
        For ``tensorboard --logdir``; created at the first call. Each call adds a file.

    Returns
    -------
    function of the model and the epoch's line
        ``after_epoch`` of :func:`fit`.

    Raises
    ------
    invocupy.extras.MissingExtra
        If tensorboardX is missing: ``pip install 'invocupy[tensorboard]'``.

    Examples
    --------
    >>> from invocupy.train import Config, fit, tensorboard
    >>> fit(Config(), after_epoch=tensorboard("runs/first/tensorboard"))  # doctest: +SKIP
    """
    writers = require("tensorboardX", "tensorboardX", "tensorboard", "2.6")
    place, written = str(expand(folder)), set()

    def write(_: object, row: Row) -> None:
        new = {}
        for name, value in strict(row).items():  # NumPy's numbers, too; no NaN
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if number and name not in ("epoch", "step") and (name, row["step"]) not in written:
                written.add((name, row["step"]))
                new[re.sub(r"^(train|val|test)_(.*)$", r"\2/\1", name)] = value
        # A file for each call, since only closing one makes sure that all is written. Their names
        # have seconds alone, in which another run may have begun.
        writer = writers.SummaryWriter(place, filename_suffix=f".{time.time_ns()}")
        for tag, value in new.items():
            writer.add_scalar(tag, value, row["step"])
        writer.close()

    return write
