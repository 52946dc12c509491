"""A guess before the result: recorded, then drawn beside what was found."""

from __future__ import annotations

import random
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from html import escape
from typing import Any

import ipywidgets as widgets

from ..show import display, figure
from ..show.measuring import SHARES, exact, measured
from . import progress

Slider = tuple[float, float, float, str]  # low, high, step, unit


@dataclass
class Prediction:
    """A question with the learner's guess; `value` is the course's own placeholder until one is locked in."""

    id: str
    question: str
    options: tuple[str, ...] = ()
    slider: Slider | None = None
    value: Any = None
    locked: bool = False
    control: Any = field(default=None, repr=False)
    button: Any = field(default=None, repr=False)
    status: Any = field(default=None, repr=False)
    keep: Any = field(default=None, repr=False)  # puts a line below the question that is saved with the notebook

    def lock(self, _button: object = None) -> None:
        """Keep the control's value as the guess, here and in the progress file."""
        chosen = self.control.value
        if not self.locked and chosen is not None:
            self.value, self.locked = chosen if self.slider is None else round(chosen / self.scale, 9), True
            when = datetime.now(UTC).isoformat(timespec="seconds")
            progress.current().record("predictions", self.id, {"guess": self.value, "at": when})
        self._say()

    def restore(self) -> None:
        """Take up a guess of a former run, if the question still allows it."""
        record = progress.current().read()["predictions"].get(self.id)
        guess = record.get("guess") if isinstance(record, dict) else None
        if guess is not None and self.allows(guess):
            self.value, self.locked = guess, True
            self.control.value = guess if self.slider is None else self.scale * guess
        self._say()

    def allows(self, guess: Any) -> bool:
        """Whether a guess is one of the options, or lies on the slider."""
        if self.slider is None:
            return guess in self.options
        return isinstance(guess, (int, float)) and self.slider[0] <= guess <= self.slider[1]

    @property
    def scale(self) -> int:
        """What the slider shows of a guess of one: shares are fractions here, and hundredths for the eye."""
        return 100 if self.slider is not None and self.slider[3] in SHARES else 1

    def written(self, value: Any) -> str:
        """A guess as text."""
        return str(value) if self.slider is None else exact(value, self.slider[3])

    def result(self, answer: Any) -> str:
        """The answer as text: a whole number was counted, any other measured."""
        if self.slider is None or isinstance(answer, int):
            return self.written(answer)
        return measured(answer, self.slider[3])

    def _say(self, _change: object = None) -> None:
        self.control.disabled = self.button.disabled = self.locked
        text = "A guess is only yours once it is locked in."
        if self.locked:
            guess = f"<strong>{escape(self.written(self.value))}</strong>"
            text = f"Locked in: {guess}. Now let the result surprise you."
            self.keep(display.box(f"Your guess: {guess}."))
        elif self.control.value is None:
            text = "Choose first; a wrong guess teaches more than none."
        self.status.value = f'<span aria-live="polite">{text}</span>'


def predict(
    id: str, question: str, *, options: Sequence[str] = (), slider: Slider | None = None, default: Any = None
) -> Prediction:
    """Ask for a guess before any result; Run All goes on with the default.

    >>> guess = predict("00-loss", "How many of the weights can go?", slider=(0, 1, 0.05, "%"))  # doctest: +SKIP
    >>> guess = predict("00-fast", "Is it faster?", options=["twice", "the same"])               # doctest: +SKIP

    Give `options` or `slider=(low, high, step, unit)`; the units "%" and "points" take fractions. Without a default,
    one is drawn with the id as the seed. A guess locked in during a former run is taken up again.
    """
    _check(options, slider)
    asked = Prediction(id, question, tuple(options), slider)
    asked.value = _seeded(asked) if default is None else default
    if not asked.allows(asked.value):
        raise ValueError(f"default={default!r} is not a possible answer to {id!r}")
    asked.control = _choices(asked) if slider is None else _slider(asked, slider)
    asked.button = widgets.Button(description="Lock in my guess", icon="lock", tooltip="Keep this guess")
    asked.status = display.panel_html()
    asked.status.layout.margin = "0 0 0 0.6em"
    asked.button.on_click(asked.lock)
    choices = list(options) if slider is None else [f"{asked.written(slider[0])} to {asked.written(slider[1])}"]
    listed = "".join(f"<li>{escape(c)}</li>" for c in choices)
    html = f'<strong>Your prediction.</strong> {escape(question)}<ul style="margin: 0.3em 0">{listed}</ul>'
    row = widgets.HBox([asked.button, asked.status], layout=widgets.Layout(align_items="center", flex_flow="row wrap"))
    text = f"Your prediction: {question} [{' / '.join(choices)}]"
    asked.keep = display.live(text, display.box(html), widgets.VBox([asked.control, row]))
    asked.restore()
    asked.control.observe(asked._say, "value")
    return asked


def reveal(prediction: Prediction, answer: Any, explain: Mapping[Any, str] | str = "") -> None:
    """Draw the guess beside the result, and say why the wrong guesses attract.

    `explain` maps each wrong option to why it attracts (for a slider: one text). Without a guess nothing is scored:
    the result stands folded behind an invitation to guess. What nbval compares is the same for everyone.
    """
    if not prediction.allows(answer):
        raise ValueError(f"the answer {answer!r} is not a possible answer to {prediction.id!r}")
    result = prediction.result(answer)
    alt = f"The guess beside the result for: {prediction.question} The result: {result}."
    painted = _paint_options if prediction.slider is None else _paint_slider
    height = 0.35 + 0.36 * len(prediction.options) if prediction.slider is None else 1.5
    drawn, picture = figure.drawing(lambda ax: painted(ax, prediction, answer), alt, figsize=(7.0, height))
    reasons = {None: explain} if isinstance(explain, str) else explain
    reasons = {option: why for option, why in reasons.items() if why}
    lines = [why if option is None else f"“{option}”: {why}" for option, why in reasons.items()]
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    found = drawn + (f"<p style='margin: 0.4em 0 0'>Why a wrong guess attracts:</p><ul>{items}</ul>" if items else "")
    if prediction.locked:
        verdict = _verdict(prediction, answer, result, reasons)
        html = display.yours(display.box(verdict, display.GOOD)) + found + display.yours("")
    else:
        asked = f"<summary>Show the result for: {escape(prediction.question)}</summary>"
        html = display.yours(f"{INVITATION}<details>{asked}") + found + display.yours("</details>")
    display.show("\n".join([alt, *(f"- {line}" for line in lines)]), html=html, png=picture, alt=alt)


INVITATION = display.box(
    "You have not guessed yet. Go up to the question, lock in a guess, and run this cell again: a wrong guess is the "
    "best teacher here. Or open the result now."
)


def _verdict(prediction: Prediction, answer: Any, result: str, reasons: Mapping[Any, str]) -> str:
    guess = escape(prediction.written(prediction.value))
    if prediction.slider is None and prediction.value == answer:
        return f"You guessed <strong>{guess}</strong>, and so it is."
    own = reasons.get(prediction.value, "")
    own = escape(own[:1].upper() + own[1:])
    return f"You guessed <strong>{guess}</strong>; the result is <strong>{escape(result)}</strong>. {own}"


def _check(options: Sequence[str], slider: Slider | None) -> None:
    if (slider is None) == (len(options) == 0):
        raise ValueError("give either options=[...] or slider=(low, high, step, unit)")
    if slider is None and (len(options) < 2 or len(set(options)) != len(options)):
        raise ValueError(f"options={list(options)!r}: give at least two, all different")
    if slider is None:
        return
    if len(slider) != 4 or not slider[0] < slider[1] or not 0 < slider[2] <= slider[1] - slider[0]:
        raise ValueError(f"slider={slider!r}: give (low, high, step, unit) with low < high and a step that fits")
    if slider[3] in SHARES and slider[1] > 1:
        meant = f"(..., {slider[1] / 100:g}, ..., {slider[3]!r})"
        raise ValueError(f"slider={slider!r}: {slider[3]!r} takes fractions; did you mean {meant}?")


def _seeded(asked: Prediction) -> Any:
    """A guess drawn with the id as the seed: the same in every run, and no hint at the answer."""
    source = random.Random(asked.id)
    if asked.slider is None:
        return source.choice(asked.options)
    low, high, step, _unit = asked.slider
    return round(low + step * source.randint(0, round((high - low) / step)), 9)


def _choices(asked: Prediction) -> widgets.Widget:
    radios = widgets.RadioButtons(options=asked.options, value=None, description="My guess", tooltip=asked.question)
    radios.style.description_width = "6em"
    radios.layout = widgets.Layout(width="auto", max_width=display.WIDTH)
    radios.add_class("prunelab-keys")
    return radios


def _slider(asked: Prediction, slider: Slider) -> widgets.Widget:
    low, high, step, value = (asked.scale * x for x in (*slider[:3], asked.value))
    name = "My guess" + (f" ({slider[3]})" if slider[3] else "")
    bar = widgets.FloatSlider(value=value, min=low, max=high, step=step, description=name, tooltip=asked.question)
    bar.readout_format = f".{len(f'{step:g}'.partition('.')[2])}f"
    bar.style.description_width = "initial"
    bar.layout = widgets.Layout(width="34em", max_width="100%")
    return bar


def _paint_options(ax: Any, prediction: Prediction, answer: str) -> None:
    ax.set_axis_off()
    ax.set(xlim=(0, 1), ylim=(len(prediction.options) - 0.4, -0.9))
    for row, option in enumerate(prediction.options):
        wrapped = textwrap.fill(option, 62)
        ax.text(0.17, row, wrapped, va="center", weight="bold" if option == answer else "normal")
        if prediction.locked and option == prediction.value:
            ax.plot([0.05], [row], marker="o", markersize=11, color=figure.COLOURS[1], clip_on=False)
        if option == answer:
            ax.plot([0.12], [row], marker="*", markersize=17, color=figure.COLOURS[0], clip_on=False)
    if prediction.locked:
        ax.text(0.05, -0.75, "guess", ha="center", va="center", color=figure.COLOURS[1])
    ax.text(0.12, -0.75, "result", ha="center", va="center", color=figure.COLOURS[0])


def _paint_slider(ax: Any, prediction: Prediction, answer: float) -> None:
    assert prediction.slider is not None
    low, high, _step, unit = prediction.slider
    margin = 0.03 * (high - low)
    ax.set(xlim=(low - margin, high + margin), ylim=(-1, 1))
    ax.get_yaxis().set_visible(False)
    ax.spines["left"].set_visible(False)
    ax.xaxis.set_major_formatter(lambda x, _position: exact(x, unit))
    guess = prediction.value, "o", 11, 1, f"guess: {exact(prediction.value, unit)}", 0.45
    result = answer, "*", 17, 0, f"result: {prediction.result(answer).removeprefix('≈ ')}", -0.75
    if prediction.locked:
        ax.plot([prediction.value, answer], [0, 0], marker="", linestyle=":", color="#777777")
    for value, marker, size, colour, written, y in (guess, result) if prediction.locked else (result,):
        ax.plot([value], [0], marker=marker, markersize=size, color=figure.COLOURS[colour])
        ax.text(value, y, written, ha="center", color=figure.COLOURS[colour])
