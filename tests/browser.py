"""Headless Chromium, spoken to over a pipe: no driver and no library."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PROGRAM = next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """A page in Chromium, by its DevTools protocol: JSON that ends with a zero byte."""

    def __init__(self, to: int, back: int) -> None:
        self._to, self._back = to, back
        self._rest, self._count, self._session = b"", 0, {}
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        session = self.ask("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": session["sessionId"]}
        self.faults: list[str] = []
        self.ask("Runtime.enable")

    def ask(self, method: str, **params: Any) -> Any:
        """Call a method of the protocol; its result."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params, **self._session}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("method") == "Runtime.exceptionThrown":
                self.faults.append(str(answer["params"]["exceptionDetails"]))
            if answer.get("id") == self._count:
                assert "error" not in answer, (method, answer)
                return answer["result"]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            more = os.read(self._back, 1 << 20)
            assert more, "Chromium ended"
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\0")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def open(self, path: Path, width: int = 1300, dark: bool = False, touch: bool = False) -> None:
        """Show a file, in a window of some width."""
        self.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1,
            mobile=touch,
        )  # fmt: skip
        self.ask("Emulation.setTouchEmulationEnabled", enabled=touch)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self.ask("Page.navigate", url=path.as_uri())
        self.run(
            "new Promise(done => document.readyState === 'complete' ? done(0) : onload = done)"
        )

    def run(self, script: str) -> Any:
        """The value of an expression in the page, or of its promise."""
        answer = self.ask(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def mouse(self, kind: str, x: float, y: float) -> None:
        """``kind`` is mouseMoved, mousePressed or mouseReleased."""
        button = {"mouseMoved": "none"}.get(kind, "left")
        self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, clickCount=1)

    def touch(self, *points: tuple[float, float]) -> None:
        """A finger goes down at the first point, along the others, and up."""
        for number, (x, y) in enumerate(points):
            kind = "touchMove" if number else "touchStart"
            self.ask("Input.dispatchTouchEvent", type=kind, touchPoints=[{"x": x, "y": y}])
        self.ask("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def key(self, name: str) -> None:
        text = {"text": "\r"} if name == "Enter" else {}
        code = {"Enter": 13, "Tab": 9, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39,
                "ArrowDown": 40}[name]  # fmt: skip
        for kind in "keyDown", "keyUp":
            keys = {"key": name, "windowsVirtualKeyCode": code, **text}
            self.ask("Input.dispatchKeyEvent", type=kind, **keys)

    def screenshot(self) -> bytes:
        """The whole page as PNG."""
        answer = self.ask("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(answer["data"])


@contextmanager
def chromium(folder: Path) -> Iterator[Browser]:
    """Start Chromium with its files in a folder, and end it."""
    assert PROGRAM is not None
    down, to = os.pipe()
    back, up = os.pipe()
    options = [
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--hide-scrollbars", "--remote-debugging-pipe", f"--user-data-dir={folder}",
    ]  # fmt: skip
    script = f'exec "$@" 3<&{down} 4>&{up}'
    with subprocess.Popen(
        ["bash", "-c", script, "bash", PROGRAM, *options], pass_fds=(down, up),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        os.close(down)
        os.close(up)
        try:
            browser = Browser(to, back)
            yield browser
            assert browser.faults == []
            browser._session = {}
            browser.ask("Browser.close")
        finally:
            os.close(to)
            os.close(back)
            process.wait(20)
