"""`python -m prunelab.lab`: a thin dispatcher, each of whose commands reaches what it names."""

import inspect
import subprocess
import sys

import nbformat
import pytest

from prunelab import lab
from prunelab.lab import __main__ as commands
from prunelab.lab.author import checkpoints, grids, publish, timings
from prunelab.lab.workshop import classroom, course, doctor, editions, guide, site

OUT = {"build": editions, "site": site}


@pytest.mark.parametrize(
    ("line", "module", "name", "given"),
    [
        (["doctor"], doctor, "main", ()),
        (["timings", "02", "--runs", "3"], timings, "measure", (["02"], 3)),
        (["grids", "scopes"], grids, "remake", (["scopes"],)),
        (["checkpoints"], checkpoints, "remake", ([],)),
    ],
)
def test_a_command_calls_its_function_with_what_was_given(monkeypatch, line, module, name, given):
    calls = []
    monkeypatch.setattr(module, name, lambda *given: calls.append(given) or 0)
    assert commands.main(line) == 0
    assert calls == [given]


def test_a_commands_exit_code_is_that_of_what_it_ran(monkeypatch):
    monkeypatch.setattr(doctor, "main", lambda: 3)
    assert commands.main(["doctor"]) == 3


@pytest.mark.parametrize(("command", "known"), [("grids", "scopes"), ("checkpoints", "digits-mlp")])
def test_an_unknown_name_is_refused_with_those_there_are(capsys, command, known):
    assert commands.main([command, "nothing"]) == 1
    said = capsys.readouterr().err
    assert "there is no nothing" in said
    assert known in said


def test_copy_says_what_became_of_each_notebook(tmp_path, capsys):
    assert commands.main(["copy", str(tmp_path / "mine")]) == 0
    out = capsys.readouterr().out
    assert "00_start_here.ipynb: new" in out
    assert "jupyter lab" in out
    assert len(list((tmp_path / "mine").glob("*.ipynb"))) == len(course.notebooks())


def test_an_error_is_a_sentence_and_an_exit_code(tmp_path, capsys):
    assert commands.main(["class", str(tmp_path)]) == 1
    assert "at least 3 are needed" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["", "no JSON", "[]", "{}", '{"nbformat": 4, "cells": 3}', "[" * 100_000, "\xff", None]
)
@pytest.mark.parametrize("command", ["publish", "rules"])
def test_a_file_that_is_no_notebook_is_said_in_a_sentence(tmp_path, capsys, command, text):
    file = tmp_path / "mine.ipynb"
    if text is not None:
        file.write_text(text, encoding="latin-1")
    assert commands.main([command, str(file)]) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert str(file) in said
    assert ("Name an .ipynb file" in said) == (text is not None)


def test_code_that_is_no_python_is_one_of_the_problems(tmp_path, capsys):
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x = (1")])
    nbformat.write(nb, tmp_path / "mine.ipynb")
    assert commands.main(["rules", str(tmp_path / "mine.ipynb"), str(course.notebooks()[0])]) == 1
    said = capsys.readouterr().out
    assert "can't be read as Python ('(' was never closed), mend it: x = (1\n" in said
    assert "no problems" in said


def test_what_was_saved_while_a_notebook_ran_is_not_published_over(tmp_path, monkeypatch):
    file = tmp_path / "mine.ipynb"
    nbformat.write(nbformat.v4.new_notebook(), file)
    monkeypatch.setattr(publish.NotebookClient, "execute", lambda self, **_: file.write_text("newer"))
    assert commands.main(["publish", str(file)]) == 1
    assert file.read_text() == "newer"


def test_the_others_print_what_they_made(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(guide, "text", lambda: "the guide")
    monkeypatch.setattr(editions, "build", lambda out: {"slides": [out, out]})
    monkeypatch.setattr(site, "build", lambda out: [out])
    monkeypatch.setattr(classroom, "gather", lambda folder: ([], 0))
    for line in (["guide"], ["build", "x"], ["site", "y"], ["class", "z"], ["rules", str(course.notebooks()[0])]):
        assert commands.main(line) == 0
    out = capsys.readouterr().out
    for words in (
        "the guide",
        "slides: 2 files in x/slides",
        "1 pages; open y/index.html",
        "No question",
        "no problems",
    ):
        assert words in out


@pytest.mark.parametrize(
    "line", [["grids"], ["publish", "x.ipynb"], ["rules", "x.ipynb"], ["timings"], ["checkpoints"]]
)
def test_an_authors_command_says_so_where_its_room_is_missing(monkeypatch, capsys, line):
    """As in an installed wheel, which holds everything but `lab/author/`."""
    for name in [name for name in sys.modules if name.startswith("prunelab.lab.author")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "prunelab.lab.author", None)
    assert commands.main(line) == 1
    assert capsys.readouterr().err == f"{line[0]} is for authors: it runs from a checkout of the repository\n"


def test_an_unknown_command_is_refused(capsys):
    with pytest.raises(SystemExit):
        commands.main(["prune"])
    assert "doctor" in capsys.readouterr().err


def test_every_name_of_the_lab_is_found_where_it_says():
    for name in lab.__all__:
        found = getattr(lab, name)
        assert not inspect.ismodule(found) or found.__name__.endswith(f".{name}")
    assert lab.lesson_00.__name__.endswith("lessons.lesson_00")
    for name in ("lesson_99", "nothing"):
        with pytest.raises(AttributeError, match=name):
            getattr(lab, name)


def test_help_does_not_wait_for_torch():
    code = "import sys, prunelab.lab.__main__ as l\ntry: l.main(['--help'])\nfinally: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Is this machine ready" in done.stdout
