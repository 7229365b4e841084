"""Headless Chromium for tests, driven over the DevTools protocol through a pipe: nothing but the standard library."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
    "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip
PATIENCE = 60.0


def find_chromium() -> str | None:
    """The first Chromium on the path, or None."""
    return next((path for name in ("chromium", "chromium-browser") if (path := shutil.which(name))), None)


class Browser:
    """One browser process; `open` gives a page in it."""

    def __init__(self, reader: int, writer: int) -> None:
        self._reader, self._writer = reader, writer
        self._rest, self._count = b"", 0
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self._writer, json.dumps(message).encode() + b"\0")
        number = self._count
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self.events.append(answer)

    def wait(self, session: str, method: str) -> None:
        """Return once an event of this name has come to a session."""
        while not any(e.get("method") == method and e.get("sessionId") == session for e in self.events):
            self.events.append(self._receive())

    def _receive(self) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE
        while b"\0" not in self._rest:
            if not select.select([self._reader], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError(f"Chromium said nothing for {PATIENCE:.0f} s")
            piece = os.read(self._reader, 1 << 20)
            if not piece:
                raise ConnectionError("Chromium closed the pipe")
            self._rest += piece
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def open(
        self, path: Path, *, width: int = 1280, height: int = 900, dark: bool = False, phone: bool = False
    ) -> Page:
        """Load a file in a new page of the given size and colour scheme."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable", session)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", session, media="screen", features=[scheme])
        self.call(
            "Emulation.setDeviceMetricsOverride", session, width=width, height=height, deviceScaleFactor=1, mobile=phone
        )
        self.call("Page.navigate", session, url=path.resolve().as_uri())
        self.wait(session, "Page.loadEventFired")
        return Page(self, session)


class Page:
    """A loaded page."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **parameters)

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def emulate(self, media: str, *, dark: bool = False) -> None:
        """Show the page as on another medium."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", media=media, features=[scheme])

    @property
    def complaints(self) -> list[str]:
        """Console errors, warnings and uncaught exceptions so far."""
        found: list[str] = []
        for event in self._own():
            parameters = event["params"]
            if event["method"] == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning", "assert"):
                found.append(json.dumps(parameters["args"]))
            elif event["method"] == "Runtime.exceptionThrown":
                found.append(json.dumps(parameters["exceptionDetails"]))
            elif event["method"] == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
                found.append(parameters["entry"]["text"])
        return found

    @property
    def requests(self) -> list[str]:
        """Every address the page asked for, its own and those inside the file left out."""
        sent = [e["params"]["request"]["url"] for e in self._own() if e["method"] == "Network.requestWillBeSent"]
        return [url for url in sent[1:] if not url.startswith("data:")]

    def _own(self) -> list[dict[str, Any]]:
        self.evaluate("new Promise(done => setTimeout(done, 50))")  # what is still on its way
        return [event for event in self._browser.events if event.get("sessionId") == self._session]

    def picture(self, *, whole: bool = True) -> bytes:
        """A PNG of the page."""
        answer = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        return base64.b64decode(answer["data"])

    def print(self) -> bytes:
        """A PDF of the page on A4."""
        answer = self._call(
            "Page.printToPDF", preferCSSPageSize=False, paperWidth=8.27, paperHeight=11.69, printBackground=False
        )
        return base64.b64decode(answer["data"])


@contextlib.contextmanager
def start_browser(program: str) -> Iterator[Browser]:
    """Run Chromium with a new, empty profile, and end it."""
    to_child, to_browser = os.pipe()
    from_browser, from_child = os.pipe()

    def place_pipes() -> None:
        # The protocol's pipe is file 3 (to the browser) and file 4 (from it). Copies first: they may lie at 3 and 4.
        read, write = os.dup(to_child), os.dup(from_child)
        if read == 4:
            read = os.dup(read)
        os.dup2(write, 4)
        os.dup2(read, 3)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            close_fds=False, preexec_fn=place_pipes,
        )  # fmt: skip
        os.close(to_child)
        os.close(from_child)
        browser = Browser(from_browser, to_browser)
        try:
            yield browser
            browser.call("Browser.close")
            process.wait(PATIENCE)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            os.close(from_browser)
            os.close(to_browser)
