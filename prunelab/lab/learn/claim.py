"""Every number in the prose stands behind a claim that this run has checked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import Any

from ..show import display
from ..show.measuring import exact, measured
from . import exercise

OWN_TIMES = "Times are your machine's own"
KINDS = ("equals", "between", "at_least", "at_most")


class ClaimError(AssertionError):
    """A claim of the course does not hold here."""


@dataclass(frozen=True)
class Bound:
    """One way for a claim to hold, and so at least one way for it to fail."""

    kind: str
    limit: Any

    def __post_init__(self) -> None:
        if self.kind == "between" and not (len(self.limit) == 2 and self.limit[0] < self.limit[1]):
            raise ValueError(f"between={self.limit!r}: give (low, high) with low < high")
        counted = self.kind == "equals" and not isinstance(self.limit, float)  # or a name, a list, a truth
        if not counted and not all(_is_number(x) and math.isfinite(x) for x in self._limits):
            raise ValueError(f"{self.kind}={self.limit!r}: a bound must be a finite number, or the claim can't fail")

    @property
    def _limits(self) -> tuple[Any, ...]:
        return tuple(self.limit) if self.kind == "between" else (self.limit,)

    def holds(self, value: Any) -> bool:
        """Whether the value keeps the bound; NaN never does."""
        if self.kind == "equals":
            return _equal(value, self.limit)
        low, high = self.interval
        return _is_number(value) and low <= value <= high

    @property
    def interval(self) -> tuple[float, float]:
        """The closed interval of values that keep the bound."""
        low = -math.inf if self.kind == "at_most" else self._limits[0]
        return low, math.inf if self.kind == "at_least" else self._limits[-1]

    def __str__(self) -> str:
        return self.said()

    def said(self, unit: str = "") -> str:
        """The bound in words; with "%", of a share."""
        words = " and ".join(exact(limit, unit) if unit else repr(limit) for limit in self._limits)
        return f"{self.kind.replace('_', ' ')} {words}"


def bound(kinds: dict[str, Any]) -> Bound:
    """The one bound of a claim; none or several raise ValueError."""
    if len(kinds) != 1 or not kinds.keys() <= set(KINDS):
        raise ValueError(f"a claim takes exactly one of {', '.join(KINDS)}; it got {', '.join(kinds) or 'none'}")
    return Bound(*next(iter(kinds.items())))


def claim(text: str, value: Any, **kinds: Any) -> None:
    """Check what the prose says and show a line with a check mark; raise ClaimError if it does not hold.

    >>> claim("Half of the 10 weights stay.", 5, equals=5)
    ✓ Half of the 10 weights stay.

    `equals=` for counts, `between=(low, high)` for accuracies, `at_least=`/`at_most=` for directions with a margin.
    Write the bounds as literals: a test tries each claim at a value on the wrong side.
    """
    rule = bound(kinds)
    value = plain(value)
    if not rule.holds(value):
        raise ClaimError(f'The course claims: "{text}" ({rule}). Here it is {value!r}.')
    unit = "%" if "%" in text and _is_number(value) and 0 <= value <= 1 else ""  # a share, as the sentence says it
    line = text if rule.kind == "equals" else f"{text} ({measured(value, unit)}; claimed: {rule.said(unit)})"
    _show(line)


def _show(line: str) -> None:
    mark = f'<span style="color: {display.GOOD}; font-weight: bold">✓</span> '
    display.show(f"✓ {line}", html=f'<div style="max-width: {display.WIDTH}">{mark}{escape(line)}</div>')


@dataclass(frozen=True)
class Number:
    """A number of a notebook's prose: the clause that says it, the expression that gives it here, and its bound.

    `clock` is true of what another machine, or a busy one, may rightly measure otherwise: a time, a speed, and what
    was chosen by one.
    """

    says: str
    value: str
    bound: Bound
    clock: bool = False

    def failure(self, names: dict[str, Any]) -> str | None:
        """None if it holds for a notebook's names, or what was said and what was found."""
        try:
            found = plain(eval(self.value, dict(names)))
        except Exception as error:
            why = f"can't be computed here ({type(error).__name__}: {error})"
            raise ClaimError(f'"{self.says}": `{self.value}` {why}') from error
        short = f"{found:.4g}" if isinstance(found, float) else repr(found)
        return None if self.bound.holds(found) else f'"{self.says}" ({self.bound}). Here it is {short}.'


def numbers_of(notebook: str) -> tuple[Number, ...]:
    """The numbers of a lesson's prose, from `[[numbers]]` in its data file; one without a bound raises ValueError."""
    return tuple(_number(dict(entry)) for entry in exercise.texts(notebook).get("numbers", ()))


def _number(entry: dict[str, Any]) -> Number:
    says, value, clock = entry.pop("says"), entry.pop("value"), entry.pop("clock", False)
    return Number(says, value, bound(entry), clock)


def check_numbers(notebook: str, names: dict[str, Any]) -> None:
    """Hold every number of a notebook's prose to this very run: `lab.check_numbers("01", globals())`.

    One line if all hold. A number of the clock that came out otherwise is told; any other raises ClaimError, which
    names each with what was found instead.
    """
    every = numbers_of(notebook)
    failed = [(number, failure) for number in every if (failure := number.failure(names))]
    wrong = [failure for number, failure in failed if not number.clock]
    if wrong:
        raise ClaimError("\n".join([f"{len(wrong)} of {len(every)} numbers of this text do not hold here:", *wrong]))
    verdict = "all hold."
    if failed:
        other = " And with ".join(failure for _, failure in failed)
        verdict = f"{len(every) - len(failed)} hold. {OWN_TIMES}; here it is otherwise with {other}"
    _show(f"{len(every)} numbers of this text were compared with your run: {verdict}")


def plain(value: Any) -> Any:
    """A tensor's or an array's content as plain Python; anything else as it is."""
    return value.tolist() if hasattr(value, "tolist") else value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _equal(value: Any, limit: Any) -> bool:
    if isinstance(value, bool) is not isinstance(limit, bool):
        return False  # 1 is not True: a count is not a yes
    if isinstance(value, (list, tuple)) and isinstance(limit, (list, tuple)):
        return len(value) == len(limit) and all(map(_equal, value, limit))
    return bool(value == limit)
