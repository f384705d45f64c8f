"""CIFAR-100: two label bytes a record; the checks are those of CIFAR-10."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pooch  # noqa: F401  (its logger keeps the standard error of its first import)
import pytest
from cifar_files import RECORDS, make_files

from invocupy import data
from invocupy.cli import main
from invocupy.data import DataError, cifar
from invocupy.train import DATASETS

pytestmark = pytest.mark.usefixtures("small")
NAMES = "train.bin", "test.bin"


def contents() -> dict[str, bytes]:
    """Random pixels; the classes count up."""
    files = {}
    for i, name in enumerate(NAMES):
        records = np.random.default_rng(i).integers(0, 4, (RECORDS, 3074), np.uint8) * 64
        records[:, 0], records[:, 1] = np.arange(RECORDS) % 20, 99 - np.arange(RECORDS)
        files[name] = records.tobytes()
    return files


def folder(place: Path, files: dict[str, bytes]) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (place / name).write_bytes(content)
    return place


def archive(path: Path, files: dict[str, bytes], inside: str = "cifar-100-binary") -> Path:
    with tarfile.open(path, "w:gz") as packed:
        for name, content in (files | {"fine_label_names.txt": b"apple"}).items():
            info = tarfile.TarInfo(f"{inside}/{name}")
            info.size = len(content)
            packed.addfile(info, io.BytesIO(content))
    return path


def test_folders_and_archives(tmp_path: Path) -> None:
    files = contents()
    folder(tmp_path / "flat", files)
    folder(tmp_path / "deep" / "cifar-100-binary", files)
    archive(folder(tmp_path / "packed", {}) / "cifar-100-binary.tar.gz", files)
    path = archive(tmp_path / "other.tar.gz", files)
    for root in (*(tmp_path / name for name in ("flat", "deep", "packed")), path):
        for train, name in ((True, NAMES[0]), (False, NAMES[1])):
            records = np.frombuffer(files[name], np.uint8).reshape(-1, 3074)
            images, labels = data.cifar100(root, train)
            assert (images.dtype, labels.dtype) == (np.uint8, np.int64)
            np.testing.assert_array_equal(images.reshape(-1, 3072), records[:, 2:])
            np.testing.assert_array_equal(labels, records[:, 1])
            np.testing.assert_array_equal(data.cifar100(root, train, coarse=True)[1], records[:, 0])


@pytest.mark.parametrize(("byte", "value", "most"), [(0, 20, 19), (1, 100, 99)])
def test_labels_out_of_range(tmp_path: Path, byte: int, value: int, most: int) -> None:
    files = contents()
    records = bytearray(files["train.bin"])
    records[3 * 3074 + byte] = value
    root = folder(tmp_path, files | {"train.bin": bytes(records)})
    for coarse in (False, True):
        with pytest.raises(DataError, match=rf"label {value} in record 3, .* from 0 to {most}:"):
            data.cifar100(root, coarse=coarse)
    data.cifar100(root, train=False)


def test_what_is_not_the_binary_version_of_cifar_100(tmp_path: Path) -> None:
    short = folder(tmp_path / "short", contents() | {"train.bin": b"1234"})
    with pytest.raises(DataError, match=r"train\.bin must have \d+ bytes .* of 3074\), got 4: "):
        data.cifar100(short)
    ten = folder(tmp_path / "ten", make_files())
    with pytest.raises(DataError, match=r"has no CIFAR-100: .* train\.bin .*cifar-100-binary"):
        data.cifar100(ten)
    wrong = archive(tmp_path / "a.tar.gz", contents(), "cifar-100-python")
    with pytest.raises(DataError, match=r"is not cifar-100-binary\.tar\.gz, but the Python"):
        data.cifar100(wrong)
    (tmp_path / "py" / "cifar-100-python").mkdir(parents=True)
    with pytest.raises(DataError, match="Python version of CIFAR-100, whose pickles are never"):
        data.cifar100(tmp_path / "py")


def test_names_and_sizes() -> None:
    fine, coarse = data.CIFAR100_CLASSES, data.CIFAR100_COARSE_CLASSES
    assert (len(fine), len(coarse)) == (100, 20)
    assert list(fine) == sorted(set(fine))
    assert list(coarse) == sorted(set(coarse))
    assert DATASETS["cifar100"].classes == fine
    whole = cifar.HUNDRED._replace(records=(50_000, 10_000))
    assert [whole.count(name) * whole.record for name in NAMES] == [153_700_000, 30_740_000]


def test_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "set", contents())
    run = ["train", "--dataset", "cifar100", "--data-dir", "set", "--layers", "0", "--epochs", "1"]
    assert main([*run, "--no-plots", "--out", "a"]) == 0
    assert "100 classes" in capsys.readouterr().err
    assert main(["evaluate", "a"]) == 0
    assert "accuracy" in capsys.readouterr().out
