"""Steps of several ranks as CUDA graphs, which exchange their message between the graphs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graph_runs import HEAD, RICH, differences, launches, layers

from invocupy import nn
from invocupy.arrays import namespace, require_cupy
from invocupy.distributed import Single
from invocupy.train import Config
from invocupy.train.replica import Replica

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def cp() -> Any:
    return require_cupy()


class Mirror(Single):
    """Rank 0 of two, of which the other one sends what this one sends."""

    size = local_size = 2

    def allgather(self, array: Any) -> Any:
        return namespace(array).stack([array, array])

    def allreduce_sum(self, buffer: Any) -> None:
        buffer *= 2

    def exchange(self, value: Any) -> list[Any]:
        return [value, value]


def halves() -> nn.Module:
    """Layers of which one has gradients of another type than the message of the ranks."""
    model = layers()
    *_, last = model.parameters()
    last.data = last.data.astype(np.float16)
    return model


@pytest.mark.parametrize("model", [layers, halves])
@pytest.mark.parametrize("config", [replace(RICH, accumulate=2), replace(HEAD, ema=0.5)])
def test_ranks_that_norm_their_own_share(
    config: Config, model: Any, cp: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Messages between the graphs: a rank has as many graphs as a single process."""
    sizes = launches(cp, monkeypatch)
    config = replace(config, sync_norm=False)
    given = {"model": model, "comm": lambda: Mirror("cuda")}
    assert differences(tmp_path, config, **given) == []
    assert len(sizes) == (3 if config.clip_norm else 2) * 7


def test_only_norms_of_several_ranks_exchange_messages_within_a_step() -> None:
    conv, norm = nn.Sequential(nn.Conv2d(3, 2, 1)), nn.Sequential(nn.BatchNorm2d(3))
    for sync_norm in (False, True):
        replica = Replica(Mirror("cuda"), replace(HEAD, sync_norm=sync_norm))
        assert [replica.joins(model) for model in (conv, norm)] == [False, sync_norm]
    assert not Replica(None, HEAD).joins(norm)
