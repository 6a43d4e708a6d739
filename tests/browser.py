"""A headless Chromium at the other end of a pipe (the DevTools protocol, no extra package).

`chromium()` finds it, or installs Debian's as root, once; NO_CHROMIUM_INSTALL=1 forbids that. The
browser has no network: every name resolves to nothing, and each request that a page tries is told.
"""

import base64
import functools
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.waiting import HANG_S

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
INSTALL = (
    "apt-get -qq -o DPkg::Lock::Timeout=60 update;"
    " exec apt-get -y -qq -o DPkg::Lock::Timeout=60 --no-install-recommends install chromium"
)
INSTALL_SECONDS = 240
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--disable-default-apps", "--disable-extensions", "--mute-audio"),
    *(
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        "--remote-debugging-pipe",
        "--hide-scrollbars",
    ),
)
# The protocol speaks on descriptors 3 and 4 of the browser.
LAUNCH = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
for number, end in zip((3, 4), ends):
    os.dup2(end, number)
os.execv(sys.argv[3], sys.argv[3:])
"""


class NoBrowser(Exception):
    """There is none, and why."""


@functools.cache
def chromium() -> str:
    """Path of the browser. Raises NoBrowser with the reason where there is none."""

    def found() -> str | None:
        return next((path for name in NAMES if (path := shutil.which(name))), None)

    if path := found():
        return path
    if os.environ.get("NO_CHROMIUM_INSTALL"):
        raise NoBrowser("no Chromium, and NO_CHROMIUM_INSTALL is set")
    if os.getuid() != 0 or not shutil.which("apt-get"):
        raise NoBrowser("no Chromium, and it can only be installed as root where there is apt-get")
    try:
        done = subprocess.run(
            ["sh", "-c", INSTALL],
            env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
            capture_output=True,
            text=True,
            timeout=INSTALL_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise NoBrowser(f"installing Chromium took over {INSTALL_SECONDS} s") from None
    if path := found():
        return path
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    raise NoBrowser(f"apt-get could not install Chromium: {last}")


class Browser:
    """One tab. `console` and `requests` collect what the page says and asks for."""

    def __init__(self, process: subprocess.Popen[bytes], write: int, read: int) -> None:
        self.process, self._write, self._read = process, write, read
        self._buffer, self._last, self._session = b"", 0, ""
        self.console: list[str] = []
        self.requests: list[str] = []
        self._loaded: set[str] = set()
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.call("Page.setLifecycleEventsEnabled", enabled=True)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._last:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def _receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + HANG_S
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], deadline - time.monotonic())
            assert ready, "the browser does not answer"
            chunk = os.read(self._read, 1 << 20)
            if not chunk:
                raise EOFError("the browser is gone")
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(line)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, method: str, params: dict[str, Any]) -> None:
        if method == "Page.lifecycleEvent" and params["name"] == "load":
            self._loaded.add(params["loaderId"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Log.entryAdded":
            self.console.append(params["entry"]["text"])
        elif method == "Runtime.consoleAPICalled":
            self.console.append(str(params["args"]))
        elif method == "Runtime.exceptionThrown":
            self.console.append(params["exceptionDetails"]["text"])
        elif method == "Page.javascriptDialogOpening":
            self.console.append(f"dialog: {params['message']}")

    def open(self, page: Path | str, *, width: int = 1280, dark: bool = False) -> None:
        """Load the file, or the page at the address, and wait for it; `console` and `requests`
        begin anew."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.console, self.requests = [], []
        to = self.call("Page.navigate", url=page if isinstance(page, str) else page.as_uri())
        assert "errorText" not in to, to
        while to["loaderId"] not in self._loaded:  # the last page's load may be told only now
            self._receive()

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        code = {"Tab": 9, "Enter": 13}[key]
        text = {"text": "\r"} if key == "Enter" else {}  # without it no button is pressed
        for kind in ("keyDown" if text else "rawKeyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=code,
                **text,
            )

    def screenshot(self, file: Path) -> bytes:
        """The whole page as PNG."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        image = base64.b64decode(data)
        file.write_bytes(image)
        return image


@contextmanager
def browser() -> Iterator[Browser]:
    """A running browser; raises NoBrowser where there is none."""
    path = chromium()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        (their_end, write), (read, their_write) = os.pipe(), os.pipe()
        process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, str(their_end), str(their_write), path]
            + [*FLAGS, f"--user-data-dir={profile}"],
            pass_fds=(their_end, their_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(their_end)
        os.close(their_write)
        try:
            try:
                tab = Browser(process, write, read)
            except (EOFError, BrokenPipeError):
                raise NoBrowser(f"{path} is there but does not start") from None
            yield tab
        finally:
            process.terminate()
            process.wait(HANG_S)
            os.close(write)
            os.close(read)
