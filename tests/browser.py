"""A headless Chromium to look at pages with, driven by its own protocol over two pipes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-pipe",
)  # fmt: skip

LAUNCH = """
import fcntl, os, sys
read, write = (fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3])
os.dup2(read, 3)
os.dup2(write, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""Becomes Chromium, which reads the protocol from descriptor 3 and writes it to 4."""


def chromium() -> str | None:
    """The path of a Chromium, where there is one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page. `messages` collects what the page wrote to the console and every request that it made."""

    def __init__(self, read: BinaryIO, write: BinaryIO) -> None:
        self._read, self._write = read, write
        self._count, self._rest = 0, b""
        self._session: str | None = None
        self.messages: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def open(self, file: Path, width: int, scheme: str, height: int = 900) -> None:
        """Load a page in a window of that width, for a reader who prefers that colour scheme."""
        self._call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self._call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.messages.clear()
        self._call("Page.navigate", url=file.as_uri())
        self._wait("Page.loadEventFired")

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page."""
        found = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def close(self) -> None:
        """Ask it to end."""
        self._session = None
        self._send("Browser.close", {})

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = self._send(method, parameters)
        while (answer := self._next()).get("id") != number:
            pass
        assert "error" not in answer, (method, answer)
        return dict(answer["result"])

    def _send(self, method: str, parameters: dict[str, Any]) -> int:
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        self._write.write(json.dumps(message).encode() + b"\0")
        self._write.flush()
        return self._count

    def _wait(self, event: str) -> None:
        while self._next().get("method") != event:
            pass

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            more = os.read(self._read.fileno(), 1 << 16)
            assert more, "Chromium went away"
            self._rest += more
        text, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        values = message.get("params", {})
        if message.get("method") in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            self.messages.append(json.dumps(values))
        if message.get("method") == "Network.requestWillBeSent" and not values["request"]["url"].startswith("data:"):
            self.messages.append(values["request"]["url"])
        return message


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """A running browser with a profile of its own, which goes away with it."""
    program = chromium()
    assert program is not None
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, contextlib.ExitStack() as stack:
        read, write = stack.enter_context(os.fdopen(ours_in, "rb")), stack.enter_context(os.fdopen(ours_out, "wb"))
        launcher = (sys.executable, "-c", LAUNCH, str(theirs_in), str(theirs_out))
        process = subprocess.Popen(
            [*launcher, program, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        try:
            page = Browser(read, write)
            yield page
            page.close()
            process.wait(timeout=10)
        finally:
            process.kill()
            process.wait()
