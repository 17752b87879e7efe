"""A headless Chromium for tests, driven through its DevTools protocol over a pair of pipes: no client library, no port.

Debian's `chromium` (see .ci/debian-packages). It reaches this machine only: every other name does not resolve.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from tests.e2e.programs import PATIENCE_S

PROGRAM = shutil.which("chromium")
FLAGS = (
    "--headless",
    "--remote-debugging-pipe",
    "--no-sandbox",  # as root there is no other way
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--no-first-run",
    "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
# The protocol's pipes are file descriptors 3 and 4; first out of the way, for they may be among those given.
_START = """
import fcntl, os, sys
pipes = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3]]
for place, pipe in zip((3, 4), pipes):
    os.dup2(pipe, place)
    os.close(pipe)
os.execv(sys.argv[3], sys.argv[3:])
"""


class BrowserError(AssertionError):
    """The browser refused a command, or a script in the page failed."""


class Browser:
    """One running browser; its messages are read by a thread, its commands wait for their answers."""

    def __init__(self, profile: Path) -> None:
        """Start.

        Args:
            profile: an empty folder of its own.
        """
        assert PROGRAM is not None
        to_browser, self._write_fd = os.pipe()
        self._read_fd, from_browser = os.pipe()
        pipes = [str(to_browser), str(from_browser)]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, *pipes, PROGRAM, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(to_browser, from_browser),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._changed = threading.Condition()
        self._answers: dict[int, dict[str, Any]] = {}
        self._events: list[dict[str, Any]] = []
        self._number = 0
        self._has_ended = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._write_fd)
        self._thread.join()
        os.close(self._read_fd)

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        with self._changed:
            self._number += 1
            number = self._number
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self._write_fd, json.dumps(message).encode() + b"\0")
        with self._changed:
            self._changed.wait_for(lambda: number in self._answers or self._has_ended, PATIENCE_S)
            answer = self._answers.pop(number, None)
        if answer is None or "error" in answer:
            raise BrowserError(f"{method}: {answer and answer['error']}")
        result: dict[str, Any] = answer["result"]
        return result

    def events(self, session: str, *methods: str) -> list[dict[str, Any]]:
        """Parameters of the events of a tab so far."""
        with self._changed:
            return [
                event["params"]
                for event in self._events
                if event.get("sessionId") == session and event["method"] in methods
            ]

    @contextmanager
    def tab(self, url: str, **look: Any) -> Iterator[Tab]:
        """A tab with a page in it.

        Args:
            look: as for `Tab.look`.
        """
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        tab = Tab(self, session)
        for domain in ("Page", "Runtime", "Network", "Log"):
            tab.call(f"{domain}.enable")
        tab.look(**look)
        tab.call("Page.navigate", url=url)
        tab.wait_for("document.readyState === 'complete'")
        try:
            yield tab
        finally:
            self.call("Target.closeTarget", targetId=target)

    def _read(self) -> None:
        rest = b""
        while piece := os.read(self._read_fd, 1 << 20):
            *messages, rest = (rest + piece).split(b"\0")
            with self._changed:
                for message in map(json.loads, messages):
                    if "id" in message:
                        self._answers[message["id"]] = message
                    else:
                        self._events.append(message)
                self._changed.notify_all()
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()


class Tab:
    """One tab."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command to the tab."""
        return self._browser.call(method, self._session, **parameters)

    def look(self, width: int = 1280, height: int = 800, *, dark: bool = False, phone: bool = False) -> None:
        """Set the window and what the person wishes to see."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def evaluate(self, expression: str) -> Any:
        """Value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise BrowserError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait_for(self, expression: str, is_met: Callable[[Any], bool] = bool) -> Any:
        """Wait until an expression's value satisfies; return it."""
        limit_s = time.monotonic() + PATIENCE_S
        pause = threading.Event()
        while not is_met(value := self.evaluate(expression)):
            if time.monotonic() > limit_s:
                text = self.evaluate("document.body.innerText")
                raise AssertionError(f"the page did not come to {expression}: {value!r}\n{text}\n{self.complaints()}")
            pause.wait(0.1)
        return value

    def text(self, selector: str) -> str:
        """Text of the first element that fits, as it is seen."""
        found = self.evaluate(f"(document.querySelector({json.dumps(selector)}) || {{}}).innerText ?? null")
        assert found is not None, f"no {selector}"
        return str(found)

    def press(self, key: str, code: int) -> None:
        """Press and release a key."""
        for kind in ("rawKeyDown", "char", "keyUp"):
            text = {"text": "\r"} if key == "Enter" and kind == "char" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)

    def complaints(self) -> list[str]:
        """Errors and warnings in the console, scripts that failed, and violations of the page's policy."""
        logged = [entry["entry"]["text"] for entry in self._browser.events(self._session, "Log.entryAdded")]
        thrown = [str(entry) for entry in self._browser.events(self._session, "Runtime.exceptionThrown")]
        said = [str(entry) for entry in self._browser.events(self._session, "Runtime.consoleAPICalled")]
        return logged + thrown + said

    def requests(self) -> list[str]:
        """Addresses that were asked for."""
        return [entry["request"]["url"] for entry in self._browser.events(self._session, "Network.requestWillBeSent")]

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """Write a PNG of what is seen, or of the whole page."""
        answer = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(answer["data"]))
