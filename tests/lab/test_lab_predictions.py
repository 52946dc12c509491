import re

import pytest

from prunelab import lab
from prunelab.lab.learn import progress
from prunelab.lab.show import display

OPTIONS = ["ten times as fast", "twice as fast", "just as fast"]
WHY = {"ten times as fast": "Zeros look free.", "twice as fast": "A compromise feels safe."}


def ask(**kind):
    return lab.predict("01-test", "How much faster?", **(kind or {"options": OPTIONS}))


def texts(shown):
    """What nbval compares: all but the widget and the pixels."""
    clean = []
    for data, _ in shown:
        html = re.sub(r"<!--yours-->[\s\S]*?<!--/yours-->", "", data.get("text/html", ""))
        html = re.sub(r"data:image/png;base64,[^\"]+|<svg role=\"img\".*?</svg>", "", html)
        clean.append((data.get("text/plain"), html, sorted(data)))
    return clean


def test_untouched_gives_a_seeded_default_that_run_all_can_use():
    assert ask().value == ask().value
    assert ask().value in OPTIONS
    assert not ask().locked
    guess = ask(slider=(0, 1, 0.05, "%"))
    assert 0 <= guess.value <= 1
    assert round(guess.value / 0.05) == pytest.approx(guess.value / 0.05)
    assert ask(slider=(0, 1, 0.05, "%"), default=0.3).value == 0.3


def test_a_locked_guess_is_stored_and_taken_up_again():
    guess = ask()
    guess.control.value = "twice as fast"
    assert guess.value != "twice as fast" or not guess.locked
    guess.button.click()
    assert (guess.value, guess.locked, guess.control.disabled) == ("twice as fast", True, True)
    assert progress.current().read()["predictions"]["01-test"]["guess"] == "twice as fast"
    again = ask()
    assert (again.value, again.locked, again.button.disabled) == ("twice as fast", True, True)
    again.control.value = "just as fast"
    again.lock()
    assert again.value == "twice as fast"


def test_locking_without_a_choice_asks_for_one():
    guess = ask()
    guess.button.click()
    assert not guess.locked
    assert "Choose first" in guess.status.value


@pytest.mark.parametrize("stored", [{"guess": "an old option"}, {"guess": 7}, {}, "nonsense", None, {"guess": [1]}])
def test_a_stored_guess_that_no_longer_fits_is_left_out(stored):
    progress.current().record("predictions", "01-test", stored)
    assert not ask().locked
    assert not ask(slider=(0, 1, 0.1, "%")).locked


def test_slider_guesses_lock_too():
    guess = ask(slider=(0, 1, 0.05, "%"))
    guess.control.value = 70
    guess.button.click()
    assert ask(slider=(0, 1, 0.05, "%")).value == 0.7
    assert "70 %" in guess.status.value


@pytest.mark.parametrize(
    "kind",
    [
        {"options": ["only one"]},
        {"options": ["a", "a"]},
        {"options": OPTIONS, "slider": (0, 1, 0.1, "")},
        {"slider": (1, 0, 0.1, "")},
        {"slider": (0, 1, 0, "")},
        {"slider": (0, 1, 2, "")},
        {"slider": (0, 100, 5, "%")},
        {"options": OPTIONS, "default": "never"},
        {"slider": (0, 1, 0.1, ""), "default": 2},
        {"options": []},
    ],
)
def test_bad_questions_are_refused(kind):
    with pytest.raises(ValueError, match=r"options|slider|default"):
        ask(**kind)


@pytest.mark.parametrize(
    ("kind", "mine", "answer", "why"),
    [
        ({"options": OPTIONS}, "ten times as fast", "just as fast", WHY),
        ({"slider": (0, 1, 0.05, "%")}, 95, 0.5, "Redundancy is easy to underestimate."),
    ],
)
def test_nothing_that_is_compared_depends_on_the_learners_answer(shown, kind, mine, answer, why):
    lab.reveal(ask(**kind), answer, why)
    untouched = texts(shown)
    shown.clear()
    guess = ask(**kind)
    guess.control.value = mine
    guess.button.click()
    shown.clear()
    lab.reveal(ask(**kind), answer, why)
    assert texts(shown) == untouched
    assert shown[-1][0]["image/png"]
    assert shown[-1][1]["image/png"]["alt"].startswith("The guess beside the result for: How much faster?")


def test_the_result_names_the_guess_and_why_it_attracts(shown):
    guess = ask()
    guess.control.value = "twice as fast"
    guess.button.click()
    lab.reveal(guess, "just as fast", WHY)
    html = shown[-1][0]["text/html"]
    assert "You guessed <strong>twice as fast</strong>" in html
    assert html.count("A compromise feels safe.") == 2
    assert 'alt="The guess beside the result' in html
    guess.value = "just as fast"
    lab.reveal(guess, "just as fast", WHY)
    assert "so it is" in shown[-1][0]["text/html"]


def test_without_a_guess_nothing_is_scored_and_the_result_is_folded(shown):
    lab.reveal(ask(), "just as fast", WHY)
    html = shown[-1][0]["text/html"]
    assert "You have not guessed yet" in html
    assert "You guessed" not in html
    assert html.index("<details>") < html.index("<img") < html.index("</details>")


def test_the_question_lasts_and_only_its_controls_need_the_kernel(shown):
    ask()
    (question, _), (controls, _) = shown
    assert display.WIDGET_VIEW not in question
    assert all(option in question["text/html"] for option in OPTIONS)
    assert display.WIDGET_VIEW in controls
    assert display.AGAIN in controls["text/html"]


def test_a_locked_guess_is_saved_with_the_question(monkeypatch):
    sent = []
    monkeypatch.setattr(display, "emit", lambda data, metadata, **how: sent.append((data["text/html"], how)))
    guess = ask()
    (first, named), _ = sent
    guess.control.value = "twice as fast"
    guess.button.click()
    again = ask()  # a former run's
    assert again.locked
    for html, how in (sent[2], sent[5]):
        assert how.pop("update")
        assert "Your guess: <strong>twice as fast</strong>" in html
        assert re.sub(r"<!--yours-->[\s\S]*?<!--/yours-->", "", html) == first
    assert sent[2][1] == named


def test_an_impossible_answer_is_refused():
    with pytest.raises(ValueError, match="not a possible answer"):
        lab.reveal(ask(), "never", WHY)
