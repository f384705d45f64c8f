"""The layer: its keys are state, so that runs resume to the bit, and ranks differ."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from bounds import host
from small_runs import STEPS, TINY, at, content, interrupt

from invocupy import Tensor, nn
from invocupy.arrays import device_of
from invocupy.distributed import Single, synchronise
from invocupy.train import Interrupted, fit


def layer(seed: int = 0, p: float = 0.5) -> nn.Dropout:
    return nn.Dropout(p, np.random.default_rng(seed))


def test_each_call_has_its_mask_and_the_state_goes_on(xp: ModuleType) -> None:
    x = xp.ones((8, 9), np.float32)
    one, other = layer().to(device_of(x)), layer(1).to(device_of(x))
    first = one(x)
    other.load_state_dict(one.state_dict())
    assert list(other.state_dict()) == ["keys"]
    second, again = one(x), other(Tensor(x))
    assert (host(first) != host(second)).any()
    np.testing.assert_array_equal(host(second), host(again))
    before = host(one.keys.data)
    assert one.eval()(x) is x
    np.testing.assert_array_equal(host(one.keys.data), before)
    for wrong in (2.0, None):
        with pytest.raises(ValueError, match=r"p must be in \[0, 1\]"):
            one.p = wrong  # type: ignore[assignment]
    with pytest.raises(TypeError, match="rng must be a numpy"):
        nn.Dropout(rng=0)  # type: ignore[arg-type]


def test_ranks_have_masks_of_their_own() -> None:
    class Second(Single):
        rank = 1

    x, masks = np.ones(64), []
    for comm in (Single(), Second()):
        model = nn.Sequential(layer())
        synchronise(model, comm)
        synchronise(model, None)
        masks.append(model(x))
    assert (masks[0] != masks[1]).any()
    np.testing.assert_array_equal(masks[0], layer()(x))


def net(seed: int) -> nn.Module:
    rng = np.random.default_rng(seed)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, rng=rng), nn.GlobalAvgPool2d(), layer(seed), nn.Linear(4, 10, rng=rng)
    )


def test_a_resumed_run_has_the_masks_of_the_whole_one(tmp_path: Path) -> None:
    fit(TINY, tmp_path / "whole", model=net(0))
    with pytest.raises(Interrupted):
        fit(TINY, tmp_path / "parts", model=net(0), progress=at(1, STEPS - 1, interrupt))
    fit(TINY, tmp_path / "parts", model=net(5), resume=True)
    assert content(tmp_path / "parts") == content(tmp_path / "whole")
