"""Chromium without a window, told what to do over a pipe (the DevTools protocol): no driver, no port."""

import fcntl
import json
import os
import select
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from tests.e2e.namespaces import Namespace
from tests.e2e.polling import LIMIT, PATIENCE

_START = 60.0 * PATIENCE  # seconds
_ARGUMENTS = (
    "--headless",
    "--no-sandbox",  # as root there is none
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",  # reads commands from descriptor 3, writes to 4
)
Tree = dict[str, Any]


def _pipe() -> tuple[int, int]:
    """Both ends, away from the numbers 3 and 4."""
    ends = os.pipe()
    try:
        reading, writing = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    finally:
        for end in ends:
            os.close(end)
    return reading, writing


class Browser:
    """One page, in a namespace. What it asked for and complained of is kept."""

    def __init__(self, where: Namespace | None, folder: Path) -> None:
        theirs_in, self._out = _pipe()
        self._in, theirs_out = _pipe()
        script = f'exec chromium "$@" 3<&{theirs_in} 4>&{theirs_out} {theirs_in}<&- {theirs_out}>&-'
        inner = ["bash", "-c", script, "chromium", *_ARGUMENTS, f"--user-data-dir={folder / 'profile'}"]
        self._log = (folder / "chromium.log").open("wb")
        try:
            self._popen = subprocess.Popen(
                where.command(*inner) if where else inner,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=(theirs_in, theirs_out),
                env=os.environ | {"HOME": str(folder)},
            )
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
        self._waiting = b""
        self._numbers = 0
        self._session: str | None = None
        self.requests: list[str] = []
        self.complaints: list[str] = []
        try:
            target = self.do("Target.createTarget", limit=_START, url="about:blank")["targetId"]
            attached = self.do("Target.attachToTarget", targetId=target, flatten=True)
            self._session = attached["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.do(f"{domain}.enable")
        except BaseException:
            self.close()
            raise

    def do(self, method: str, *, limit: float = 3 * LIMIT, **parameters: object) -> Tree:
        """Send a command; return its result."""
        self._numbers += 1
        number = self._numbers
        command: Tree = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            command["sessionId"] = self._session
        os.write(self._out, json.dumps(command).encode() + b"\0")
        deadline = time.monotonic() + limit
        while True:
            said = self._hear(deadline - time.monotonic(), method)
            if said.get("id") == number:
                assert "error" not in said, f"{method}: {said['error']}"
                result: Tree = said["result"]
                return result
            self._note(said)

    def open(self, url: str) -> None:
        """Load a page."""
        self.do("Page.navigate", url=url)

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page, as JSON knows it."""
        answer = self.do("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def resize(self, width: int, height: int, *, scheme: str = "light", scale: float = 1.0) -> None:
        """Be a screen of this size, in this colour scheme."""
        self.do(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )
        self.do("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def click(self, selector: str) -> None:
        """Click into the middle of an element, as a mouse does."""
        x, y = self.ask(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            " e.scrollIntoView({block: 'center'}); const r = e.getBoundingClientRect();"
            " return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.do("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def screenshot(self) -> bytes:
        """What is to be seen, as base64 of a PNG."""
        data: str = self.do("Page.captureScreenshot", format="png")["data"]
        return data.encode()

    def close(self) -> None:
        """End the browser, and wait for it."""
        self._session = None
        with suppress(AssertionError, OSError):
            self.do("Browser.close")
        try:
            self._popen.wait(LIMIT)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        os.close(self._in)
        os.close(self._out)
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _hear(self, limit: float, method: str) -> Tree:
        end = time.monotonic() + limit
        while b"\0" not in self._waiting:
            ready, _, _ = select.select([self._in], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"chromium does not answer {method}"
            data = os.read(self._in, 1 << 20)
            assert data, "chromium has ended"
            self._waiting += data
        first, _, self._waiting = self._waiting.partition(b"\0")
        said: Tree = json.loads(first)
        return said

    def _note(self, said: Tree) -> None:
        """What the page asks for, and what goes wrong in it."""
        method, parameters = said.get("method"), said.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(parameters["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning", "assert"):
            self.complaints.append(json.dumps(parameters["args"]))
        elif method == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
            self.complaints.append(json.dumps(parameters["entry"]))
