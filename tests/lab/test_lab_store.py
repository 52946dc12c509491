import json
import multiprocessing
import os
import re
import warnings

import pytest

from prunelab import lab
from prunelab.lab.learn import exercise, progress
from prunelab.lab.show import display


def test_what_is_recorded_is_read_again(home):
    progress.current().record("exercises", "01-1", {"solved": True})
    progress._stores.clear()
    assert progress.current().read()["exercises"] == {"01-1": {"solved": True}}
    assert json.loads((home / "progress.json").read_text())["schema"] == progress.SCHEMA
    assert not list(home.glob("*.tmp"))


def test_a_first_edition_file_is_taken_over_once_by_the_names_of_its_lessons(home):
    home.mkdir()
    first = {"schema": 1, "predictions": {"03-scope": {"guess": 1}}, "exercises": {"09-exam": {"solved": True}},
             "scoreboard": {"07 half of the heads": {"accuracy": 0.9}}}  # fmt: skip
    (home / "progress.json").write_text(json.dumps(first))
    taken = progress.current().read()
    assert taken["predictions"] == {"04-scope": {"guess": 1}}
    assert taken["exercises"] == {"16-exam": {"solved": True}}
    assert taken["scoreboard"] == {"12 half of the heads": {"accuracy": 0.9}}
    progress.current().record("exercises", "04-1", {"solved": True})
    written = json.loads((home / "progress.json").read_text())
    assert written["schema"] == progress.SCHEMA
    assert written["exercises"] == {"prune_yours-exam": {"solved": True}, "equal_shares-1": {"solved": True}}
    assert json.loads((home / "progress.first-edition.json").read_text()) == first
    progress._stores.clear()
    assert sorted(progress.current().read()["exercises"]) == ["04-1", "16-exam"]


def test_entries_of_a_lesson_that_is_not_known_here_are_kept(home):
    home.mkdir()
    (home / "progress.json").write_text(json.dumps({"schema": 2, "exercises": {"someday-1": {"solved": True}}}))
    progress.current().record("exercises", "00-1", {"solved": True})
    assert set(json.loads((home / "progress.json").read_text())["exercises"]) == {"someday-1", "start_here-1"}


def test_the_lessons_names_are_those_of_the_notebooks():
    from prunelab.lab.workshop import course

    stems = [path.stem.partition("_") for path in course.notebooks()]
    assert {number: name for number, _, name in stems}.items() <= progress.LESSONS.items()


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "{broken",
        "[]",
        '"x"',
        "{}",
        '{"schema": 0}',
        '{"schema": 1, "exercises": 3}',
        "\x00",
        b"\xff\xfe\xfa",
    ],
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
    progress.current().record("exercises", "01-2", {"solved": True})  # the lock is free: what waited is written too
    progress._stores.clear()
    assert sorted(progress.current().read()["exercises"]) == ["01-1", "01-2"]


KERNEL_WRITES = 15


def _write_many(folder, who):
    from pathlib import Path

    mine = progress.Store(Path(folder))
    for n in range(KERNEL_WRITES):
        mine.record("exercises", f"{who}-{n}", {"solved": True})
        mine.update("exercises", "01-1", lambda old: (old or 0) + 1)


def test_two_kernels_lose_nothing_of_each_other(home):
    context = multiprocessing.get_context("fork")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 warns of fork beside threads; the children only write files
        kernels = [context.Process(target=_write_many, args=(str(home), who)) for who in "ab"]
        for kernel in kernels:
            kernel.start()
    for kernel in kernels:
        kernel.join()
    kept = progress.current().read()["exercises"]
    assert len(kept) == 2 * KERNEL_WRITES + 1
    assert kept["01-1"] == 2 * KERNEL_WRITES, "each kernel counted on from what the other had written"


@pytest.mark.parametrize("tries", ["null", '"x"', "NaN", "Infinity", "-1", "true", "9223372036854775807"])
def test_a_damaged_count_of_tries_is_none(home, tries):
    home.mkdir()
    text = f'{{"schema": 2, "exercises": {{"start_here-1": {{"solved": "x", "tries": {tries}}}}}}}'
    (home / "progress.json").write_text(text)
    assert exercise.tries("00-1") == 0
    assert progress.current().solved() == set()
    lab.check("00-1", 5)
    assert progress.current().read()["exercises"] == {"00-1": {"solved": False, "tries": 1}}
    assert not progress.current().pending


@pytest.mark.parametrize("bad", [lambda _: 1 / 0, lambda _: {"x": "\ud800"}, lambda _: 1 << 63, lambda _: object()])
def test_a_change_that_cannot_be_made_is_said_and_takes_no_other_along(home, monkeypatch, bad):
    from filelock import FileLock

    home.mkdir()
    monkeypatch.setattr(progress, "LOCK_SECONDS", 0.05)
    mine = progress.current()
    with FileLock(f"{mine.path}.lock"), pytest.warns(UserWarning, match="can't be kept"):
        mine.record("exercises", "01-1", {"solved": True})
    with FileLock(f"{mine.path}.lock"):
        mine.update("exercises", "01-2", bad)
    with pytest.warns(UserWarning, match="could not be recorded"):
        mine.record("exercises", "01-3", {"solved": True})
    assert not mine.pending
    progress._stores.clear()
    assert sorted(progress.current().read()["exercises"]) == ["01-1", "01-3"]


def test_an_id_that_is_none_is_replaced(home):
    home.mkdir()
    (home / "progress.json").write_text('{"schema": 2, "learner": "AB"}')
    progress.current().record("exercises", "01-1", {"solved": True})
    assert re.fullmatch("[0-9a-f]{32}", json.loads((home / "progress.json").read_text())["learner"])


def test_a_reset_where_no_file_can_be_is_said(monkeypatch, capsys):
    monkeypatch.setenv("PRUNELAB_HOME", "/tmp/" + "a" * 300)
    with pytest.warns(UserWarning, match="could not be moved"):
        lab.reset(confirm=True)
    assert "fresh start" not in capsys.readouterr().out


def test_reset_asks_first_and_keeps_a_backup(home, capsys):
    progress.current().record("exercises", "01-1", {"solved": True})
    lab.reset()
    assert "confirm=True" in capsys.readouterr().out
    assert progress.current().read()["exercises"]
    lab.reset(confirm=True)
    assert progress.current().read()["exercises"] == {}
    (kept,) = home.glob("progress.*.backup.json")
    assert json.loads(kept.read_text())["exercises"] == {"which_weights-1": {"solved": True}}
    lab.reset(confirm=True)  # nothing there: nothing happens


def test_a_reset_that_cannot_write_leaves_the_file_where_it_was(home, monkeypatch):
    progress.current().record("exercises", "01-1", {"solved": True})
    before = {path.name: path.read_bytes() for path in home.glob("*.json")}

    def full(self, content):
        raise OSError("no space left on device")

    monkeypatch.setattr(progress.Store, "_write", full)
    with pytest.warns(UserWarning, match="it is as it was"):
        lab.reset(confirm=True)
    assert {path.name: path.read_bytes() for path in home.glob("*.json")} == before


def test_a_reset_makes_no_other_learner(home):
    progress.current().record("exercises", "01-1", {"solved": True})
    (before,) = (json.loads(p.read_text())["learner"] for p in home.glob("*.json"))
    lab.reset(confirm=True)
    progress.current().record("exercises", "01-1", {"solved": True})
    assert {json.loads(p.read_text())["learner"] for p in home.glob("*.json")} == {before}


def test_home_may_begin_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("PRUNELAB_HOME", "~/mine")
    assert progress.current().path == tmp_path / "mine" / "progress.json"
    monkeypatch.setenv("PRUNELAB_HOME", "~nobody-of-this-name/mine")
    assert progress.current().path.parts[-2] == "mine"


def test_an_exams_attempts_outlast_a_reset(home):
    for solved in (False, True):
        exercise.record("16-exam", solved)
    lab.reset(confirm=True)
    assert progress.current().read()["exercises"] == {"16-exam": {"solved": False, "tries": 2}}
    assert exercise.tries("16-exam") == 2
    assert exercise.tries("16-1") == 0


def test_progress_says_the_same_in_plain_python(home, capsys):
    progress.current().record("exercises", "01-1", {"solved": True})
    lab.progress()
    lines = capsys.readouterr().out.splitlines()
    assert "Exercises solved: 01-1" in lines
    assert f"Kept in: `{home / 'progress.json'}`" in lines
    lab.reset(confirm=True)
    (kept,) = home.glob("progress.*.backup.json")
    assert str(kept) in capsys.readouterr().out


def test_progress_shows_the_place_and_nbval_compares_none_of_it(home, shown, monkeypatch):
    monkeypatch.setattr(display, "in_kernel", lambda: True)
    progress.current().record("exercises", "01-1", {"solved": True})
    lab.progress()
    ((data, _),) = shown
    assert str(home) in data["text/html"]
    assert "01-1" in data["text/html"]
    compared = re.sub(r"<!--yours-->[\s\S]*?<!--/yours-->", "", data["text/html"])
    assert not any(str(home) in text or "01-1" in text for text in (compared, data["text/plain"]))
