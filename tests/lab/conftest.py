"""A progress file of its own for every test, and what the lab would have shown."""

import pytest

from prunelab.lab.learn import exercise, progress, scoreboard
from prunelab.lab.show import display


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """An empty folder for the progress file, and no memory of other tests."""
    monkeypatch.setenv("PRUNELAB_HOME", str(tmp_path / "home"))
    for memory in (progress._stores, scoreboard._here, exercise._levels):
        memory.clear()
    return tmp_path / "home"


@pytest.fixture
def shown(monkeypatch):
    """Every bundle that was displayed: a list of (data, metadata)."""
    bundles = []
    monkeypatch.setattr(display, "emit", lambda *bundle, **how: "update" in how or bundles.append(bundle))
    return bundles
