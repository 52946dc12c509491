import os
import re

import pytest
import torch

from prunelab import lab
from prunelab.lab.learn import exercise as exercises
from prunelab.lab.learn import progress
from prunelab.lab.workshop.bank import answer_of

EVERY = exercises.registry()


@pytest.mark.parametrize("exercise", EVERY.values(), ids=EVERY)
class TestContract:
    def test_the_solution_passes(self, exercise):
        assert exercises.judge(exercise, answer_of(exercise, exercise.solution)) == (
            "right",
            f"right. {exercise.praise}",
        )

    def test_unusual_right_answers_pass(self, exercise):
        for source in exercise.right:
            verdict, message = exercises.judge(exercise, answer_of(exercise, source))
            assert verdict == "right", f"{message}\n{source}"

    def test_the_stub_is_not_attempted(self, exercise):
        verdict, message = exercises.judge(exercise, answer_of(exercise, exercise.stub))
        assert verdict == "unattempted"
        assert "not attempted yet" in message

    def test_at_least_three_wrong_answers_are_rejected_each_with_its_own_message(self, exercise):
        verdicts = [exercises.judge(exercise, answer_of(exercise, wrong.source)) for wrong in exercise.wrong]
        assert len(verdicts) >= 3
        assert {verdict for verdict, _ in verdicts} == {"wrong"}
        for (_, message), wrong in zip(verdicts, exercise.wrong, strict=True):
            assert wrong.says in message
        assert len({message for _, message in verdicts}) == len(verdicts)

    def test_it_is_complete(self, exercise):
        assert exercise.kind in exercises.KINDS
        assert exercise.difficulty in (1, 2, 3)
        assert exercise.minutes > 0
        assert len(exercise.hints) >= 2
        assert len(exercise.stub.splitlines()) <= 8, "with a blank line and the check, the cell must stay under 12"
        assert exercise.answer in exercise.task or exercise.answer in exercise.stub
        for text in (exercise.title, exercise.task, exercise.praise, *exercise.hints):
            assert text.strip()

    def test_nonsense_gets_a_calm_message(self, exercise):
        for nonsense in (object(), "", [], {}, -1, float("nan"), lambda: 1, lambda *a: a, torch.rand(2, 3)):
            verdict, message = exercises.judge(exercise, nonsense)
            assert verdict == "wrong"
            assert message

    def test_checking_is_the_same_twice(self, exercise):
        for source in (exercise.solution, exercise.stub, exercise.wrong[0].source):
            assert len({exercises.judge(exercise, answer_of(exercise, source)) for _ in range(2)}) == 1


def test_an_id_belongs_to_its_file():
    for number in exercises.numbers():
        assert {one.id[:2] for one in exercises.of_lesson(number)} == {number}


def test_an_unknown_id_names_those_there_are():
    with pytest.raises(KeyError, match="01-1"):
        lab.check("77-1", 3)


def test_an_error_in_the_learners_function_is_told_with_its_line():
    source = "def magnitude_mask(weight, sparsity):\n    k = 1\n    return weight / nothing\n"
    verdict, message = exercises.judge(EVERY["01-3"], answer_of(EVERY["01-3"], source))
    assert verdict == "wrong"
    assert "NameError" in message
    assert "line 3" in message
    assert "Traceback" not in message
    verdict, message = exercises.judge(EVERY["01-3"], torch.numel)
    assert "your function stopped with TypeError" in message


def test_a_forgotten_return_is_said():
    verdict, message = exercises.judge(EVERY["01-3"], lambda weight, sparsity: None)
    assert verdict == "wrong"
    assert "gave back None" in message


def test_not_implemented_is_not_attempted():
    def magnitude_mask(weight, sparsity):
        raise NotImplementedError

    assert exercises.judge(EVERY["01-3"], magnitude_mask)[0] == "unattempted"


def test_a_share_near_the_right_one_is_wrong():
    """Of all weights 370 / 440 are zero, of the last layer's 0.9."""
    verdict, message = exercises.judge(exercises.get("00-2"), lambda masks: 0.9)
    assert verdict == "wrong"
    assert "the last layer only" in message


def test_check_shows_a_line_and_keeps_the_result(capsys):
    lab.check("01-1", ...)
    assert progress.current().read()["exercises"] == {}
    lab.check("01-1", [0.9, -1.2])
    assert progress.current().read()["exercises"] == {"01-1": {"solved": False, "tries": 1}}
    lab.check("01-1", [0.9, -1.2, 0.4, -0.7])
    lab.check("01-1", [0.9])
    assert progress.current().read()["exercises"] == {"01-1": {"solved": True, "tries": 3}}, "solved stays solved"
    marks = [line[0] for line in capsys.readouterr().out.splitlines()]
    assert marks == ["○", "✗", "✓", "✗"]


def test_hints_come_one_by_one(capsys):
    texts = EVERY["01-1"].hints
    for n in (1, 2, 3, 3):
        lab.hint("01-1")
        out = capsys.readouterr().out
        assert out.count("Hint") == n
        assert texts[n - 1] in out
    assert "lab.solution" in out
    lab.hint("01-1", level=1)
    assert capsys.readouterr().out.count("Hint") == 1
    with pytest.raises(ValueError, match="1 to 3"):
        lab.hint("01-1", level=0)


def test_the_solution_is_shown_on_demand(capsys):
    lab.solution("01-3")
    assert EVERY["01-3"].solution in capsys.readouterr().out


def test_the_card_tells_difficulty_minutes_and_task(shown):
    lab.exercise("01-3")
    ((data, _),) = shown
    assert "★★☆" in data["text/plain"]
    assert "10 min" in data["text/plain"]
    assert 'aria-label="difficulty 2 of 3"' in data["text/html"]
    assert "application/vnd.jupyter.widget-view+json" not in data, "an exercise is there on the second day too"


def test_the_hints_and_the_solution_are_folded_each_behind_the_one_before(shown):
    lab.exercise("01-1")
    html = shown[-1][0]["text/html"]
    summaries = re.findall(r"<summary[^>]*>([^<]*)</summary>", html)
    assert summaries == ["Hint 1 of 3", "Hint 2 of 3", "Hint 3 of 3", "A solution, one of several"]
    assert html.endswith("</details>" * 4), "the solution lies within the last hint, and that within the one before"
    assert "survivors" in re.sub(r"<[^>]*>", "", html)


def sets_threads(_x):
    torch.set_num_threads(7)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(12)
    os.chdir("/")


def test_what_an_answer_changed_is_put_back_and_said(shown):
    before = torch.get_num_threads(), torch.get_default_dtype(), os.getcwd(), torch.get_rng_state()
    lab.check("00-2", sets_threads)
    assert (torch.get_num_threads(), torch.get_default_dtype(), os.getcwd()) == before[:3]
    assert torch.equal(torch.get_rng_state(), before[3])
    said = shown[-1][0]["text/plain"]
    assert all(word in said for word in ("threads", "default dtype", "working folder", "put back"))


class Mute(Exception):
    def __str__(self):
        raise RuntimeError("no words")


def raises_mute(*_):
    raise Mute


def shouts(*_):
    raise ValueError("x" * 1_000_000)


def leaves(*_):
    raise SystemExit(3)


@pytest.mark.parametrize("answer", [raises_mute, shouts, leaves, type("", (), {})(), type("", (), {}), "x" * 1_000_000])
def test_an_odd_answer_is_answered_calmly_and_shortly(shown, answer):
    lab.check("00-2", answer)
    assert "✗" in shown[-1][0]["text/plain"]
    assert len(shown[-1][0]["text/html"]) < 10_000


def test_the_last_exercise_of_a_notebook_says_that_it_is_finished(shown):
    for id in ("00-1", "00-2"):
        lab.check(id, answer_of(EVERY[id], EVERY[id].solution))
    assert "Still open in this notebook: 00-2" in shown[0][0]["text/html"]
    assert "Notebook 00 is finished" in shown[1][0]["text/html"]
