"""One JupyterLab and one Chromium for all browser tests, on copies of the notebooks, with a home of their own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from prunelab.lab.workshop import course

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
PATIENCE = 90  # seconds for JupyterLab to start


def chromium() -> str | None:
    """The system's Chromium: PRUNELAB_CHROMIUM, or whichever is found."""
    given = os.environ.get("PRUNELAB_CHROMIUM")
    return given or next(filter(None, map(shutil.which, CHROMIUM)), None)


@pytest.fixture(scope="package")  # not "session": Playwright's loop must have ended before other tests run kernels
def browser() -> Iterator[object]:
    """A headless Chromium; without one, or without Playwright, the tests skip and say so."""
    place = chromium()
    if place is None:
        pytest.skip("no Chromium here: install it (on Debian `apt-get install chromium`), or set PRUNELAB_CHROMIUM")
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="Playwright is not installed: pip install playwright"
    )
    with playwright.sync_playwright() as engine:
        started = engine.chromium.launch(executable_path=place, args=FLAGS)
        yield started
        started.close()


@pytest.fixture(scope="package")
def lab_url(browser: object) -> Iterator[str]:
    """The address of a JupyterLab that serves copies of the notebooks; a learner's settings, a home of its own."""
    with tempfile.TemporaryDirectory(prefix="prunelab-browser-", ignore_cleanup_errors=True) as name:
        root, port = Path(name), _free_port()
        course.copy(root / "notebooks")
        places = {
            key: str(root / key.lower()) for key in ("PRUNELAB_HOME", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR")
        }
        settings = {
            "JUPYTERLAB_SETTINGS_DIR": str(root / "settings"),
            "JUPYTERLAB_WORKSPACES_DIR": str(root / "spaces"),
        }
        command = [
            sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}",
            f"--ServerApp.root_dir={root / 'notebooks'}", "--IdentityProvider.token=",
            "--ServerApp.port_retries=0", "--LabApp.expose_app_in_browser=True",
            "--JupyterNotebookApp.expose_app_in_browser=True",  # Notebook 7, where it is installed
        ]  # fmt: skip
        _no_news(root / "settings")
        with (root / "jupyterlab.log").open("w") as log:
            server = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | places | settings)
            try:
                _wait(f"http://127.0.0.1:{port}/api/status", server, root / "jupyterlab.log")
                yield f"http://127.0.0.1:{port}"
            finally:
                server.terminate()
                server.wait(30)


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots are kept: PRUNELAB_SCREENSHOTS, or a temporary folder."""
    given = os.environ.get("PRUNELAB_SCREENSHOTS")
    folder = Path(given) if given else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _no_news(settings: Path) -> None:
    """JupyterLab would ask, over the notebook, whether to look for news and updates on the network."""
    place = settings / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    place.parent.mkdir(parents=True)
    place.write_text('{"fetchNews": "false", "checkForUpdates": false}')


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait(address: str, server: subprocess.Popen, log: Path) -> None:
    """Until the server answers."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.3)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")
