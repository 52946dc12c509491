"""Files are written whole or not at all, and what is read has a size, a depth and types."""

import json
import os
import stat
import threading
import time

import pytest

from prunelab import files
from prunelab.core import Part
from prunelab.files import made, plain, read_json, read_toml, read_whole, write_whole


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


def test_an_interrupt_when_the_draft_is_just_made_leaves_none(tmp_path, monkeypatch):
    def interrupt(*arguments, through=os.open):
        os.close(through(*arguments))
        raise KeyboardInterrupt

    monkeypatch.setattr("os.open", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "a.txt", b"one")
    assert not list(tmp_path.iterdir())


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


def test_what_is_private_is_for_its_owner_alone(tmp_path):
    (tmp_path / "a").write_text("old")
    write_whole(tmp_path / "a", b"mine", private=True)
    assert os.name != "posix" or stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600


def test_drafts_of_killed_writers_go_with_the_next_write_and_no_other_files(tmp_path):
    old = time.time() - 2 * files.STALE
    for name in (".a.x1.tmp", ".a.x2.tmp", ".b.x3.tmp", "a.tmp"):
        (tmp_path / name).write_text("half")
        os.utime(tmp_path / name, (old, old))
    (tmp_path / ".a.young.tmp").write_text("another writer is at it")
    write_whole(tmp_path / "a", b"whole")
    assert {p.name for p in tmp_path.iterdir()} == {"a", "a.tmp", ".a.young.tmp", ".b.x3.tmp"}


def test_many_threads_write_one_file(tmp_path):
    size, failed = 300_000, []

    def write(n):
        try:
            for _ in range(5):
                write_whole(tmp_path / "a", bytes([n]) * size)
        except OSError as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(6)]
    before = os.umask(0o027)
    os.umask(before)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    content = (tmp_path / "a").read_bytes()
    assert failed == []
    assert (len(content), len(set(content))) == (size, 1)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    now = os.umask(before)
    assert now == before, "a mode is not read by setting it beside other threads"


@pytest.mark.skipif(os.name != "posix", reason="pipes and devices are POSIX's here")
def test_what_never_ends_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "large").write_bytes(b"{}")
    os.truncate(tmp_path / "large", 1 << 40)
    for name in ("pipe", "device", "large"):
        with pytest.raises(OSError, match=r"pipe or a device|bytes, and at most"):
            read_json(tmp_path / name)
    with pytest.raises(IsADirectoryError):
        read_whole(tmp_path)


NO_JSON = {
    "list": "[" * 100_000, "dict": '{"a":' * 100_000, "closed": "[" * 51 + "]" * 51, "digits": "9" * 10_000,
    "large": str(1 << 63), "half a letter": r'"\ud800"', "in a key": r'{"\ud800": 1}', "empty": "", "nul": "\0",
}  # fmt: skip
NO_TOML = {
    "list": "a = " + "[" * 100_000, "closed": "a = " + "[" * 200 + "]" * 200, "dots": "a." * 30_000 + "b = 1",
    "table": "[" + "a." * 30_000 + "b]", "spaced": "a . " * 30_000 + "b = 1", "date": "a = 1979-05-27",
    "large": f"a = {1 << 63}", "digits": "a = " + "9" * 10_000, "inline": "a = {" + "b." * 30_000 + "c = 1}",
    "inside": "a = [{b = [{c = 1979-05-27}]}]",
}  # fmt: skip


@pytest.mark.parametrize(
    ("read", "text"),
    [(read_json, t) for t in NO_JSON.values()] + [(read_toml, t) for t in NO_TOML.values()],
    ids=[*(f"json {n}" for n in NO_JSON), *(f"toml {n}" for n in NO_TOML)],
)
def test_what_no_file_of_ours_holds_is_a_value_error(tmp_path, read, text):
    (tmp_path / "a").write_text(text)
    with pytest.raises(ValueError):
        read(tmp_path / "a")


def test_what_a_file_of_ours_holds_is_read(tmp_path):
    given = {"a": [1, -1.5, "ü", True, None, (1 << 63) - 1], "b.c": {}}
    (tmp_path / "a.json").write_text(json.dumps(given))
    (tmp_path / "a.toml").write_text('a = [1, "0.1.2"]\n[b]\n"c.d" = 0.5\n')
    assert read_json(tmp_path / "a.json") == given
    assert read_toml(tmp_path / "a.toml") == {"a": [1, "0.1.2"], "b": {"c.d": 0.5}}
    assert plain(b"NaN") != plain(b"NaN"), "a loss may be"


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ({"path": "a"}, "lacks 'unit'"),
        ({"path": "a", "unit": 1, "x": 2}, "'x' is not known"),
        ({"path": 3, "unit": 1}, "'3' is no str"),
        ({"path": "a", "unit": True}, "'True' is no int"),
        ({"path": "a", "unit": 1.0}, "no int"),
        (["a", 1], "is no Part"),
    ],
)
def test_a_thing_that_does_not_fit_its_type(raw, says):
    assert made(Part, {"path": "a", "unit": 1}) == Part("a", 1)
    with pytest.raises(ValueError, match=says):
        made(Part, raw)
