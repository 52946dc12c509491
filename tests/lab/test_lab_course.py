import json
import subprocess

import pytest

from prunelab.core import PruneError
from prunelab.lab.workshop import course


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A course of two small notebooks, which a test may change."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    for name in ("00_a.ipynb", "01_b.ipynb"):
        (folder / name).write_text(f'{{"v": 1, "name": "{name}"}}')
    monkeypatch.setattr(course, "folder", lambda: folder)
    return folder


def test_the_notebooks_come_in_order_and_are_the_courses():
    names = [p.name for p in course.notebooks()]
    assert names == sorted(names)
    assert names[0] == "00_start_here.ipynb"


def test_a_copy_is_whole_and_a_second_one_changes_nothing(shelf, tmp_path):
    target = tmp_path / "deep" / "mine"
    assert course.copy(target) == {"00_a.ipynb": "new", "01_b.ipynb": "new"}
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in target.glob("*.ipynb")}
    assert before["00_a.ipynb"][0] == (shelf / "00_a.ipynb").read_bytes()
    assert set(course.copy(target).values()) == {"as it was"}
    assert {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in target.glob("*.ipynb")} == before


def test_a_learners_work_is_never_overwritten(shelf, tmp_path):
    target = tmp_path / "mine"
    course.copy(target)
    (target / "00_a.ipynb").write_text("my answers")
    assert course.copy(target) == {"00_a.ipynb": "yours, kept", "01_b.ipynb": "as it was"}
    assert not list(target.glob("*.new.ipynb")), "the course has nothing newer to offer"
    (shelf / "00_a.ipynb").write_text('{"v": 2}')
    (shelf / "01_b.ipynb").write_text('{"v": 2}')
    assert course.copy(target) == {"00_a.ipynb": "yours, kept", "01_b.ipynb": "updated"}
    assert (target / "00_a.ipynb").read_text() == "my answers"
    assert (target / "00_a.new.ipynb").read_text() == '{"v": 2}'
    assert (target / "01_b.ipynb").read_text() == '{"v": 2}'
    (target / "00_a.new.ipynb").unlink()
    course.copy(target)
    assert not (target / "00_a.new.ipynb").exists(), "offered once, and declined"


def test_an_offered_notebook_that_the_learner_changed_is_never_overwritten(shelf, tmp_path):
    target = tmp_path / "mine"
    course.copy(target)
    (target / "00_a.ipynb").write_text("my answers")
    (shelf / "00_a.ipynb").write_text('{"v": 2}')
    course.copy(target)
    (target / "00_a.new.ipynb").write_text("my second answers")
    (shelf / "00_a.ipynb").write_text('{"v": 3}')
    for _ in range(2):
        assert course.copy(target)["00_a.ipynb"] == "yours, kept"
    assert (target / "00_a.new.ipynb").read_text() == "my second answers"
    assert (target / "00_a.new-2.ipynb").read_text() == '{"v": 3}'
    assert len(list(target.glob("00_a*"))) == 3


@pytest.mark.parametrize("manifest", ["", "[]", '{"00_a.ipynb": 7}'])
def test_without_a_readable_manifest_everything_changed_is_the_learners(shelf, tmp_path, manifest):
    target = tmp_path / "mine"
    course.copy(target)
    (target / course.MANIFEST).write_text(manifest)
    (target / "00_a.ipynb").write_text("my answers")
    assert course.copy(target)["00_a.ipynb"] == "yours, kept"
    assert json.loads((target / course.MANIFEST).read_text()).keys() == {"00_a.ipynb", "01_b.ipynb"}


def test_a_folder_that_cant_be_made_is_said(shelf, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PruneError, match="name a folder that you may write to"):
        course.copy(tmp_path / "file" / "mine")


def test_an_installation_without_notebooks_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(course.zoo.trained, "data_dir", lambda: tmp_path / "data")
    with pytest.raises(PruneError, match="install prunelab again"):
        course.folder()


def test_what_differs_from_the_commit_is_named_and_outside_a_clone_nothing_is(shelf):
    assert course.changed() == []
    git = ["git", "-C", str(shelf), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "as the authors ran it"]):
        subprocess.run([*git, *command], check=True)
    assert course.changed() == []
    (shelf / "01_b.ipynb").write_text("my answers")
    assert course.changed() == ["01_b.ipynb"]
