"""The command line: ``invocupy train``, ``evaluate``, ``info``.

Progress goes to standard error, results to standard output. What takes time to load is imported
inside the commands, so that ``invocupy --help`` answers at once.

Exit codes: 0 done, 1 unexpected, 2 wrong usage, 65 bad data or checkpoint, 69 download not
possible, 70 the loss became NaN or infinite, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invocupy._version import __version__

if TYPE_CHECKING:
    from invocupy.train import Progress

_WARM = ((7, 1), (7, 2))  # kernel size and stride of RedNet's involutions


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; the program ``invocupy``.

    Parameters
    ----------
    argv
        The arguments; by default those of the process.

    Examples
    --------
    >>> from invocupy.cli import main
    >>> main(["evaluate", "no/such/run"])
    65
    """
    arguments = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = arguments.command
    try:
        return command(arguments)
    except (Exception, KeyboardInterrupt) as error:
        code = _exit_code(error)
        if code is None:
            raise
        print(f"invocupy: {error or 'interrupted'}", file=sys.stderr)
        return code


def _exit_code(error: BaseException) -> int | None:
    """The code for errors that have a plain cause; None for those that deserve a traceback."""
    if isinstance(error, KeyboardInterrupt):
        return 130
    from invocupy.checkpoint import CheckpointError
    from invocupy.data import DataError, DownloadError
    from invocupy.train import ConfigError, NonFiniteLoss

    codes: dict[type[Exception], int] = {
        ConfigError: 2,
        DataError: 65,
        CheckpointError: 65,
        DownloadError: 69,
        NonFiniteLoss: 70,
        OSError: 1,
    }
    return next((code for kind, code in codes.items() if isinstance(error, kind)), None)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "invocupy", description="Involution without a deep learning framework."
    )
    parser.add_argument("--version", action="version", version=f"invocupy {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    # Flags that are not given leave no trace: invocupy.train.Config has the defaults.
    train = commands.add_parser(
        "train",
        help="train a model",
        argument_default=argparse.SUPPRESS,
        description="Train a model; with no options a small SimpleModel on generated images.",
    )
    train.set_defaults(command=_train)
    train.add_argument("--dataset", metavar="NAME", help="shapes10 (generated) or cifar10")
    train.add_argument("--data-dir", metavar="DIR", help="where the files of cifar10 lie")
    train.add_argument("--model", metavar="NAME", help="simple")
    train.add_argument("--layers", metavar="N", type=int, help="involution blocks of the model")
    train.add_argument(
        "--head-relu", action=argparse.BooleanOptionalAction, help="between the dense layers"
    )
    train.add_argument("--epochs", metavar="N", type=int)
    train.add_argument("--batch-size", metavar="N", type=int)
    train.add_argument("--lr", metavar="X", type=float, help="highest learning rate")
    train.add_argument("--momentum", metavar="X", type=float)
    train.add_argument("--weight-decay", metavar="X", type=float)
    train.add_argument("--nesterov", action=argparse.BooleanOptionalAction)
    train.add_argument("--schedule", metavar="NAME", help="one_cycle, cosine or constant")
    train.add_argument("--warmup", metavar="N", type=int, help="steps, with cosine")
    train.add_argument("--label-smoothing", metavar="X", type=float)
    train.add_argument("--augment", metavar="NAME", help="auto, none or crop_flip")
    train.add_argument("--seed", metavar="N", type=int)
    train.add_argument("--limit", metavar="N", type=int, help="use the first N images only")
    train.add_argument("--device", metavar="NAME", help="auto, cpu, cuda or cuda:i")
    train.add_argument("--out", metavar="DIR", help="the run's folder (new; by default runs/...)")
    train.add_argument("--resume", metavar="DIR", help="go on with the run in this folder")
    _add_json(train)

    evaluate = commands.add_parser("evaluate", help="measure a trained model on its test set")
    evaluate.set_defaults(command=_evaluate)
    evaluate.add_argument("run", metavar="RUN", help="the run's folder")
    evaluate.add_argument("--checkpoint", choices=("best", "last"), default="best")
    evaluate.add_argument("--data-dir", metavar="DIR", help="where the files of cifar10 lie now")
    evaluate.add_argument(
        "--device", metavar="NAME", default="auto", help="auto, cpu, cuda, cuda:i"
    )
    _add_json(evaluate)

    info = commands.add_parser("info", help="versions, devices, and a check of the kernels")
    info.set_defaults(command=_info)
    info.add_argument("--warm", action="store_true", help="compile the usual kernels, and time it")
    _add_json(info)
    return parser


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", default=False, help="for programs to read")


def _train(arguments: argparse.Namespace) -> int:
    from dataclasses import asdict, fields, replace

    from invocupy.train import Config, ConfigError, fit, load_run

    names = {item.name for item in fields(Config)}
    given = {name: value for name, value in vars(arguments).items() if name in names}
    resume = getattr(arguments, "resume", None)
    if resume is None:
        config = Config(**given)
        out = getattr(arguments, "out", None) or _new_folder(config.dataset, config.model)
    elif hasattr(arguments, "out"):
        raise ConfigError("--out and --resume exclude each other: a run goes on in its own folder")
    else:
        config, out = replace(load_run(resume, "last")[0], **given), resume
    history = fit(config, out, resume=resume is not None, progress=_reporter())
    last, best = history[-1], max(history, key=lambda row: row["test_accuracy"])
    result = {
        "run": str(out),
        "epochs": int(last["epoch"]),
        "test_loss": last["test_loss"],
        "test_accuracy": last["test_accuracy"],
        "best_accuracy": best["test_accuracy"],
        "best_epoch": int(best["epoch"]),
        "seconds": sum(row["seconds"] for row in history),
    }
    if arguments.json:
        print(json.dumps({**result, "config": asdict(config), "history": history}))
    else:
        print(
            f"test accuracy {last['test_accuracy']:.2%} after {result['epochs']} epochs and "
            f"{result['seconds']:.0f} s of training (best {best['test_accuracy']:.2%}, epoch "
            f"{result['best_epoch']})\nrun: {out}"
        )
    return 0


def _new_folder(dataset: str, model: str) -> Path:
    number = 1
    while (folder := Path("runs", f"{dataset}-{model}-{number}")).exists():
        number += 1
    return folder


def _reporter() -> Callable[[Progress], None]:
    """A progress function: a bar on a terminal, and a line an epoch everywhere."""
    from tqdm import tqdm

    bars: list[Any] = []

    def report(now: Progress) -> None:
        title = f"epoch {now.epoch}/{now.epochs}"
        if now.row is None:
            if not bars:
                # disable=None: no bar where standard error is not a terminal
                bars.append(tqdm(total=now.steps, desc=title, leave=False, disable=None))
            bars[0].set_postfix(
                loss=f"{now.loss:.3f}", accuracy=f"{now.accuracy:.1%}", refresh=False
            )
            bars[0].update(now.step - bars[0].n)
            return
        while bars:
            bars.pop().close()
        row = now.row
        test_loss = "not finite" if row["test_loss"] is None else f"{row['test_loss']:.4g}"
        print(
            f"{title}  loss {row['train_loss']:.4f}  accuracy {row['train_accuracy']:.2%}  "
            f"test loss {test_loss}  test accuracy {row['test_accuracy']:.2%}  "
            f"{row['images_per_second']:.0f} images/s",
            file=sys.stderr,
            flush=True,
        )

    return report


def _evaluate(arguments: argparse.Namespace) -> int:
    from dataclasses import replace

    from invocupy.train import DATASETS, evaluate, load_data, load_run, pick_device

    config, model, history = load_run(arguments.run, arguments.checkpoint)
    if arguments.data_dir is not None:
        config = replace(config, data_dir=arguments.data_dir)
    config = replace(config, device=arguments.device)
    dataset = DATASETS[config.dataset]
    model.to(pick_device(config.device))
    images, labels = load_data(config, train=False)
    loss, accuracy, confusion = evaluate(model, images, labels, mean=dataset.mean, std=dataset.std)
    totals = confusion.sum(axis=1)
    shares = [
        int(confusion[i, i]) / int(total) if total else None for i, total in enumerate(totals)
    ]
    epochs = len(history)
    if arguments.json:
        result = {
            "run": arguments.run, "checkpoint": arguments.checkpoint, "epochs": epochs,
            "dataset": config.dataset, "images": len(images),
            "loss": loss if math.isfinite(loss) else None, "accuracy": accuracy,
            "classes": dataset.classes, "class_accuracy": shares, "confusion": confusion.tolist(),
        }  # fmt: skip
        print(json.dumps(result))
        return 0
    print(
        f"test accuracy {accuracy:.2%}, loss {loss:.4g} on {len(images)} images of "
        f"{config.dataset}, {arguments.checkpoint} checkpoint (epoch {epochs})"
    )
    width = max(map(len, dataset.classes))
    print("rows: the true class and its accuracy; columns, in the same order: the answer")
    for name, share, counts in zip(dataset.classes, shares, confusion, strict=True):
        accuracy_text = "     -" if share is None else f"{share:6.1%}"
        print(f"{name:>{width}} {accuracy_text}", *(f"{count:5}" for count in counts))
    return 0


def _info(arguments: argparse.Namespace) -> int:
    import os
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import pooch

    from invocupy.arrays import require_cupy
    from invocupy.backends.jit import cache_directory
    from invocupy.backends.threads import get_num_threads

    def installed(*names: str) -> str | None:
        for name in names:
            try:
                return f"{version(name)}"
            except PackageNotFoundError:
                pass
        return None

    devices, reason, cupy_cache = {"cpu": f"{os.cpu_count()} cores"}, None, None
    try:
        cupy = require_cupy()
    except RuntimeError as error:
        reason = str(error)
    else:
        cupy_cache = os.environ.get("CUPY_CACHE_DIR", str(Path.home() / ".cupy" / "kernel_cache"))
        for i in range(cupy.cuda.runtime.getDeviceCount()):
            properties = cupy.cuda.runtime.getDeviceProperties(i)
            devices[f"cuda:{i}"] = (
                f"{properties['name'].decode()}, {properties['totalGlobalMem'] / 2**30:.0f} GiB"
            )
    packages = {name: installed(name) for name in ("numpy", "numba", "llvmlite", "safetensors")}
    packages["cupy"] = installed("cupy-cuda13x", "cupy-cuda12x", "cupy")
    checks = {device: _self_check(device) for device in devices}
    result: dict[str, Any] = {
        "invocupy": __version__,
        "python": f"{platform.python_version()} on {platform.platform()}",
        "packages": packages,
        "devices": devices,
        "cuda": reason or "ready",
        "threads": get_num_threads(),
        "data_cache": os.environ.get("INVOCUPY_DATA") or str(pooch.os_cache("invocupy")),
        "kernel_cache": {"cpu": str(cache_directory() or ""), "cuda": cupy_cache or ""},
        "self_check": checks,
    }
    if arguments.warm:
        result["warm_seconds"] = {device: _warm(device) for device in devices}
    good = all(faults == [] for faults in checks.values())
    if arguments.json:
        print(json.dumps(result))
        return 0 if good else 1
    print(f"invocupy {__version__}, Python {result['python']}")
    print("packages:", ", ".join(f"{k} {v or '(none)'}" for k, v in packages.items()))
    for device, description in devices.items():
        state = "kernels agree with the reference" if not checks[device] else "KERNELS ARE WRONG: "
        print(f"{device}: {description}; {state}{', '.join(checks[device])}")
    if reason:
        print(f"cuda: not used; {reason}")
    print(f"threads: {result['threads']} (INVOCUPY_NUM_THREADS)")
    print(f"data cache: {result['data_cache']} (INVOCUPY_DATA)")
    kept = result["kernel_cache"]
    print(f"compiled CPU kernels: {kept['cpu'] or 'in memory only'} (INVOCUPY_CACHE_DIR)")
    if kept["cuda"]:
        print(f"compiled CUDA kernels: {kept['cuda']} (CUPY_CACHE_DIR)")
    for device, seconds in result.get("warm_seconds", {}).items():
        print(f"{device}: the usual kernels are compiled and ready after {seconds:.1f} s")
    return 0 if good else 1


def _self_check(device: str) -> list[str]:
    """Names of the functions that differ from the reference; integers make all sums exact."""
    import numpy as np

    import invocupy
    from invocupy import reference

    rng = np.random.default_rng(0)

    def draw(*shape: int) -> Any:
        return invocupy.to_device(rng.integers(-3, 4, shape).astype(np.float32), device)

    height, width = 9, 8
    x, grad = draw(2, 8, height, width), draw(2, 8, height, width)
    kernel = draw(2, 2, 3, 3, height, width)
    features, weight, bias = draw(2, 4, height, width), draw(18, 4), draw(18)
    wrong = []
    for name, operands, options in (
        ("involution", (x, kernel), {}),
        ("involution_backward", (grad, x, kernel), {}),
        ("fused_involution", (x, features, weight, bias), {"kernel_size": 3}),
        ("fused_involution_backward", (grad, x, features, weight, bias), {"kernel_size": 3}),
    ):
        got, want = (getattr(where, name)(*operands, **options) for where in (invocupy, reference))
        got, want = ((r if isinstance(r, tuple) else (r,)) for r in (got, want))
        if not all(bool((a == b).all()) for a, b in zip(got, want, strict=True)):
            wrong.append(name)
    return wrong


def _warm(device: str) -> float:
    """Compile what the models of this package run, by running it small; seconds."""
    import numpy as np

    from invocupy import Tensor, functional, nn, to_device
    from invocupy.models import SimpleModel

    start = time.perf_counter()
    images = Tensor(to_device(np.ones((2, 3, 32, 32), np.float32), device))
    model = SimpleModel(num_layers=1, rng=0)
    model.to(device)
    labels = to_device(np.zeros(2, np.int64), device)
    functional.cross_entropy(model.logits(images), labels).backward()
    x = Tensor(to_device(np.ones((2, 32, 9, 9), np.float32), device), requires_grad=True)
    for size, stride in _WARM:
        layer = nn.Involution(32, size, stride=stride, fused=False)
        layer.to(device)
        layer(x).sum().backward()
    if device != "cpu":
        import cupy

        cupy.cuda.get_current_stream().synchronize()
    return time.perf_counter() - start
