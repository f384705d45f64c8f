"""Training and evaluation mode: whatever looks at a model, each module keeps its own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from invocupy import Tensor, data, nn
from invocupy import functional as F  # noqa: N812
from invocupy.models import SimpleModel, SmallNet
from invocupy.report.findings import heat_maps
from invocupy.summary import evaluation_memory, layers, training_memory
from invocupy.train import Config, estimate, evaluate, fit, predict

IMAGES, LABELS = data.shapes10(20, 0)
STYLE: dict[str, Any] = {"mean": data.SHAPES10_MEAN, "std": data.SHAPES10_STD}
# 2 epochs of 2 steps
CONFIG = Config(layers=1, epochs=2, limit=20, batch_size=10, device="cpu", ema=0.5)


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def frozen(training: bool = True) -> SimpleModel:
    """Of its three norms the middle one, and the first dense layer, are in another mode."""
    model = SimpleModel(num_layers=1, rng=0).train(training)
    model.blocks[0].involution.norm.train(not training)
    next(iter(model.head)).train(not training)
    return model


class StopHere(Exception):  # noqa: N818
    """What a function given by the user raises."""


def stop(*_: Any) -> None:
    raise StopHere


LOOKS: list[Callable[[SimpleModel], object]] = [
    lambda model: evaluate(model, IMAGES, LABELS, **STYLE),
    lambda model: evaluate(model, IMAGES, LABELS, progress=stop, **STYLE),
    lambda model: predict(model, IMAGES, **STYLE),
    lambda model: predict(model, IMAGES, progress=stop, **STYLE),
    lambda model: heat_maps(model, IMAGES[:1], ["blocks.0.involution"], **STYLE),
    layers,
    training_memory,
    evaluation_memory,
    lambda model: estimate(CONFIG, model),
    lambda model: fit(CONFIG, model=model),
    lambda model: fit(CONFIG, model=model, before_update=stop),
    lambda model: fit(CONFIG, model=model, testing=stop),
    lambda model: fit(CONFIG, model=model, after_epoch=stop),
    lambda model: fit(CONFIG, model=model, progress=stop),
]


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("training", [True, False])
def test_each_module_has_its_own_mode_again(look: Any, training: bool) -> None:
    model = frozen(training)
    before = modes(model)
    with suppress(StopHere):
        look(model)
    assert modes(model) == before


@pytest.mark.parametrize("hook", [None, "eval", "evaluate"])
def test_frozen_norms_stay_frozen_in_every_epoch(hook: str | None) -> None:
    model = frozen()
    norm, others = model.blocks[0].involution.norm, model.blocks[0].expand_norm
    before, weight = norm.running_var.data, norm.weight.data
    moved: list[bool] = []

    def after_epoch(inner: nn.Module, row: dict[str, Any]) -> None:
        moved.append(others.num_batches_tracked.data == 2 * row["epoch"])
        if hook == "eval":
            inner.eval()
        elif hook == "evaluate":
            evaluate(inner, IMAGES, LABELS, **STYLE)

    fit(replace(CONFIG, ema=0.0), model=model, after_epoch=after_epoch)
    assert moved == [True, True]
    assert norm.running_var.data is before
    assert norm.num_batches_tracked.data == 0
    assert not np.array_equal(norm.weight.data, weight)  # its parameters learn


def test_a_norm_may_be_frozen_on_the_way() -> None:
    model = SmallNet("convolution", 4, rng=0)
    config = Config(epochs=3, limit=10, batch_size=10, device="cpu")
    fit(config, model=model, after_epoch=lambda *_: model.bn1.eval() and None)
    assert model.bn1.num_batches_tracked.data == 1
    assert model.bn2.num_batches_tracked.data == 3
    assert model.bn1.training  # as before the call


def test_a_model_in_evaluation_mode_is_trained() -> None:
    model = SmallNet("convolution", 4, rng=0).eval()
    fit(Config(epochs=2, limit=10, batch_size=10, device="cpu"), model=model)
    assert model.bn1.num_batches_tracked.data == model.bn3.num_batches_tracked.data == 2
    assert not any(modes(model))


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("training", [True, False])
def test_a_block_that_runs_as_one_respects_the_modes_of_its_norms(
    which: int, training: bool
) -> None:
    """As the block that runs layer by layer, in float64."""
    x = np.random.default_rng(0).normal(size=(2, 3, 8, 8))
    found = []
    for fused in ("auto", False):
        block = SimpleModel(num_layers=1, hidden_channels=16, fused=fused, rng=1).blocks[0]
        for parameter in block.parameters():
            parameter.data = parameter.data.astype(np.float64)
        block.train(training)
        norm = block._norms()[which]
        norm.train(not training)
        value = block(Tensor(x))
        F.sum(value * value).backward()
        state = {n: b for n, b in block.named_buffers() if b.dtype.kind == "f"}
        found.append([value.data, *state.values(), *(p.grad for p in block.parameters())])
        assert norm.num_batches_tracked.data == (not training)
    for one, other in zip(*found, strict=True):
        # statistics are kept in float32; the rest is some hundred roundings of float64
        tolerance = 1e-6 if one.dtype == np.float32 else 1e-9
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


def test_a_summary_leaves_what_an_instance_defines() -> None:
    model: Any = SimpleModel(num_layers=1, rng=0)
    layer = model.blocks[0].expand
    layer.forward = forward = nn.Conv2d.forward.__get__(layer)
    model.blocks[0].involution.fused = "auto"
    assert layers(model)[0].shape == (10,)
    assert layer.forward is forward
    assert model.blocks[0].involution.fused == "auto"
    assert "forward" not in vars(model)


def test_models_are_modules() -> None:
    for wrong in (SimpleModel, F.relu, "simple"):
        for look in (*LOOKS[:1], LOOKS[2], lambda m: fit(CONFIG, model=m)):
            with pytest.raises(TypeError, match="model must be a module"):
                look(wrong)
    for config in (None, {"epochs": 1}):
        with pytest.raises(TypeError, match="config must be a Config"):
            fit(config)  # type: ignore[arg-type]


class Keywords(nn.Module):
    """Calls its parts with keywords, and one of them gives no array."""

    def __init__(self) -> None:
        self.relu, self.both = nn.ReLU(), Both()

    def forward(self, x: Any) -> Any:
        return self.both(x=self.relu(x=x))[0]


class Both(nn.Module):
    """Gives two results."""

    def forward(self, x: Any) -> Any:
        return x, x


def test_a_summary_takes_any_model() -> None:
    found = {layer.name: layer.shape for layer in layers(Keywords(), (3, 4, 5))}
    assert found == {"": (3, 4, 5), "relu": (3, 4, 5), "both": ()}
    assert evaluation_memory(nn.GlobalAvgPool2d()).of(1) > 0
    with pytest.raises(ValueError, match="at least one parameter"):
        training_memory(nn.GlobalAvgPool2d())
