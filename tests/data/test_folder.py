"""Images in a folder for each class: their order, what is refused, and what is kept of them."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from invocupy.data import DataError, folder, folder_listing, image_folder, read_image
from invocupy.data.images import sized_image

Image = pytest.importorskip("PIL.Image", reason="needs the extra plots")

COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220), "green": (30, 220, 30)}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "cache"
    monkeypatch.setattr(folder, "cache_root", lambda: place)
    return place / "folders"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three images of each colour to train on, one of two to test on."""
    place = tmp_path / "colours"
    for part, count, names in (("train", 3, COLOURS), ("test", 1, ("red", "green"))):
        for name in names:
            (place / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.full((10 + i, 12, 3), COLOURS[name], np.uint8)
                kind = ("png", "bmp", "tiff")[i]
                Image.fromarray(pixels).save(place / part / name / f"{i}.{kind}")
    return place


def test_images_and_labels_in_turns(root: Path) -> None:
    (root / "train" / ".hidden").mkdir()
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (root / "train" / "red" / name).write_text("")
    (root / "train" / "labels.csv").write_text("")
    assert folder_listing(root) == (("blue", "green", "red"), 9, 2)
    images, labels = image_folder(root, True, 8)
    assert images.dtype == np.uint8
    assert images.shape == (9, 3, 8, 8)
    assert labels.tolist() == [0, 1, 2] * 3
    for image, label in zip(images, labels, strict=True):
        name = ("blue", "green", "red")[label]
        np.testing.assert_array_equal(image[:, 3, 3], COLOURS[name])
    tests, labels = image_folder(str(root), False, 8)
    assert labels.tolist() == [1, 2]
    np.testing.assert_array_equal(tests[1], read_image(root / "test" / "red" / "0.png", 8))


def test_decoded_images_are_kept_until_files_change(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, _ = image_folder(root, True, 8)
    read: list[Any] = []
    right = sized_image
    monkeypatch.setattr(folder, "sized_image", lambda *a: read.append(a) or right(*a))
    np.testing.assert_array_equal(image_folder(root, True, 8)[0], images)
    assert not read
    (kept,) = cache.iterdir()
    content = bytearray(kept.read_bytes())
    content[-5] ^= 1
    kept.write_bytes(content)
    np.testing.assert_array_equal(image_folder(root, True, 8)[0], images)
    assert len(read) == 9  # damaged: made anew
    kept.rename(kept.with_name(f".{kept.name}.0123456789abcdef.tmp"))  # of a killed process
    np.testing.assert_array_equal(image_folder(root, True, 8)[0], images)
    assert len(read) == 18
    assert [*cache.iterdir()] == [kept]
    image_folder(root, True, 9)
    assert len(read) == 27  # of another size
    os.utime(root / "train" / "red" / "0.png", ns=(1, 1))
    image_folder(root, True, 8)
    assert len(read) == 36


def test_without_a_cache_it_works(root: Path, cache: Path) -> None:
    cache.parent.write_text("a file")
    assert len(image_folder(root, True, 8)[0]) == 9


@pytest.mark.parametrize("again", [False, True])
def test_broken_files_are_named_and_refused_or_left_out(
    root: Path, capsys: pytest.CaptureFixture[str], again: bool
) -> None:
    whole, _ = image_folder(root, True, 8)
    red = root / "train" / "red"
    content = (red / "0.png").read_bytes()
    (red / "0.png").write_bytes(content[: len(content) // 2])
    (red / "4.png").symlink_to("nowhere")
    Image.fromarray(np.zeros((40, 7, 3), np.uint8)).save(red / "5.png")
    words = r"^3 of 11 files cannot be used, the first is \S*/red/0.png \(.*\): .*--skip-broken$"
    for _ in range(1 + again):  # from the files, and from the cache
        with pytest.raises(DataError, match=words):
            image_folder(root, True, 8)
    images, labels = image_folder(root, True, 8, skip_broken=True)
    assert labels.tolist() == [0, 1, 0, 1, 2, 0, 1, 2]
    np.testing.assert_array_equal(images, np.delete(whole, 2, axis=0))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[3].rpartition("/")[2] for line in lines] == ["0.png", "4.png", "5.png"]
    assert "7 x 40 pixels, smaller than 8 x 8" in lines[2]


def test_a_file_that_can_be_read_now(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a change of its permissions, or with a Pillow that knows its format."""

    def denied(path: Path, size: int) -> Any:
        if path.name == "1.bmp":
            raise DataError("Permission denied")
        return sized_image(path, size)

    with monkeypatch.context() as patch:
        patch.setattr(folder, "sized_image", denied)
        assert len(image_folder(root, True, 8, skip_broken=True)[0]) == 6
    images, labels = image_folder(root, True, 8)
    assert labels.tolist() == [0, 1, 2] * 3
    np.testing.assert_array_equal(images[4, :, 3, 3], COLOURS["green"])


def test_each_file_is_opened_once_and_what_pillow_warns_of_is_not_shown(
    root: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """So a file that vanishes while the folder is read does no harm."""
    place, right, names = root / "train" / "red" / "2.tiff", Image.open, []
    plain = place.read_bytes()
    start = int.from_bytes(plain[4:8], "little")
    count = int.from_bytes(plain[start : start + 2], "little")
    copyright_ = struct.pack("<HHII", 33432, 2, 100, 10**6)  # past the end of the file
    tags = struct.pack("<H", count + 1) + plain[start + 2 : start + 2 + 12 * count] + copyright_
    place.write_bytes(plain[:4] + struct.pack("<I", len(plain)) + plain[8:] + tags + bytes(4))
    monkeypatch.setattr(Image, "open", lambda path, *a: names.append(path) or right(path, *a))
    assert len(image_folder(root, True, 8)[0]) == len(names) == 9
    assert not recwarn.list


def test_a_class_of_broken_files_is_refused(root: Path) -> None:
    for file in (root / "train" / "red").iterdir():
        file.write_text("no image")
    with pytest.raises(DataError, match="red has no image that can be used"):
        image_folder(root, True, 8, skip_broken=True)
    with pytest.raises(DataError, match=r"5 of 9 files .*/blue/0.png \(12 x 10 pixels, smaller"):
        image_folder(root, True, 11)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda root: root.rename(root.with_name("gone")), "colours has no folder train"),
        (lambda root: (root / "test").rename(root / "tests"), "has no folder test"),
        (lambda root: (root / "test" / "pink").mkdir(), "pink is empty"),
        (lambda root: (root / "train" / "pink").mkdir(), "pink is empty"),
        (lambda root: (root / "train" / "pink").symlink_to("gone"), "pink is a link to nothing"),
        (
            lambda root: (root / "train" / "red").rename(root / "train" / "rot"),
            "test has the class red, which .*train lacks",
        ),
        (
            lambda root: [(root / "train" / x).rename(root / x) for x in ("red", "blue")],
            "at least two classes, got green",
        ),
        (
            lambda root: [(root / "test" / x).rename(root / x) for x in ("red", "green")],
            "test has no folder of a class",
        ),
    ],
)
def test_folders_that_do_not_fit(root: Path, change: Any, words: str) -> None:
    change(root)
    for train in (True, False):
        with pytest.raises(DataError, match=words) as told:
            image_folder(root, train, 8)
        assert "\n" not in str(told.value)
