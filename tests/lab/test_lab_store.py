import json
import multiprocessing
import os
import warnings

import pytest

from prunelab import lab
from prunelab.lab.learn import progress


def test_what_is_recorded_is_read_again(home):
    progress.current().record("exercises", "01-1", {"solved": True})
    progress._stores.clear()
    assert progress.current().read()["exercises"] == {"01-1": {"solved": True}}
    assert json.loads((home / "progress.json").read_text())["schema"] == progress.SCHEMA
    assert not list(home.glob("*.tmp"))


@pytest.mark.parametrize(
    "text", ["{broken", "[]", '"x"', "{}", '{"schema": 0}', '{"schema": 1, "exercises": 3}', "\x00", b"\xff\xfe\xfa"]
)
def test_a_corrupt_file_is_kept_aside_and_the_course_goes_on(home, text):
    home.mkdir()
    raw = text if isinstance(text, bytes) else text.encode()
    (home / "progress.json").write_bytes(raw)
    with pytest.warns(UserWarning, match="could not be read") as caught:
        progress.current().record("predictions", "00-loss", {"guess": 1})
    (kept,) = home.glob("progress.*.corrupt.json")
    assert kept.read_bytes() == raw
    assert str(kept) in str(caught[0].message)
    assert progress.current().read()["predictions"] == {"00-loss": {"guess": 1}}


def test_a_newer_file_is_left_alone(home):
    home.mkdir()
    newer = json.dumps({"schema": progress.SCHEMA + 1, "exercises": {"x": 1}})
    (home / "progress.json").write_text(newer)
    with pytest.warns(UserWarning, match="newer prunelab"):
        progress.current().record("exercises", "01-1", {"solved": True})
    assert (home / "progress.json").read_text() == newer
    assert progress.current().read()["exercises"] == {"01-1": {"solved": True}}


def test_an_unwritable_place_is_said_once_and_memory_serves(tmp_path, monkeypatch):
    blocked = tmp_path / "a file"
    blocked.write_text("")
    monkeypatch.setenv("PRUNELAB_HOME", str(blocked / "below"))
    with pytest.warns(UserWarning, match="PRUNELAB_HOME"):
        progress.current().record("exercises", "01-1", {"solved": True})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        progress.current().record("exercises", "01-2", {"solved": False})
        assert sorted(progress.current().read()["exercises"]) == ["01-1", "01-2"]


def test_an_unreadable_file_is_said_and_left(home):
    (home / "progress.json").mkdir(parents=True)
    with pytest.warns(UserWarning, match="can't be kept"):
        assert progress.current().read()["exercises"] == {}
    assert (home / "progress.json").is_dir()


def test_a_write_that_fails_leaves_the_old_file_whole(home, monkeypatch):
    progress.current().record("exercises", "01-1", {"solved": True})
    before = (home / "progress.json").read_bytes()

    def full(*_args):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.warns(UserWarning, match="no space left"):
        progress.current().record("exercises", "01-2", {"solved": True})
    assert (home / "progress.json").read_bytes() == before
    assert not list(home.glob("*.tmp"))
    assert sorted(progress.current().read()["exercises"]) == ["01-1", "01-2"], "what was solved before is still known"


def test_a_lock_that_is_never_given_back_does_not_stop_the_course(home, monkeypatch):
    from filelock import FileLock

    home.mkdir()
    monkeypatch.setattr(progress, "LOCK_SECONDS", 0.05)
    with FileLock(f"{home / 'progress.json'}.lock"), pytest.warns(UserWarning, match="can't be kept"):
        progress.current().record("exercises", "01-1", {"solved": True})
    assert "01-1" in progress.current().read()["exercises"]


def _write_many(folder, who):
    from pathlib import Path

    mine = progress.Store(Path(folder))
    for n in range(15):
        mine.record("exercises", f"{who}-{n}", {"solved": True})


def test_two_kernels_lose_nothing_of_each_other(home):
    context = multiprocessing.get_context("fork")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 warns of fork beside threads; the children only write files
        kernels = [context.Process(target=_write_many, args=(str(home), who)) for who in "ab"]
        for kernel in kernels:
            kernel.start()
    for kernel in kernels:
        kernel.join()
    assert len(progress.current().read()["exercises"]) == 30


def test_reset_asks_first_and_keeps_a_backup(home, capsys):
    progress.current().record("exercises", "01-1", {"solved": True})
    lab.reset()
    assert "confirm=True" in capsys.readouterr().out
    assert progress.current().read()["exercises"]
    lab.reset(confirm=True)
    assert progress.current().read()["exercises"] == {}
    (kept,) = home.glob("progress.*.backup.json")
    assert json.loads(kept.read_text())["exercises"] == {"01-1": {"solved": True}}
    lab.reset(confirm=True)  # nothing there: nothing happens


def test_progress_shows_the_place_in_the_live_view_only(home, shown, monkeypatch):
    views = []
    monkeypatch.setattr(progress.display, "panel_html", lambda html="": views.append(html))
    progress.current().record("exercises", "01-1", {"solved": True})
    lab.progress()
    ((data, _),) = shown
    assert str(home) in views[0]
    assert "01-1" in views[0]
    assert not any(str(home) in text or "01-1" in text for text in data.values())
