"""``evaluate`` and ``predict``: loss, accuracy, confusion matrix, class probabilities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from invocupy import data, nn
from invocupy import functional as F  # noqa: N812
from invocupy.arrays import Array, device_of, namespace, on_device, to_device
from invocupy.autograd import Tensor, no_grad
from invocupy.data.own import check_plain
from invocupy.distributed import Comm, Single, share
from invocupy.docstrings import documented
from invocupy.messages import kind_of


class Evaluation(NamedTuple):
    """The result of :func:`evaluate`."""

    loss: float
    accuracy: float  # in [0, 1]
    confusion: NDArray[np.int64]  # (K, K): images of the row's label, taken for the column's class


def evaluate(
    model: nn.Module, images: Any, labels: Any, *, mean: tuple[float, ...], std: tuple[float, ...],
    batch_size: int = 250, progress: Callable[[int, int], None] | None = None,
    comm: Comm | None = None,
) -> Evaluation:  # fmt: skip
    """Mean cross-entropy, accuracy and confusion matrix of a model, in evaluation mode.

    Parameters
    ----------
    model : Module
        Its ``logits`` method is used, or the model itself if it has none. Afterwards the mode of
        each module is restored.
    images : uint8 array (N, C, H, W)
        NumPy, or CuPy on the device of the model.
    labels : integer array (N,)
        The class of each image.
    mean, std
        One number per channel, as in :class:`invocupy.data.Batches`.
    batch_size
        It affects the result by rounding only: batches are weighted by their number of images.
    progress
        Called with the number of steps done, and of all steps.
    comm : communicator, optional
        Of ranks with the same model and images: each evaluates its share, and all ranks get the
        result for all images.

    Returns
    -------
    Evaluation

    Raises
    ------
    TypeError, ValueError
        As :class:`invocupy.data.Batches`; without images; if the model does not return (N, K).

    Examples
    --------
    >>> from invocupy.data import SHAPES10_MEAN, SHAPES10_STD, shapes10
    >>> from invocupy.models import SimpleModel
    >>> style = {"mean": SHAPES10_MEAN, "std": SHAPES10_STD}
    >>> evaluate(SimpleModel(num_layers=1, rng=0), *shapes10(30, 0), **style).confusion.sum()
    np.int64(30)
    """
    comm = Single() if comm is None else comm
    total: Any = 0.0
    answers, classes = [], 0

    def take(scores: Tensor, answer: Array) -> None:
        nonlocal total, classes
        loss = F.cross_entropy(scores, answer, ignore_index=None).data
        # A sum on the device: nothing waits for it before the end.
        total = total + loss.astype(np.float64) * len(scores)
        answers.append(scores.data.argmax(axis=1))
        classes = scores.shape[1]

    options = {"mean": mean, "std": std, "batch_size": batch_size}
    mine = _forward(model, images, labels, comm, take, progress, **options)
    with on_device(mine):  # of no images there are no answers, as many as labels
        given = to_device(namespace(mine).concatenate(answers or [mine]), "cpu")
    sums, widths = zip(*comm.exchange([float(total), classes]), strict=True)
    classes = max(widths)  # a rank without images has seen none
    pairs = np.asarray(to_device(mine, "cpu"), np.int64) * classes + given
    counts = np.bincount(pairs, minlength=classes**2)
    if comm.size > 1:
        counts = to_device(counts, comm.device)
        comm.allreduce_sum(counts)
    confusion = to_device(counts, "cpu").reshape(classes, classes)
    return Evaluation(sum(sums) / len(images), int(np.trace(confusion)) / len(images), confusion)


@documented
def predict(
    model: nn.Module, images: Any, *, mean: tuple[float, ...], std: tuple[float, ...],
    batch_size: int = 250, progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float64]:  # fmt: skip
    """Class probabilities (N, K) of images, in evaluation mode.

    They are the softmax of the logits, in float64, as a NumPy array. Errors are those of
    :func:`evaluate`.

    Parameters
    ----------
    model, images, mean, std, batch_size, progress
        As in :func:`evaluate`.

    >>> from invocupy.data import SHAPES10_MEAN, SHAPES10_STD, shapes10
    >>> from invocupy.models import SimpleModel
    >>> images, style = shapes10(5, 0)[0], {"mean": SHAPES10_MEAN, "std": SHAPES10_STD}
    >>> predict(SimpleModel(num_layers=1, rng=0), images, **style).sum(axis=1).round(6)
    array([1., 1., 1., 1., 1.])
    """
    found: list[Array] = []
    options = {"mean": mean, "std": std, "batch_size": batch_size}
    check_plain("images", images)
    _forward(
        model, images, np.zeros(len(images), np.int64), Single(),
        lambda scores, _: found.append(scores.data), progress, **options,
    )  # fmt: skip
    logits = np.concatenate([to_device(scores, "cpu") for scores in found]).astype(np.float64)
    return np.asarray(F.softmax(logits, 1))


def check_model(model: Any) -> None:
    """TypeError for a class or function in place of a model."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a module such as nn.Sequential(...), got {kind_of(model)}")


def _forward(
    model: nn.Module, images: Array, labels: Array, comm: Comm,
    take: Callable[[Tensor, Array], None], progress: Callable[[int, int], None] | None,
    **options: Any,
) -> Array:  # fmt: skip
    """Call ``take(scores, labels)`` for each batch of this rank's share; return the labels."""
    check_model(model)
    check_plain("images", images)
    check_plain("labels", labels)
    if not len(images):
        raise ValueError("images must hold at least one image, got none")
    device = device_of(next((p.data for p in model.parameters()), images))
    images, labels = (
        to_device(array[slice(*share(len(array), comm))], device) for array in (images, labels)
    )
    batches = data.Batches(images, labels, shuffle=False, **options)
    with nn.keep_modes(model), no_grad(), on_device(images):
        model.eval()
        for step, (x, answers) in enumerate(batches.epoch(0), 1):
            scores = Tensor(logits_of(model, x))
            if scores.ndim != 2 or len(scores) != len(x) or not scores.size:
                raise ValueError(
                    f"model must give scores (N, K) for N images, got shape {scores.shape} for "
                    f"{len(x)}: let forward, or a method logits, return one row of K numbers for "
                    "each image"
                )
            take(scores, answers)
            if progress is not None:
                progress(step, len(batches))
    return labels


def logits_of(model: nn.Module, x: Any) -> Any:
    """Class scores (N, K): of the model's ``logits`` if ``model(x)`` gives probabilities."""
    scores = getattr(model, "logits", model)
    return scores(x)
