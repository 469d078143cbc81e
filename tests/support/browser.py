"""A real browser for pages, and HTTP without one for what serves them."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit

import pytest

FLAGS = (
    "--headless", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--window-size=1400,1000",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
)  # fmt: skip


def start(profile: Path) -> Any:
    """A browser that reaches this machine alone; the test is skipped where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium drives the browser")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no chromium and chromedriver here (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    # A browser does not sandbox what root starts.
    for flag in (*FLAGS, f"--user-data-dir={profile}", *["--no-sandbox"] * (os.geteuid() == 0)):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))


def wait(condition: Callable[[], Any], seconds: float = 120) -> Any:
    """What a condition gives when it is no longer false."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "the page did not come to it"
        time.sleep(0.05)
    return found


class Reply(NamedTuple):
    """An answer over HTTP."""

    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text, parse_constant=pytest.fail)


def ask(address: str, route: str = "", body: Any = None, headers: dict[str, str] | None = None, **values: str) -> Reply:
    """A request to a server of `convert ui`, by its address: POST where there is a body. `headers` replace the usual
    ones, which are those of its own page."""
    where = urlsplit(address)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=60)
    usual = {"Host": where.netloc}
    if body is not None:
        usual |= {"Origin": f"http://{where.netloc}", "Content-Type": "application/json"}
    content = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    path = f"{where.path}{route}" + (f"?{urlencode(values)}" if values else "")
    try:
        connection.request("GET" if body is None else "POST", path, content, usual | (headers or {}))
        answer = connection.getresponse()
        return Reply(answer.status, dict(answer.getheaders()), answer.read().decode())
    finally:
        connection.close()
