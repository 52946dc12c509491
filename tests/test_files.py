"""`write_whole`: the old content or the new, never a piece."""

import pytest

from prunelab.files import write_whole


def test_it_writes_and_leaves_nothing_beside(tmp_path):
    write_whole(tmp_path / "a.txt", b"one")
    write_whole(tmp_path / "a.txt", b"two")
    assert (tmp_path / "a.txt").read_bytes() == b"two"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_failure_leaves_the_old_content(tmp_path, monkeypatch):
    write_whole(tmp_path / "a.txt", b"one")

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_whole(tmp_path / "a.txt", b"two")
    assert (tmp_path / "a.txt").read_bytes() == b"one"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
