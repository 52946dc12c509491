import json
import os

import pytest

from prunelab.core import PruneError
from prunelab.lab.workshop import classroom, contents, course

QUESTIONS = {q.id: q for p in course.notebooks() for q in contents.questions(course.read(p))}
CHOICE = next(q for q in QUESTIONS.values() if q.options)


def hand_in(folder, learner=None, **guesses):
    """One learner's progress file, under a name that says who it was; without an id given, one of its own."""
    number = len(list(folder.rglob("*.json")))
    place = folder / f"ada-{number}" / "progress.json"
    place.parent.mkdir()
    predictions = {id: {"guess": guess, "at": "2026-01-01"} for id, guess in guesses.items()}
    content = {
        "schema": 1,
        "predictions": predictions,
        "exercises": {},
        "scoreboard": {},
        "learner": f"{number:032x}" if learner is None else learner,
    }
    place.write_text(json.dumps(content))


def test_guesses_are_counted_for_each_option_and_each_fifth_of_a_slider(tmp_path):
    for guess, option in ((0.0, 0), (0.2, 0), (0.35, 1), (1.0, 0)):
        hand_in(tmp_path, **{"00-half": guess, CHOICE.id: CHOICE.options[option]})
    (slider, choice), _ = classroom.gather(tmp_path)
    assert slider.question.id == "00-half"
    assert slider.counts == {
        "0 % to 20 %": 1,
        "20 % to 40 %": 2,
        "40 % to 60 %": 0,
        "60 % to 80 %": 0,
        "80 % to 100 %": 1,
    }
    assert list(choice.counts.values())[:2] == [3, 1]
    assert tuple(choice.counts) == CHOICE.options


def test_the_bars_say_the_question_the_result_and_no_name(tmp_path):
    for _ in range(3):
        hand_in(tmp_path, **{"00-half": 0.9})
    text = classroom.text(*classroom.gather(tmp_path))
    assert QUESTIONS["00-half"].text in text
    assert f"(the result: {QUESTIONS['00-half'].result}; 3 learners)" in text
    assert "█" * classroom.WIDTH + " 3" in text
    assert "ada" not in text


def test_a_few_files_could_be_traced_and_are_refused(tmp_path):
    for _ in range(2):
        hand_in(tmp_path, **{"00-half": 0.9})
    with pytest.raises(PruneError, match="holds the progress files of 2 learners"):
        classroom.gather(tmp_path)
    hand_in(tmp_path, **{"01-random": 0.9})
    assert classroom.gather(tmp_path) == ([], 0), "three learners, but no question that three have answered"
    assert "No question" in classroom.text([])


@pytest.mark.parametrize(
    "text", ["", "[]", '{"predictions": 3}', '{"predictions": {"00-half": 3}}', "\xff", '{"a": 1}']
)
def test_other_files_are_passed_over(tmp_path, text):
    for _ in range(3):
        hand_in(tmp_path, **{"00-half": 0.5})
    (tmp_path / "other.json").write_text(text, encoding="latin-1")
    (tally,), _ = classroom.gather(tmp_path)
    assert tally.learners == 3


def test_a_guess_that_the_question_does_not_allow_is_left_out(tmp_path):
    for guess in (0.5, 0.5, 0.5, 7, "half"):
        hand_in(tmp_path, **{"00-half": guess, CHOICE.id: "an old option"})
    (tally,), _ = classroom.gather(tmp_path)
    assert tally.learners == 3


def test_a_learner_counts_once_whatever_files_there_are(tmp_path):
    """A second machine's copy, a backup under another name: still two learners."""
    for _ in range(2):
        hand_in(tmp_path, **{"00-half": 0.9})
    first = (tmp_path / "ada-0" / "progress.json").read_text()
    (tmp_path / "ada at home.json").write_text(first)
    (tmp_path / "ada-0" / "progress.20260101.backup.json").write_text(first)
    assert "00-half" in first
    with pytest.raises(PruneError, match="of 2 learners"):
        classroom.gather(tmp_path)


def test_files_without_an_id_could_all_be_one_persons_and_count_for_nobody(tmp_path, capsys):
    ids = ["", 0, [], "ab", "AB", " ab", f"{7:032X}"[:-1] + "A", f" {7:032x}", f"{7:032x}\n"]
    for guess, id in enumerate(ids):
        hand_in(tmp_path, learner=id, **{"00-half": guess / 10})
    for guess in (0.1, 0.2, 0.3):  # first editions
        old = {"schema": 1, "predictions": {"00-half": {"guess": guess}}}
        (tmp_path / f"grace {guess}.json").write_text(json.dumps(old))
    for _ in range(2):
        hand_in(tmp_path, **{"00-half": 0.9})
    with pytest.raises(PruneError, match=rf"of 2 learners .* one person's, left out: {len(ids) + 3}\."):
        classroom.gather(tmp_path)
    hand_in(tmp_path, **{"00-half": 0.9})
    (tally,), left_out = classroom.gather(tmp_path)
    assert (tally.learners, left_out) == (3, len(ids) + 3)
    assert capsys.readouterr().out == "", "whoever gathers prints nothing"
    assert f"left out: {left_out}.\n\n00-half" in classroom.text([tally], left_out)


def test_a_folder_that_is_not_there_is_said(tmp_path):
    with pytest.raises(PruneError, match="there is no folder"):
        classroom.gather(tmp_path / "nowhere")


def test_one_learners_bad_file_stops_nobody(tmp_path):
    for _ in range(3):
        hand_in(tmp_path, **{"00-half": 0.5})
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "huge.json").write_text('{"schema": 2, "predictions": {"00-half": {"guess": ' + "9" * 9000 + "}}}")
    if os.name == "posix":
        os.mkfifo(tmp_path / "pipe.json")
        (tmp_path / "device.json").symlink_to("/dev/zero")
    (tally,), _ = classroom.gather(tmp_path)
    assert tally.learners == 3
