"""A headless Chromium for tests, driven by chromedriver over the WebDriver protocol; the standard library alone.

No request can leave: names resolve to nothing, and whatever goes through the proxy meets a closed port.
"""

import json
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
         "--proxy-server=127.0.0.1:9", "--proxy-bypass-list=<-loopback>", "--window-size=1280,900")
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"      # the protocol's key of an element
ENTER, CONTROL = "\ue007", "\ue009"


def missing() -> str:
    """Why no browser can be driven here; empty if one can."""
    lacking = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"no {' and no '.join(lacking)} here: apt-get install chromium chromium-driver" if lacking else ""


class Browser:
    """One window."""

    def __init__(self, server: str, flags: tuple[str, ...]):
        self.server = server
        answer = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": {
            "goog:chromeOptions": {"args": list(flags), "binary": shutil.which("chromium")},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}}})
        self.path = f"/session/{answer['sessionId']}"
        self.requests: list[str] = []

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        data = None if method == "GET" else json.dumps(body or {}).encode()
        request = urllib.request.Request(self.server + path, data, {"Content-Type": "application/json"}, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{method} {path}: {json.load(error)['value']['message']}") from None

    def open(self, url: str) -> None:
        self._ask("POST", f"{self.path}/url", {"url": url})

    def back(self) -> None:
        self._ask("POST", f"{self.path}/back")

    def run(self, script: str, *given: Any) -> Any:
        """What the body of a JavaScript function returns."""
        return self._ask("POST", f"{self.path}/execute/sync", {"script": script, "args": list(given)})

    def find(self, css: str) -> str:
        """The first element that a selector names; AssertionError if there is none."""
        return self._ask("POST", f"{self.path}/element", {"using": "css selector", "value": css})[ELEMENT]

    def click(self, css: str) -> None:
        """As a mouse does it: AssertionError where something else lies on top."""
        self._ask("POST", f"{self.path}/element/{self.find(css)}/click")

    def type(self, css: str, text: str) -> None:
        self._ask("POST", f"{self.path}/element/{self.find(css)}/value", {"text": text})

    def tell(self, command: str, **given: Any) -> Any:
        """A command of the DevTools protocol."""
        return self._ask("POST", f"{self.path}/goog/cdp/execute", {"cmd": command, "params": given})

    def complaints(self) -> list[str]:
        """What the console holds since the last call, but for what is merely said."""
        return [entry["message"] for entry in self._ask("POST", f"{self.path}/se/log", {"type": "browser"})
                if entry["level"] in ("SEVERE", "WARNING")]

    def asked_for(self) -> list[str]:
        """Every address that a page has asked for since the last call."""
        entries = self._ask("POST", f"{self.path}/se/log", {"type": "performance"})
        told = [json.loads(entry["message"])["message"] for entry in entries]
        return [one["params"]["request"]["url"] for one in told if one["method"] == "Network.requestWillBeSent"]

    def close(self) -> None:
        self._ask("DELETE", self.path)


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser with a profile of its own, gone at the end; the test is skipped where there is none."""
    if why := missing():
        pytest.skip(why)
    with TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        driver = subprocess.Popen(("chromedriver", "--port=0"), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                  text=True, env={"PATH": "/usr/bin:/bin", "HOME": profile})
        try:
            port = next(match[1] for line in driver.stdout
                        if (match := re.search(r"started successfully on port (\d+)", line)))
            window = Browser(f"http://127.0.0.1:{port}", (*FLAGS, f"--user-data-dir={Path(profile) / 'profile'}"))
            try:
                yield window
            finally:
                window.close()
        finally:
            driver.terminate()
            driver.wait()
            driver.stdout.close()
