"""`write_whole`: the old content or the new, never a piece."""

import os
import stat

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


@pytest.mark.skipif(os.name != "posix", reason="permissions and links are POSIX's here")
def test_a_file_keeps_its_mode_and_a_new_one_gets_the_usual_one(tmp_path):
    (tmp_path / "usual").write_text("")
    write_whole(tmp_path / "new", b"one")
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "usual").stat().st_mode
    os.chmod(tmp_path / "new", 0o640)
    write_whole(tmp_path / "new", b"two")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640


@pytest.mark.skipif(os.name != "posix", reason="permissions and links are POSIX's here")
def test_a_link_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "theirs").write_bytes(b"precious")
    (tmp_path / "link").symlink_to(tmp_path / "theirs")
    write_whole(tmp_path / "link", b"mine")
    assert (tmp_path / "theirs").read_bytes() == b"precious"
    assert (tmp_path / "link").read_bytes() == b"mine"
    assert not (tmp_path / "link").is_symlink()
