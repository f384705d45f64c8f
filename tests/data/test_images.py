"""Image files of every depth and mode, and damaged ones."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from invocupy.cli import main
from invocupy.data import DataError, read_image
from invocupy.train import Config, fit

pytest.importorskip("PIL", reason="needs Pillow")
from PIL import Image, ImageCms, features

RAMP = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))
DEEP = RAMP.astype(np.uint16) * 257


def png(path: Path, colour: int, depth: int, pixels: Any, *chunks: tuple[bytes, bytes]) -> None:
    """A PNG of rows of bytes, with chunks before its pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        length, check = len(content), zlib.crc32(name + content)
        return struct.pack(">I", length) + name + content + struct.pack(">I", check)

    height, width = pixels.shape[:2]
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels))
    parts = (b"IHDR", head), *chunks, (b"IDAT", rows), (b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))


def tiff(path: Path, content: bytes, bits: int, photometric: int = 1, sample: int = 1) -> None:
    """A grey TIFF of 64 x 64 pixels in one strip."""
    entries = [
        (256, 64), (257, 64), (258, bits), (259, 1), (262, photometric), (273, 0), (277, 1),
        (278, 64), (279, len(content)), (339, sample),
    ]  # fmt: skip
    start = 8 + 2 + 12 * len(entries) + 4
    values = {273: start}
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, values.get(tag, v)) for tag, v in entries)
    head = b"II*\0" + struct.pack("<IH", 8, len(entries))
    path.write_bytes(head + directory + bytes(4) + content)


def save(path: Path, pixels: Any, **options: Any) -> str:
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path, **options)
    return str(path)


def test_files_are_read_as_they_look(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (32, 32, 3))
    whole = read_image(save(tmp_path / "a.png", pixels))
    assert whole.dtype == np.uint8
    assert whole.flags.c_contiguous
    np.testing.assert_array_equal(whole, pixels.transpose(2, 0, 1))
    # four pixels become one, and what lies beside the middle square is cut off
    large = np.repeat(np.repeat(pixels, 2, 0), 2, 1)
    wide = np.concatenate([np.zeros((64, 7, 3)), large, np.zeros((64, 7, 3))], axis=1)
    np.testing.assert_array_equal(read_image(save(tmp_path / "b.png", wide)), whole)
    clear = np.concatenate([pixels, np.zeros((32, 32, 1))], axis=2)
    assert (read_image(save(tmp_path / "c.png", clear)) == 255).all()
    grey = read_image(save(tmp_path / "d.png", pixels[..., 0]))
    np.testing.assert_array_equal(grey, np.stack([pixels[..., 0]] * 3))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    turned = read_image(save(tmp_path / "e.png", pixels, exif=exif))
    np.testing.assert_array_equal(turned, whole[:, ::-1, ::-1])
    assert read_image(save(tmp_path / "f.png", pixels[:5, :9])).shape == (3, 32, 32)


def test_files_that_are_no_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = save(tmp_path / "a.png", np.zeros((40, 40, 3)))
    cut, text = tmp_path / "cut.png", tmp_path / "text.png"
    noise = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)).save(
        noise, "png"
    )
    cut.write_bytes(noise.getvalue()[:-2000])
    text.write_text("no image")
    for path in (cut, text, tmp_path, tmp_path / "none.png"):
        with pytest.raises(DataError, match=f"{path} cannot be read as an image") as caught:
            read_image(path)
        assert "\n" not in str(caught.value)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for pixels in (999, 500):  # a warning, then an error of Pillow's
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pixels)
        with pytest.raises(DataError, match=r"exceeds limit.*\): give a smaller image$"):
            read_image(good)


def levels(white: int) -> Any:
    """The ramp with another value for white."""
    return RAMP.astype(np.uint32) * white // 255


def twelve_bits() -> bytes:
    pairs = levels(4095).reshape(-1, 2)
    both = pairs[:, 0] << 12 | pairs[:, 1]
    return bytes(np.stack([both >> 16, both >> 8, both], axis=1).astype(np.uint8).tobytes())


def saved(mode: str, values: Any, **options: Any) -> Callable[[Path], Any]:
    def save(path: Path) -> None:
        Image.frombytes(mode, (64, 64), values.tobytes()).save(path, **options)

    return save


def written(content: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(content)


SCALED: dict[str, Callable[[Path], Any]] = {
    "a.png": saved("I;16", DEEP),
    "little.tif": saved("I;16", DEEP),
    "packed.tif": saved("I;16", DEEP, compression="tiff_lzw"),
    "big.tif": saved("I;16B", DEEP.astype(">u2")),
    "12.tif": lambda path: tiff(path, twelve_bits(), 12),
    "white-is-0.tif": lambda path: tiff(path, (65535 - DEEP).tobytes(), 16, photometric=0),
    "65535.pgm": written(b"P5 64 64 65535\n" + DEEP.astype(">u2").tobytes()),
    "4095.pgm": written(b"P5 64 64 4095\n" + levels(4095).astype(">u2").tobytes()),
    "plain.pgm": written(b"P2 64 64 1000\n" + " ".join(map(str, levels(1000).flat)).encode()),
    "float.tif": saved("F", (RAMP / 255).astype(np.float32)),
    "float-white-is-0.tif": lambda path: tiff(
        path, (1 - RAMP / 255).astype(np.float32).tobytes(), 32, photometric=0, sample=3
    ),
    "float.pfm": saved("F", (RAMP / 255).astype(np.float32)),
}
if features.check("jpg_2000"):
    SCALED["a.jp2"] = saved("I;16", DEEP)


@pytest.mark.parametrize("name", SCALED)
def test_deep_grey_images_are_scaled(name: str, tmp_path: Path) -> None:
    Image.fromarray(RAMP).save(tmp_path / "expected.png")
    expected = read_image(tmp_path / "expected.png").astype(int)
    SCALED[name](tmp_path / name)
    # A level of rounding here, and one where the file has fewer levels than 65536.
    assert np.abs(read_image(tmp_path / name).astype(int) - expected).max() <= 2


NOT_A_NUMBER = np.where(RAMP == 0, np.nan, RAMP / 255).astype(np.float32)
REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "int32.tif": (saved("I", DEEP.astype(np.int32)), "which value is white in TIFF"),
    "uint32.tif": (lambda p: tiff(p, DEEP.astype("<u4").tobytes(), 32), "which value is white"),
    "int16.tif": (
        lambda p: tiff(p, DEEP.astype("<i2").tobytes(), 16, sample=2), "which value is white",
    ),
    "float255.tif": (saved("F", RAMP.astype(np.float32)), "from 0 to 252 and must be"),
    "negative.tif": (saved("F", (RAMP / 255 - 0.5).astype(np.float32)), "from -0.5 to"),
    "nan.tif": (saved("F", NOT_A_NUMBER), "from nan to nan"),
    "inf.tif": (saved("F", np.full((64, 64), np.inf, np.float32)), "from inf to inf"),
    "16.fits": (
        written(
            b"".join(
                f"{key:8}= {value:>20}".ljust(80).encode()
                for key, value in
                {"SIMPLE": "T", "BITPIX": 16, "NAXIS": 2, "NAXIS1": 64, "NAXIS2": 64}.items()
            ).ljust(2800) + b"END".ljust(80) + DEEP.astype(">i2").tobytes()
        ),
        "which value is white in FITS",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_pixels_of_unknown_scale_are_refused(name: str, tmp_path: Path) -> None:
    write, reason = REFUSED[name]
    write(tmp_path / name)
    with pytest.raises(DataError, match=reason) as caught:
        read_image(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_transparency_of_deep_grey_is_white(tmp_path: Path) -> None:
    pixels = np.full((32, 32), 0x1234, ">u2")
    pixels[:, 16:] = 0x8000
    png(tmp_path / "a.png", 0, 16, pixels, (b"tRNS", struct.pack(">H", 0x1234)))
    assert read_image(tmp_path / "a.png")[0, 0, ::16].tolist() == [255, 128]


def test_every_turn_of_a_deep_image(tmp_path: Path) -> None:
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for name, pixels in (("a.png", RAMP), ("b.png", DEEP)):
            Image.fromarray(pixels).save(tmp_path / name, exif=exif)
        images = [read_image(tmp_path / name).astype(int) for name in ("a.png", "b.png")]
        assert np.abs(images[0] - images[1]).max() <= 1, orientation


COLOUR = 200, 100, 50
GREY = (0.299 * 200 + 0.587 * 100 + 0.114 * 50,) * 3


def of_lab(path: Path) -> None:
    profiles = [ImageCms.createProfile(name) for name in ("sRGB", "LAB")]
    image = Image.new("RGB", (8, 8), COLOUR)
    lab = ImageCms.profileToProfile(image, *profiles, outputMode="LAB")
    assert lab is not None
    lab.save(path)


def of_mode(mode: str, **options: Any) -> Callable[[Path], Any]:
    def save(path: Path) -> None:
        Image.new("RGB", (8, 8), COLOUR).convert(mode).save(path, **options)

    return save


MODES: dict[str, tuple[Callable[[Path], Any], tuple[float, ...], int]] = {
    "1.png": (lambda p: Image.new("1", (8, 8), 1).save(p), (255, 255, 255), 0),
    "L.png": (of_mode("L"), GREY, 1),
    "LA.png": (of_mode("LA"), GREY, 1),
    "P.png": (of_mode("P"), COLOUR, 4),  # of a palette of 216 colours
    "RGBX.tif": (of_mode("RGBX"), COLOUR, 0),
    "CMYK.tif": (of_mode("CMYK"), COLOUR, 0),
    "YCbCr.tif": (of_mode("YCbCr", compression="tiff_lzw"), COLOUR, 2),
    "LAB.tif": (of_lab, COLOUR, 2),
}


@pytest.mark.parametrize("name", MODES)
def test_every_mode_that_a_file_may_have(name: str, tmp_path: Path) -> None:
    save, colour, allowed = MODES[name]
    save(tmp_path / name)
    found = read_image(tmp_path / name)[:, 0, 0]
    assert np.abs(found - np.array(colour)).max() <= allowed


@pytest.mark.parametrize(
    ("modes", "colour"),
    [("LA La", GREY), ("RGBA RGBa", COLOUR), ("RGB HSV", COLOUR)],
)
def test_modes_that_few_files_have(
    modes: str, colour: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where half of the image is transparent, it is white."""
    image = Image.new("RGBA", (32, 32), (*COLOUR, 255))
    image.paste((0, 0, 0, 0), (16, 0, 32, 32))
    for mode in modes.split():
        image = image.convert(mode)
    monkeypatch.setattr("PIL.Image.open", lambda _: image)
    found = read_image("a.png")
    assert np.abs(found[:, 0, 0] - np.array(colour)).max() <= 4  # of a palette of 216 colours
    assert found[:, 0, 31].tolist() == [255 if image.has_transparency_data else 0] * 3


# ---------------------------------------------------------------------------- damaged files

ERRORS = [
    struct.error("a"), RuntimeError("b"), NotImplementedError("c"), RecursionError("d"),
    AssertionError(), MemoryError(), KeyError("e"), EOFError(), ZeroDivisionError("f\ng"),
    OverflowError("h"), UnicodeDecodeError("ascii", b"", 0, 1, "i"), Image.DecompressionBombError(),
]  # fmt: skip


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("place", ["PIL.Image.open", "PIL.ImageOps.exif_transpose"])
def test_whatever_pillow_raises(
    error: Exception, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise error

    path = tmp_path / "a.png"
    Image.fromarray(RAMP).save(path)
    monkeypatch.setattr(place, broken)
    with pytest.raises(DataError, match=f"{path} cannot be read as an image") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)
    assert "()" not in str(caught.value)
    assert "): give a " in str(caught.value)


def test_ctrl_c_is_not_a_bad_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("PIL.Image.open", interrupted)
    with pytest.raises(KeyboardInterrupt):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("size", [0, -1, 2.5, True])
def test_a_size_below_one(size: Any) -> None:
    with pytest.raises(ValueError, match=f"size must be an integer >= 1, got {size}"):
        read_image("a.png", size)


KINDS = ["png", "jpg", "tif", "gif", "bmp", "ppm", "webp", "ico", "dds", "tga", "sgi", "pcx"]


@given(seed=st.integers(0, 2**32 - 1))
def test_damage_gives_an_image_or_our_error(seed: int, tmp_path_factory: Any) -> None:
    """Bytes changed anywhere, or the end cut off."""
    rng = np.random.default_rng(seed)
    path = tmp_path_factory.mktemp("damage") / f"a.{KINDS[rng.integers(len(KINDS))]}"
    pixels = rng.integers(0, 256, (12, 12, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = int(rng.integers(1, 9)), "maker"
    options = {"exif": exif} if path.suffix in (".png", ".jpg", ".webp", ".tif") else {}
    Image.fromarray(pixels).save(path, **options)
    content = bytearray(path.read_bytes())
    for place in rng.integers(0, min(len(content), 200), rng.integers(1, 4)):
        content[place] = rng.integers(256)
    path.write_bytes(content[: len(content) - int(rng.integers(0, 2) * rng.integers(0, 50))])
    try:
        with pytest.MonkeyPatch.context() as patch:  # a changed size may be that of a huge image
            patch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
            image = read_image(path)
    except DataError as error:
        assert str(path) in str(error)  # noqa: PT017
        return
    assert image.shape == (3, 32, 32)


def test_predict_answers_the_good_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = Config(layers=0, epochs=1, limit=10, batch_size=10, device="cpu")
    fit(config, tmp_path / "run")
    Image.fromarray(RAMP).save(tmp_path / "good.png")
    Image.new("RGBA", (8, 8)).save(tmp_path / "flags.dds")
    content = bytearray((tmp_path / "flags.dds").read_bytes())
    content[80:84] = bytes(4)  # the flags of the pixel format: NotImplementedError
    (tmp_path / "flags.dds").write_bytes(content)
    saved("I", DEEP.astype(np.int32))(tmp_path / "deep.tif")
    names = ["flags.dds", "good.png", "deep.tif", "none.png"]
    paths = [str(tmp_path / name) for name in names]
    command = ["predict", str(tmp_path / "run"), *paths, "--device", "cpu"]
    assert main([*command, "--json"]) == 65
    out, err = capsys.readouterr()
    rows = json.loads(out)["images"]
    assert [row["image"] for row in rows] == paths
    assert ["error" in row for row in rows] == [True, False, True, True]
    assert len(rows[1]["classes"]) == 3
    assert err.count("\n") == 3
    assert main(command) == 65
    out, err = capsys.readouterr()
    assert out.startswith(paths[1])
    assert err.count("\n") == 3


def test_an_answer_that_is_not_finite(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config(layers=0, epochs=1, limit=10, batch_size=10, device="cpu")
    fit(config, tmp_path / "run")
    paths = [str(tmp_path / name) for name in ("a.png", "b.png")]
    for path in paths:
        Image.fromarray(RAMP).save(path)
    answers = np.full((2, 10), 0.1, np.float32)
    answers[0, 3] = np.nan
    monkeypatch.setattr("invocupy.train.predict", lambda *_, **__: answers)
    command = ["predict", str(tmp_path / "run"), *paths, "--device", "cpu"]
    assert main([*command, "--json"]) == 65
    out, err = capsys.readouterr()
    rows = json.loads(out, parse_constant=pytest.fail)["images"]
    assert "not finite" in rows[0]["error"]
    assert len(rows[1]["classes"]) == 3
    assert err.startswith(f"invocupy: {paths[0]} has no class")
    assert main(command) == 65
    assert capsys.readouterr().out.startswith(paths[1])
