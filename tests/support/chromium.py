"""A headless Chromium without a network, driven by real input through its DevTools protocol, over a pipe."""

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
"""Start a browser without a window, an account, or any name of a server that it could find."""
KEYS = {"ArrowUp": 38, "ArrowDown": 40, "ArrowLeft": 37, "ArrowRight": 39, "Escape": 27, "Enter": 13, "Tab": 9}
SHIFT = 8


class Page:
    """One page: what it answers to scripts and to input, and every problem that it had.

    Without a server it has no network, and one that is asked for is a problem; else the server alone may be asked.
    """

    def __init__(self, reading: int, writing: int, server: str | None) -> None:
        self._own = ("data:", "file:", "about:") if server is None else ("data:", "blob:", "about:", server)
        self._read, self._write, self._number, self._rest = reading, writing, 0, b""
        self.problems: list[str] = []
        self._session: str | None = None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        limits = dict.fromkeys(("latency", "downloadThroughput", "uploadThroughput"), 0)
        if server is None:
            self.send("Network.emulateNetworkConditions", offline=True, **limits)

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            self._note(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, place: Path | str, *, width: int = 1400, height: int = 900, is_dark: bool = False) -> None:
        """Open a file, or an address at the server."""
        mode = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[mode])
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.send("Page.navigate", url=place if isinstance(place, str) else place.as_uri())
        while (message := self._next())["method"] != "Page.loadEventFired":
            self._note(message)
        self.settle()

    def script(self, expression: str) -> Any:
        """The value of an expression, awaited if it is a promise."""
        answer = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def settle(self) -> None:
        """Wait until what was asked for is drawn."""
        self.script("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def middle_of(self, selector: str, at: tuple[float, float] = (0.5, 0.5)) -> tuple[float, float]:
        """(x, y) of a place in an element, which is scrolled into view; `at` is (row, col) in fractions of it."""
        chosen = f"document.querySelector({json.dumps(selector)})"
        box = self.script(
            f"{chosen}.scrollIntoView({{block: 'nearest'}}), "
            f"(({{left, top, width, height}}) => [left, top, width, height])({chosen}.getBoundingClientRect())"
        )
        return box[0] + at[1] * box[2], box[1] + at[0] * box[3]

    def move(self, selector: str, at: tuple[float, float] = (0.5, 0.5), *, held: bool = False) -> None:
        x, y = self.middle_of(selector, at)
        buttons = {"button": "left", "buttons": 1} if held else {}
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y, **buttons)
        self.settle()

    def press(self, selector: str, at: tuple[float, float] = (0.5, 0.5), *, is_down: bool) -> None:
        x, y = self.middle_of(selector, at)
        kind = "mousePressed" if is_down else "mouseReleased"
        self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1, buttons=int(is_down))
        self.settle()

    def click(self, selector: str, at: tuple[float, float] = (0.5, 0.5)) -> None:
        self.move(selector, at)
        self.press(selector, at, is_down=True)
        self.press(selector, at, is_down=False)

    def key(self, name: str, *, with_shift: bool = False) -> None:
        own = {"key": name, "windowsVirtualKeyCode": KEYS.get(name, ord(name[0])), "modifiers": SHIFT * with_shift}
        if len(name) == 1:
            own["text"] = name
        self.send("Input.dispatchKeyEvent", type="keyDown", **own)
        self.send("Input.dispatchKeyEvent", type="keyUp", **own)
        self.settle()

    def screenshot(self, path: Path, *, is_whole: bool = False) -> None:
        picture = self.send("Page.captureScreenshot", captureBeyondViewport=is_whole)
        path.write_bytes(base64.b64decode(picture["data"]))

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = os.read(self._read, 1 << 20)
            assert part, "the browser went away"
            self._rest += part
        message, self._rest = self._rest.split(b"\0", 1)
        return json.loads(message)

    def _note(self, message: dict[str, Any]) -> None:
        params = message.get("params", {})
        match message.get("method"):
            case "Runtime.exceptionThrown":
                self.problems.append(params["exceptionDetails"].get("exception", {}).get("description", "an exception"))
            case "Runtime.consoleAPICalled":
                self.problems.append(f"console.{params['type']}: {params['args']}")
            case "Log.entryAdded":
                self.problems.append(params["entry"]["text"])
            case "Network.requestWillBeSent" if not params["request"]["url"].startswith(self._own):
                self.problems.append(f"asked for {params['request']['url']}")


def find_chromium() -> str:
    """Return the browser's command; the test is skipped where there is none."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("CHROMIUM IS MISSING: the page was NOT tried in a browser; install Debian's package `chromium`")
    return program


@contextmanager
def chromium(folder: Path, server: str | None = None) -> Iterator[Page]:
    """A page of a new browser; the test is skipped where there is no Chromium.

    Args:
        folder: The browser's profile lies below it.
        server: Beginning of the addresses that may be asked for, as http://127.0.0.1:3000; None: no page but files.
    """
    program = find_chromium()
    (from_us, to_browser), (from_browser, to_us) = os.pipe(), os.pipe()
    # --remote-debugging-pipe reads from descriptor 3 and writes to 4.
    placed = f'exec "$0" "$@" 3<&{from_us} 4>&{to_us}'
    process = subprocess.Popen(
        ["bash", "-c", placed, program, *FLAGS, "--remote-debugging-pipe", f"--user-data-dir={folder / 'profile'}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(from_us, to_us),
    )
    os.close(from_us)
    os.close(to_us)
    try:
        yield Page(from_browser, to_browser, server)
    finally:
        os.close(to_browser)
        os.close(from_browser)
        process.terminate()
        process.wait(timeout=30)
