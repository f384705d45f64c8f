"""Compares every network with the same in PyTorch, in float64, and stores results for the tests.

``python benchmarks/network_vectors.py`` writes ``tests/files/networks.json``, for RedNet-26,
ResNet-18 and ResNet-50 with the weights and images that ``tests/network_rule.py`` generates: the
logits at 224x224 and at an odd size, and elements of some gradients of the cross-entropy in
training for labels 0, 1. It also writes ``tests/files/small*.pth``, a checkpoint of PyTorch.
With ``--check [NAME...]`` it compares all (or these) networks and writes nothing. Needs PyTorch.
"""

from __future__ import annotations

import json
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peer_networks import PEERS
from torch.nn.functional import cross_entropy

from invocupy import Tensor, models
from invocupy import functional as F  # noqa: N812
from invocupy.weights import import_state

TESTS = Path(__file__).parent.parent / "tests"
sys.path.append(str(TESTS))

import network_rule  # noqa: E402

CLASSES = 10
STORED = "rednet26", "resnet18", "resnet50"
WANTED = {
    "rednet": (
        "backbone.stem.0.conv.weight", "backbone.stem.1.conv2.conv.weight",
        "backbone.layer2.0.conv2.conv1.conv.weight", "backbone.layer2.0.conv2.conv2.conv.weight",
        "backbone.layer4.0.conv2.conv2.conv.bias", "backbone.layer3.0.bn3.weight", "head.fc.bias",
    ),
    "resnet": (
        "conv1.weight", "layer1.0.conv2.weight", "layer2.0.downsample.0.weight",
        "layer4.0.bn2.bias", "fc.bias",
    ),
}  # fmt: skip


def peer(name: str) -> tuple[Any, dict[str, np.ndarray]]:
    """The network in PyTorch, float64, with generated weights; and these weights."""
    net = PEERS[name](CLASSES)
    shapes = {k: tuple(v.shape) for k, v in net.state_dict().items()}
    # each involution squares the size of its input: deeper networks need smaller weights
    deep = name in ("rednet101", "rednet152")
    state = network_rule.weights(shapes, 0.1 if deep else 0.5)
    net.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()})
    return net.double(), state


def ours(name: str, state: dict[str, np.ndarray]) -> Any:
    """The network in invocupy, float64."""
    model = models.NETWORKS[name](num_classes=CLASSES, rng=0)
    import_state(model, state)
    for parameter in model.parameters():
        parameter.data = parameter.data.astype(np.float64)
    return model


def far(one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference, divided by the largest value."""
    return float(np.abs(one - other).max() / np.abs(one).max())


def run(name: str, check: bool) -> dict[str, Any]:
    """The results of a network that are stored."""
    net, state = peer(name)
    model, found = ours(name, state), {}
    net.eval()
    model.eval()
    for kind, shape in network_rule.SIZES.items():
        x = network_rule.image(shape)
        with torch.no_grad():
            logits = net(torch.from_numpy(x)).numpy()
        found[kind] = logits.tolist()
        print(f"{name} {kind}: logits to {far(logits, model(x).data):.1e}", flush=True)
    if check and name not in STORED:
        return found
    x = network_rule.image(network_rule.TRAINED)
    net.train()
    model.train()
    loss = cross_entropy(net(torch.from_numpy(x)), torch.tensor([0, 1]))
    loss.backward()
    mine = F.cross_entropy(model(Tensor(x)), np.array([0, 1]))
    mine.backward()
    gradients = {k: p.grad.numpy() for k, p in net.named_parameters()}
    ordered = zip(gradients.values(), model.parameters(), strict=True)
    worst = max(far(theirs, p.grad) for theirs, p in ordered if np.abs(theirs).max() > 1e-9)
    print(
        f"{name} training: loss to {abs(mine.item() / loss.item() - 1):.1e}, gradients {worst:.1e}"
    )
    wanted = WANTED[name[:6]]
    found["loss"] = loss.item()
    found["gradients"] = {k: network_rule.some(gradients[k]).tolist() for k in wanted}
    return found


def save_checkpoint(path: Path) -> None:
    """Save some dtypes and layouts, with other things that a training program saves."""
    numbers = torch.arange(12.0).reshape(3, 4)
    state = OrderedDict(
        plain=numbers,
        parameter=torch.nn.Parameter(numbers / 8),
        transposed=numbers.T,
        shared=numbers[1:, 2:],
        half=numbers.half(),
        bfloat=(numbers / 4).bfloat16(),
        count=torch.tensor(7),
        mask=numbers > 5,
        double=numbers.double(),
    )
    optimizer = {"state": {0: {"momentum_buffer": numbers}}, "param_groups": [{"lr": 0.1}]}
    whole = {"epoch": 3, "state_dict": state, "optimizer": optimizer}
    torch.save(whole, path)
    old = path.with_name("small-old.pth")  # the format before PyTorch 1.6
    torch.save(whole, old, _use_new_zipfile_serialization=False)


def main() -> None:
    """Compare, and store."""
    check = "--check" in sys.argv
    names = [name for name in sys.argv if name in PEERS] or PEERS
    results = {name: run(name, check) for name in (names if check else STORED)}
    if not check:
        path = TESTS / "files" / "networks.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            json.dumps({"torch": torch.__version__, "networks": results}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
