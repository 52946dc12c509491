"""The misconception bank, walked: every wrong answer and every wrong guess is told why, and shown false."""

import math

import pytest
import torch

from prunelab.lab.learn import exercise
from prunelab.lab.workshop import bank, contents, course

NOTEBOOKS = {p.stem: course.read(p) for p in course.notebooks()}
EVERY = exercise.registry()


@pytest.mark.parametrize("asked", EVERY.values(), ids=EVERY)
def test_most_wrong_answers_have_a_case_in_which_they_differ(asked):
    cases = [bank.case(asked, wrong) for wrong in asked.wrong]
    assert sum(map(bool, cases)) >= len(cases) - 1, "all but what only the message can tell"
    assert all("right is" in case for case in cases if case)


@pytest.mark.parametrize("name", NOTEBOOKS)
class TestEveryNotebook:
    def test_the_bank_holds_every_wrong_answer_and_every_wrong_guess(self, name):
        nb = NOTEBOOKS[name]
        rows = bank.of_notebook(nb)
        guesses = sum(len(q.wrong) for q in contents.questions(nb))
        answers = sum(len(asked.wrong) for _, asked in contents.checked(nb))
        assert len(rows) == guesses + answers
        assert all(row.telling and row.message for row in rows)

    def test_every_misconception_has_an_experiment(self, name):
        sources = dict.fromkeys(row.source for row in bank.of_notebook(NOTEBOOKS[name]))
        missing = [source for source in sources if not exercise.texts(name[:2])["experiments"].get(source)]
        assert not missing, f"prunelab/lab/lessons/{name[:2]}.toml: write under [experiments] what shows {missing}"
        strangers = set(exercise.texts(name[:2])["experiments"]) - set(sources)
        assert not strangers, f"prunelab/lab/lessons/{name[:2]}.toml: nothing is called {strangers}"

    def test_an_instructor_is_told_what_to_cut_and_what_to_discuss(self, name):
        told = exercise.texts(name[:2])
        lacking = [key for key in ("teach", "cut", "watch") if not told.get(key)]
        assert not lacking, f"prunelab/lab/lessons/{name[:2]}.toml lacks {lacking}"
        assert len(told["discuss"]) == 2
        assert told["teach"] >= contents.minutes(NOTEBOOKS[name]), "a class takes longer than a learner alone"


def test_the_bank_is_counted(record_property, capsys):
    guesses = sum(len(q.wrong) for nb in NOTEBOOKS.values() for q in contents.questions(nb))
    wrong = sum(len(asked.wrong) for asked in EVERY.values())
    record_property("wrong_answers", wrong)
    record_property("wrong_guesses", guesses)
    with capsys.disabled():
        print(f"\nthe misconception bank: {wrong} wrong answers to {len(EVERY)} exercises, {guesses} wrong guesses")
    assert wrong >= 3 * len(EVERY)


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        (1, 1, ""),
        (1.0, 1.0 + 1e-9, ""),
        (torch.ones(2), torch.ones(2), ""),
        ({"a": [torch.zeros(2)]}, {"a": [torch.zeros(2)]}, ""),
        (True, 1, "True; right is 1"),
        (0.5, 0.25, "0.5; right is 0.25"),
        (None, 2, "None; right is 2"),
        (torch.zeros(2, 3), torch.zeros(3, 2), "shape (2, 3); right is (3, 2)"),
        (torch.tensor([1, 2]), torch.tensor([1, 3]), "[1]: 2; right is 3"),
        ({"a": torch.tensor([[True]])}, {"a": torch.tensor([[False]])}, "['a'][0][0]: True; right is False"),
        ({"a": 1}, {"b": 1}, "{a: 1}; right is {b: 1}"),
        ([1, 2], [1, 2, 3], "[1, 2]; right is [1, 2, 3]"),
        (ValueError("x"), 1, "an error (ValueError); right is 1"),
        (math.nan, 1.0, "nan; right is 1"),
    ],
)
def test_where_two_results_differ_is_said(one, other, words):
    assert bank.difference(one, other) == words


@pytest.mark.parametrize(
    ("source", "solution", "line"),
    [
        ("x = 3", "x = 4", "x = 3"),
        ("def f(a):\n    b = a\n    return b", "def f(a):\n    b = -a\n    return b", "b = a"),
        ("def f(a):\n    return a", "def f(a):\n    a = a + 1\n    return a", "no a = a + 1"),
    ],
)
def test_the_line_that_goes_astray_is_named(source, solution, line):
    assert bank.telling(source, solution) == line


def test_a_table_keeps_its_shape_whatever_stands_in_it():
    row = bank.Misconception("12-1", "`a | b`", "not a\nnumber | text", "", "")
    lines = bank.table([row]).strip().splitlines()
    assert lines[0] == "**12-1.** Show it: no experiment has been written yet"
    assert lines[2:] == [
        "| wrong answer | what the learner is told |",
        "| --- | --- |",
        r"| `a \| b` | not a number \| text |",
    ]
