"""A page opened in headless Chromium, for the tests of the report and the review widget."""

import re
import shutil
import subprocess
import warnings
from pathlib import Path

import pytest


def needs_playwright(what: str) -> None:
    """Skip the test, aloud, where playwright or Chromium is not installed; `what` says what was not tried then."""
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        warnings.warn(f"playwright is not installed: {what} in a browser", stacklevel=2)
        pytest.skip("playwright is not installed: pip install auditkit[browser]")
    if not chromium():
        warnings.warn(f"chromium is not installed: {what} in a browser", stacklevel=2)
        pytest.skip("chromium is not installed: apt-get install chromium")


def chromium() -> str | None:
    """The path of a Chromium of this machine."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def browse(page: Path, scratch: Path) -> tuple[str, list[str], str]:
    """Open a page in headless Chromium: its DOM, its console messages, the log of all it asked the network."""
    path = chromium()
    if not path:
        warnings.warn("chromium is not installed: the report was NOT opened in a browser", stacklevel=2)
        pytest.skip("chromium is not installed: apt-get install chromium")
    quiet = "disable-gpu disable-quic no-first-run disable-background-networking disable-component-update disable-sync"
    flags = ["--headless", "--no-sandbox", *(f"--{flag}" for flag in quiet.split()), "--enable-logging=stderr", "--v=0"]
    here = [f"--user-data-dir={scratch / 'profile'}", f"--log-net-log={scratch / 'net.json'}"]
    done = subprocess.run(
        [path, *flags, *here, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=180
    )
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return done.stdout, console, (scratch / "net.json").read_text()


def requests(network: str) -> list[str]:
    """What the page itself asked for; Chromium's own errands run under other keys."""
    return re.findall(r'"network_isolation_key":"file://.*?"url":"([^"]+)"', network)
