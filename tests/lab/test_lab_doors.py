"""Where the course's commands write to: an old console, a pipe that closes, a disk that is full."""

import contextlib
import io
import os
import sys

import pytest

from prunelab.lab.__main__ import main
from prunelab.lab.show import display
from prunelab.lab.workshop import guide


@pytest.fixture(autouse=True)
def _said(monkeypatch):
    monkeypatch.setattr(guide, "text", lambda: "█ → ✓ " * 2000)


def test_a_console_of_another_code_page_gets_question_marks(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), "cp1252")
    monkeypatch.setattr(sys, "stdout", out)
    assert main(["guide"]) == 0
    assert out.buffer.getvalue().startswith(b"? ? ?")
    old = io.TextIOWrapper(io.BytesIO(), "cp1252")
    monkeypatch.setattr(sys, "stdout", old)
    display.emit({"text/plain": "✓ done"}, {})
    old.flush()
    assert old.buffer.getvalue().startswith(b"? done")


def test_a_pipe_that_nobody_reads_any_more_ends_it_quietly(monkeypatch, capsys):
    read, write = os.pipe()
    os.close(read)
    with open(write, "w", encoding="utf-8") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert main(["guide"]) == 0
        monkeypatch.undo()
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_is_said_in_a_sentence(monkeypatch, capsys):
    out = open("/dev/full", "w", encoding="utf-8")  # noqa: SIM115
    monkeypatch.setattr(sys, "stdout", out)
    assert main(["guide"]) == 1
    monkeypatch.undo()
    with contextlib.suppress(OSError):  # what is unwritten is tried again, since Python 3.14
        out.close()
    assert "No space left" in capsys.readouterr().err


def test_a_folder_that_is_a_file_is_said_in_a_sentence(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["build", str(tmp_path / "file" / "below")]) == 1
    assert str(tmp_path) in capsys.readouterr().err
