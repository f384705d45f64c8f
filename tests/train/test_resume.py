"""A run that was stopped continues to the same bits, or is refused."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import HEAD, STEPS, TINY, at, content, crash, interrupt, timeless

from invocupy import checkpoint
from invocupy.checkpoint import CheckpointError
from invocupy.train import (
    Config,
    ConfigError,
    Interrupted,
    Progress,
    fit,
    loop,
)

# ------------------------------------------------------------------------------------ exact resume


@pytest.mark.parametrize(("epoch", "step"), [(1, 1), (1, STEPS), (1, 0), (2, 2), (2, STEPS)])
@pytest.mark.parametrize("stop", [interrupt, crash])
def test_resume_is_exact(
    whole: Path, tmp_path: Path, epoch: int, step: int, stop: Callable[[], None]
) -> None:
    with pytest.raises((Interrupted, RuntimeError)) as caught:
        fit(TINY, tmp_path, progress=at(epoch, step, stop))
    if stop is interrupt:  # a stop between epochs is seen after the next step
        done = (epoch - 1) * STEPS + step if step else epoch * STEPS + 1
        assert f"after step {done}" in str(caught.value)
        state = checkpoint.load(tmp_path / "last.safetensors")[1]["state"]
        assert state["epoch"] * STEPS + state["step"] == done
    fit(TINY, tmp_path, resume=True)
    assert content(tmp_path) == content(whole)
    assert content(tmp_path, "best") == content(whole, "best")


def test_resume_is_exact_when_stopped_after_every_step(whole: Path, tmp_path: Path) -> None:
    def progress(now: Progress) -> None:
        if now.row is None:
            interrupt()

    stops = 0
    while True:
        try:
            fit(TINY, tmp_path, resume=stops > 0, progress=progress)
            break
        except Interrupted:
            stops += 1
    assert stops == 2 * STEPS
    assert content(tmp_path) == content(whole)


@pytest.mark.parametrize(
    "lost",
    ["velocity.", "running_mean", "weight", "average.", "seed", "step", "loss", "correct"],
)
def test_resume_needs_each_part_of_the_checkpoint(whole: Path, tmp_path: Path, lost: str) -> None:
    """The test of the tests above: whatever a checkpoint lacked, they would see it."""
    with pytest.raises(Interrupted):
        fit(TINY, tmp_path, progress=at(1, 2, interrupt))
    path = tmp_path / "last.safetensors"
    arrays, info = checkpoint.load(path)
    config = TINY
    if lost == "velocity.":
        arrays = {name: array for name, array in arrays.items() if lost not in name}
    elif lost == "seed":
        config = replace(TINY, seed=1)
        info["config"]["seed"] = 1
    elif lost in info["state"]:
        info["state"][lost] = 0
    else:
        name = next(name for name in arrays if lost in name)
        arrays[name] = np.zeros_like(arrays[name])
    checkpoint.save(path, arrays, info)
    fit(config, tmp_path, resume=True)
    assert content(tmp_path) != content(whole)


def test_resume_removes_what_a_killed_writer_left(tmp_path: Path) -> None:
    fit(HEAD, tmp_path)
    stale = tmp_path / ".last.safetensors.0123456789abcdef.tmp"
    stale.touch()
    fit(HEAD, tmp_path, resume=True)
    assert not stale.exists()


def test_a_finished_run_goes_on_for_more_epochs_only(tmp_path: Path) -> None:
    first = fit(HEAD, tmp_path)
    assert fit(HEAD, tmp_path, resume=True) == first
    more = fit(replace(HEAD, epochs=3), tmp_path, resume=True)
    assert more[:2] == first
    assert [row["epoch"] for row in more] == [1, 2, 3]
    assert Config.from_json((tmp_path / "config.json").read_text()).epochs == 3
    with pytest.raises(ConfigError, match="epochs must be at least 3"):
        fit(HEAD, tmp_path, resume=True)


def test_resume_with_other_settings_is_refused(whole: Path) -> None:
    with pytest.raises(ConfigError, match=r"layers is 1 there, not 0; lr is 0.01 there, not 0.1"):
        fit(replace(HEAD, lr=0.1), whole, resume=True)
    with pytest.raises(ConfigError, match="out must be given"):
        fit(TINY, resume=True)


def test_resume_from_what_is_no_run(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"last\.safetensors cannot be read"):
        fit(TINY, tmp_path, resume=True)
    assert not list(tmp_path.iterdir())
    arrays, info = checkpoint.load(whole / "last.safetensors")
    path = tmp_path / "last.safetensors"
    for bad in (
        {},
        {**info, "config": {**info["config"], "layers": 2}},
        {**info, "config": {**info["config"], "new": 1}},
        {**info, "state": {"epoch": 1, "new": 2}},
    ):
        checkpoint.save(path, arrays, bad)
        with pytest.raises(CheckpointError, match="not a run of this version"):
            fit(TINY, tmp_path, resume=True)
    (tmp_path / "last.safetensors").write_bytes(
        (whole / "last.safetensors").read_bytes()[:-1]
    )  # fmt: skip
    with pytest.raises(CheckpointError, match="not a whole"):
        fit(TINY, tmp_path, resume=True)


# ------------------------------------------------------------------------------------ interruption


def test_a_second_interrupt_ends_at_once(tmp_path: Path) -> None:
    def twice() -> None:
        interrupt()
        interrupt()

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as caught:
        fit(HEAD, tmp_path, progress=at(1, 2, twice))
    assert not isinstance(caught.value, Interrupted)
    assert checkpoint.load(tmp_path / "last.safetensors")[1]["state"]["step"] == 0
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_in_the_evaluation_loses_nothing(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = loop.evaluate

    def stopped(*arguments: Any, **options: Any) -> Any:
        interrupt()
        return original(*arguments, **options)

    monkeypatch.setattr(loop, "evaluate", stopped)
    with pytest.raises(Interrupted, match="after step 3"):
        fit(TINY, tmp_path)
    monkeypatch.undo()
    fit(TINY, tmp_path, resume=True)
    assert content(tmp_path) == content(whole)


def test_training_in_another_thread_leaves_signals_alone(tmp_path: Path) -> None:
    histories: list[Any] = []
    thread = threading.Thread(target=lambda: histories.append(fit(HEAD)))
    thread.start()
    thread.join()
    assert timeless(histories[0]) == timeless(fit(HEAD))
