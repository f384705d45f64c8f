"""invocupy info: the machine, and kernels that are compiled, checked and kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pooch  # noqa: F401  (its logger keeps the standard error of its first import)
import pytest

from invocupy import backends, nn
from invocupy.backends.cpu import threads
from invocupy.cli import info, main
from invocupy.models import SimpleModel

pytestmark = pytest.mark.usefixtures("own_folder")

# ------------------------------------------------------------------------------ evaluate, and info


def test_info(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(info, "_warm", lambda _: 1.5)
    assert main(["info", "--warm", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["self_check"]["cpu"] == []
    assert result["warm_seconds"]["cpu"] == 1.5
    assert result["packages"]["numpy"] == np.__version__
    assert result["threads"] >= 1
    assert main(["info", "--warm"]) == 0
    out = capsys.readouterr().out
    assert "cpu: " in out
    assert "kernels agree with the reference" in out
    assert "compiled in 1.5 s" in out


def test_info_says_why_kernels_are_not_kept(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from invocupy.backends.cpu import jit

    monkeypatch.setattr(info, "_self_check", lambda _: [])
    monkeypatch.setattr(jit, "_place", jit._place.__wrapped__)
    (tmp_path / "file").touch()
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    for given, reason in (
        ("", "INVOCUPY_CACHE_DIR is empty"),
        ("file", "File exists"),
        ("open", "must belong to this user and be writable by nobody else"),
        ("~no_such_user/x", "give the whole path"),
    ):
        path = given if given[:1] in ("", "~") else str(tmp_path / given)
        monkeypatch.setenv("INVOCUPY_CACHE_DIR", path)
        assert main(["info"]) == 0
        out = capsys.readouterr().out
        assert "compiled CPU kernels: in memory only; " in out
        assert reason in out


@pytest.mark.parametrize(
    ("op", "function", "names"),
    [
        ("involution", "fused_forward", "fused_involution"),
        ("involution", "grad_kernel", "involution_backward, involution_backward (stride 2)"),
        ("convolution", "grad_x", "conv2d, conv2d (stride 2)"),
        ("pointwise", "forward", "conv2d (1x1), linear"),
        ("pooling", "avg_pool_grad", "avg_pool2d"),
    ],
)
def test_info_sees_a_wrong_kernel(
    op: str, function: str, names: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    backend = backends.of(op, np.ones(1))
    right = getattr(backend, function)

    def wrong(*arguments: Any) -> None:
        right(*arguments)
        out = next(a for a in reversed(arguments) if isinstance(a, np.ndarray) and a.ndim > 1)
        out.flat[5] += 1

    monkeypatch.setattr(backend, function, wrong)
    assert main(["info"]) == 1
    assert f"KERNELS ARE WRONG: {names}\n" in capsys.readouterr().out


@pytest.mark.parametrize("given", ["two", "0", "-1", "1e3", "2.0", "0x2", "²", "1" * 5000])
def test_2_for_a_number_of_threads_that_is_none(
    given: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(threads, "_default", threads._default.__wrapped__)
    monkeypatch.setattr(threads, "_limit", threads._limit.__wrapped__)
    monkeypatch.setenv("INVOCUPY_NUM_THREADS", given)
    assert main(["info"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("invocupy: INVOCUPY_NUM_THREADS must be an integer >= 1, or empty")
    assert repr(given) in line


def test_warm_runs_what_it_shall_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    forward, logits = nn.Involution.forward, SimpleModel.logits

    def noted(layer: nn.Involution, x: Any) -> Any:
        seen.append((layer.kernel_size[0], layer.stride[0]))
        return forward(layer, x)

    def noted_model(model: SimpleModel, x: Any) -> Any:
        seen.append(len(model.blocks))
        return logits(model, x)

    monkeypatch.setattr(nn.Involution, "forward", noted)
    monkeypatch.setattr(SimpleModel, "logits", noted_model)
    monkeypatch.setattr(info, "_WARM", ((1, 2),))  # quick to compile
    assert info._warm("cpu") > 0
    assert seen[0] == 1
    assert seen[-1] == (1, 2)
