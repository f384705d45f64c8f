"""The explorer: what lies in the page is what the model computes, and a browser shows that."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import PROGRAM, Browser, chromium

from invocupy import functional as F  # noqa: N812
from invocupy import nn
from invocupy.autograd import Tensor, no_grad
from invocupy.checkpoint import CheckpointError
from invocupy.data import Batches, shapes10
from invocupy.models import RedNet, SimpleModel, SmallNet
from invocupy.report import Findings, explore, write_explorer
from invocupy.report.kernels import involution_layers
from invocupy.report.page import render

STYLE: dict[str, Any] = {"mean": (0.5, 0.4, 0.3), "std": (0.25, 0.2, 0.3)}
IMAGES = shapes10(4, 0)[0]
browsers = pytest.mark.skipif(PROGRAM is None, reason="Chromium is not installed")


def lively(model: Any) -> Any:
    """A network none of whose norms and biases is 0, so that every kernel has something to show."""
    rng = np.random.default_rng(1)
    for parameter in model.parameters():
        noise = rng.normal(0, 0.1, parameter.shape).astype(parameter.data.dtype)
        parameter.data = parameter.data + noise
    return model.eval()


MODELS = {
    "simple": lambda: lively(SimpleModel(num_layers=3, rng=0)),
    "small": lambda: lively(SmallNet("involution", 32, rng=0)),
    "rednet": lambda: lively(RedNet((1, 1, 1, 1), 10, stem="cifar", rng=0)),
}


class Watched:
    """Inputs of each involution layer and what it makes of them, by the layers' own methods."""

    def __init__(self, model: nn.Module, image: Any) -> None:
        self.kernel, self.x, self.out = {}, {}, {}
        batches = Batches(image[None], np.zeros(1, int), 1, shuffle=False, **STYLE)

        def forward(name: str, layer: nn.Involution) -> Any:
            def run(x: Tensor) -> Tensor:
                kernel = layer.kernel(x)
                out = F.involution(x, kernel, stride=layer.stride, dilation=layer.dilation)
                self.kernel[name], self.x[name], self.out[name] = (
                    kernel.data[0], x.data[0], out.data[0],
                )  # fmt: skip
                return out

            return run

        for name, layer in model.named_modules():
            if isinstance(layer, nn.Involution):
                layer.fused = False
                vars(layer)["forward"] = forward(name, layer)
        with no_grad():
            for x, _ in batches.epoch(0):
                model(x)
        for layer in model.modules():
            vars(layer).pop("forward", None) if isinstance(layer, nn.Involution) else None


def explored(model: nn.Module, count: int = len(IMAGES), **options: Any) -> Any:
    names = involution_layers(model, most=None)
    titles = [f"image {i}" for i in range(count)]
    return explore(model, IMAGES[:count], titles, names, **STYLE, **options)


def unpacked(packed: Any) -> tuple[Any, int]:
    """The integers, and the places after the point."""
    return np.frombuffer(base64.b64decode(packed["data"]), "<i2"), packed["places"]


def said(value: float, places: int) -> str:
    """A number as the page shows it, from the model's."""
    unit = 10.0 ** max(-places, 0)
    rounded = np.rint(value / unit) * unit if places < 0 else value
    text = f"{rounded:.{max(places, 0)}f}"
    if places > 7:
        text = f"{float(text):g}"
    return re.sub("^-", "" if float(text) == 0 else "\N{MINUS SIGN}", text)


@pytest.mark.parametrize("network", MODELS)
def test_the_numbers_in_the_page_are_the_model_s(network: str) -> None:
    model = MODELS[network]()
    found = explored(model)
    assert [layer["name"] for layer in found["layers"]] == involution_layers(model, most=None)
    for number, image in enumerate(IMAGES):
        seen = Watched(model, image)
        for layer in found["layers"]:
            name, arrays = layer["name"], layer["arrays"][number]
            kernel = seen.kernel[name].transpose(0, 3, 4, 1, 2)  # (G, Ho, Wo, Kh, Kw)
            pairs = [("kernel", kernel), ("fixed", kernel.mean(axis=(1, 2), dtype=np.float64))]
            pairs += [(what, getattr(seen, what)[name][layer["channels"]]) for what in ("x", "out")]
            assert (*kernel.shape[1:3],) == (*layer["out"],)
            assert (*seen.x[name].shape[1:],) == (*layer["size"],)
            for what, wanted in pairs:
                for packed, values in zip(arrays[what], wanted, strict=True):
                    integers, places = unpacked(packed)
                    # half of the last place, and the rounding of batches of another size
                    error = np.abs(integers - values.ravel() * 10.0**places).max()
                    assert error <= 0.5 + 1e-5 * 10_000, (name, what)
                    largest = np.abs(integers).max()
                    assert 1000 <= largest <= 9999 or largest == 0


def test_positions_of_each_stage_cover_the_image() -> None:
    for layer in explored(MODELS["small"]())["layers"]:
        for scale, stride, size, out in zip(
            *(layer[key] for key in ("scale", "stride", "size", "out")), strict=True
        ):
            assert scale * size == 32
            assert scale * stride * out == 32


@pytest.mark.parametrize("spatial", ["depthwise", "convolution"])
def test_the_convolution_beside_is_that_of_the_same_channel(spatial: str) -> None:
    other = SmallNet(spatial, 32, rng=3)
    for layer in explored(MODELS["small"](), convolutions=other)["layers"]:
        assert not layer["mean"]
        weight = dict(other.named_modules())[layer["name"]].weight.data
        for packed, channel in zip(layer["arrays"][2]["fixed"], layer["channels"], strict=True):
            integers, places = unpacked(packed)
            own = weight[channel, 0 if spatial == "depthwise" else channel]
            np.testing.assert_allclose(integers, own.ravel() * 10.0**places, atol=0.51)


def test_a_page_of_ten_layers_is_small(tmp_path: Path) -> None:
    model = SimpleModel(num_layers=10, rng=0)
    names = involution_layers(model, most=None)
    found = explore(model, IMAGES[:1], ["<b>&\"'</script>"], names, **STYLE)
    write_explorer(found, "</title>", tmp_path / "a.html")
    text = (tmp_path / "a.html").read_text("utf-8")
    assert len(text) < 3e6
    assert "://" not in text
    assert not re.search(r"url\(|@import|src=|href=", text)
    assert text.count("</script>") == 2
    assert text.count("</title>") == 1
    inside = text.partition('id="explorer-data">')[2].partition("</script>")[0]
    assert json.loads(inside)["images"][0]["title"] == "<b>&\"'</script>"


def test_a_notebook_shows_the_page_in_a_frame(tmp_path: Path) -> None:
    found = explored(lively(SimpleModel(num_layers=1, rng=0)), 1)
    write_explorer(found, "notebook", tmp_path / "page.html")
    html = found._repr_html_()
    inner = re.fullmatch(r'<iframe (?:\w+="[^"<]+" )*srcdoc="([^"<]+)"></iframe>', html)
    assert inner
    assert unescape(inner[1]) == (tmp_path / "page.html").read_text("utf-8")


def test_numbers_that_are_not_finite_are_refused() -> None:
    model = SimpleModel(num_layers=1, rng=0)
    model.blocks[0].involution.span.bias.data[0] = np.nan
    with pytest.raises(CheckpointError, match=r"blocks\.0\.involution cannot be explored"):
        explored(model)


def test_the_report_has_the_explorer_of_its_first_mapped_image(found: Findings) -> None:
    assert found.explored is not None
    assert [layer["name"] for layer in found.explored["layers"]] == [m.layer for m in found.maps]
    pixels = base64.b64decode(found.explored["images"][0]["pixels"])
    assert pixels == found.mapped.images[0].transpose(1, 2, 0).tobytes()
    assert 'id="explorer"' in render(found)
    assert 'id="explorer"' not in render(found._replace(explored=None))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@browsers
@pytest.mark.parametrize("width", [400, 1300])
def test_the_frame_of_a_notebook_is_as_high_as_its_page(
    browser: Browser, width: int, tmp_path: Path
) -> None:
    found = explored(lively(SimpleModel(num_layers=1, rng=0)), 1)
    (tmp_path / "a.html").write_text(found._repr_html_(), "utf-8")
    browser.open(tmp_path / "a.html", width=width)
    frame, page = browser.run(
        "(frame => [frame.offsetHeight, frame.contentDocument.documentElement.scrollHeight])"
        "(document.querySelector('iframe'))"
    )
    assert frame == page
    assert frame != 46 * 16  # before the page has loaded


class Page:
    """The explorer in a browser, beside what the model computes."""

    def __init__(self, browser: Browser, network: str, folder: Path, **options: Any) -> None:
        self.browser, self.model = browser, MODELS[network]()
        self.found, self.seen = explored(self.model, 1), Watched(self.model, IMAGES[0])
        write_explorer(self.found, network, folder / "a.html")
        browser.open(folder / "a.html", **options)
        browser.run("document.querySelector('.place canvas').scrollIntoView({block: 'center'})")

    def spot(self, row: float, column: float) -> tuple[float, float]:
        """Where a pixel of the image lies in the window."""
        left, top, side = self.browser.run(
            "(box => [box.left, box.top, box.width])"
            "(document.querySelector('.place canvas').getBoundingClientRect())"
        )
        return left + (column + 0.5) * side / 32, top + (row + 0.5) * side / 32

    def layer(self, number: int) -> None:
        self.browser.run(
            "(range => range.dispatchEvent(new Event('input')))"
            f"(Object.assign(document.querySelector('[type=range]'), {{value: {number}}}))"
        )

    def group(self, number: int) -> None:
        self.browser.run(f"document.querySelectorAll('[name=group]')[{number}].click()")

    def shows(self, number: int, group: int, *pixels: tuple[int, int]) -> None:
        """Check all numbers: kernels at the pixels of A and B, the result at A, the spoken text."""
        layer = self.found["layers"][number]
        name, arrays = layer["name"], layer["arrays"][0]
        status = self.browser.run("document.querySelector('[role=status]').textContent")
        assert status.startswith(f"{name}, group {group}. A, ")
        for which, pixel in enumerate(pixels):
            i, j = (
                at // (scale * stride)
                for at, scale, stride in zip(pixel, layer["scale"], layer["stride"], strict=True)
            )
            kernel = self.seen.kernel[name][group, :, :, i, j]
            wanted = [said(v, arrays["kernel"][group]["places"]) for v in kernel.ravel()]
            assert wanted == self.browser.run(
                f"[...document.querySelectorAll('.grids figure')[{which}].querySelectorAll('td')]"
                ".map(cell => cell.textContent)"
            )
            row, column = pixel
            heard = f"{'AB'[which]}, row {row}, column {column}: {' '.join(wanted)}."
            assert heard in status
            if which == 0:
                out = self.seen.out[name][layer["channels"][group], i, j]
                text = said(out, arrays["out"][group]["places"])
                assert status.endswith(f"at A: {text}.")
                total = self.browser.run("document.querySelector('.sum').textContent")
                assert total.endswith(f" = {text}")
                products = re.findall(r"\(?(\S+?)\)?\N{MIDDLE DOT}\(?(\S+?)\)?(?= [+=])", total)
                assert [weight for weight, _ in products] == wanted
                numbers = np.char.replace(np.array(products), "\N{MINUS SIGN}", "-").astype(float)
                # each number is off by at most half of its last place
                units = [10.0 ** -arrays[what][group]["places"] for what in ("kernel", "x", "out")]
                bound = (np.abs(numbers) * units[1::-1]).sum() / 2 + units[2] / 2
                bound += len(numbers) * units[0] * units[1] / 4 + 1e-6 * abs(out)
                assert numbers.prod(axis=1).sum() == pytest.approx(out, abs=bound)


@browsers
@pytest.mark.parametrize("network", MODELS)
def test_the_pointer_shows_the_kernel_of_its_pixel(
    browser: Browser, network: str, tmp_path: Path
) -> None:
    page = Page(browser, network, tmp_path)
    page.shows(0, 0, (16, 16), (4, 4))
    for number in range(len(page.found["layers"])):
        page.layer(number)
        group = number % page.found["layers"][number]["groups"]
        page.group(group)
        for pixel in (0, 0), (31, 31), (7, 20):
            browser.mouse("mouseMoved", *page.spot(*pixel))
            page.shows(number, group, pixel)
    browser.mouse("mousePressed", *page.spot(7, 20))
    browser.mouse("mouseReleased", *page.spot(7, 20))
    browser.mouse("mouseMoved", *page.spot(30, 2))
    page.shows(number, group, (30, 2), (7, 20))


@browsers
def test_keys_move_over_positions_and_pin(browser: Browser, tmp_path: Path) -> None:
    page = Page(browser, "small", tmp_path)
    browser.run("document.querySelector('.place canvas').focus()")
    browser.key("ArrowRight")
    browser.key("ArrowDown")
    page.shows(0, 0, (17, 17), (4, 4))
    browser.key("Enter")
    browser.key("ArrowLeft")
    page.shows(0, 0, (17, 16), (17, 17))
    page.layer(1)  # of half the size
    browser.key("ArrowUp")
    page.shows(1, 0, (15, 16), (17, 17))
    browser.run("document.querySelector('[type=range]').focus()")
    browser.key("ArrowRight")
    page.shows(2, 0, (15, 16), (17, 17))


@browsers
def test_a_finger_moves_the_pixel_and_the_button_pins(browser: Browser, tmp_path: Path) -> None:
    page = Page(browser, "simple", tmp_path, width=400, touch=True)
    browser.touch(page.spot(3, 5))
    page.shows(0, 0, (3, 5), (4, 4))
    browser.touch(page.spot(3, 5), page.spot(10, 9), page.spot(25, 12))
    page.shows(0, 0, (25, 12), (4, 4))
    browser.run("document.querySelector('.explorer button').click()")
    browser.touch(page.spot(0, 31))
    page.shows(0, 0, (0, 31), (25, 12))


@browsers
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [400, 1300])
def test_nothing_sticks_out(browser: Browser, width: int, dark: bool, tmp_path: Path) -> None:
    page = Page(browser, "rednet", tmp_path, width=width, dark=dark)
    for number in range(len(page.found["layers"])):
        page.layer(number)
        assert browser.run("document.documentElement.scrollWidth") <= width
        assert browser.run(
            "[...document.querySelectorAll('.explorer td')].every(cell => "
            "cell.scrollWidth <= cell.clientWidth + 1)"
        )
