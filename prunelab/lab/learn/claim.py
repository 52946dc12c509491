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
        if self.kind == "equals":
            limits: tuple[Any, ...] = (self.limit,) if isinstance(self.limit, float) else ()
        elif self.kind == "between":
            limits = tuple(self.limit)
            if len(limits) != 2 or not limits[0] < limits[1]:
                raise ValueError(f"between={self.limit!r}: give (low, high) with low < high")
        else:
            limits = (self.limit,)
        if not all(_is_number(x) and math.isfinite(x) for x in limits):
            raise ValueError(f"{self.kind}={self.limit!r}: a bound must be a finite number, or the claim can't fail")

    def holds(self, value: Any) -> bool:
        """Whether the value keeps the bound; NaN never does."""
        if self.kind == "equals":
            return _equal(value, self.limit)
        if not _is_number(value) or math.isnan(value):
            return False
        low, high = self.interval
        return low <= value <= high

    @property
    def interval(self) -> tuple[float, float]:
        """The closed interval of values that keep the bound."""
        if self.kind == "between":
            return self.limit
        return (self.limit, math.inf) if self.kind == "at_least" else (-math.inf, self.limit)

    def __str__(self) -> str:
        return self.said()

    def said(self, unit: str = "") -> str:
        """The bound in words; with "%", of a share."""
        limits = self.limit if self.kind == "between" else (self.limit,)
        words = " and ".join(exact(limit, unit) if unit else repr(limit) for limit in limits)
        return f"{self.kind.replace('_', ' ')} {words}"


def bound(kinds: dict[str, Any]) -> Bound:
    """The one bound of a claim; none or several raise ValueError."""
    if len(kinds) != 1 or not set(kinds) <= set(KINDS):
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
    unit = "%" if "%" in text and 0 <= value <= 1 else ""  # a share, as the sentence says it
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
            raise ClaimError(
                f'"{self.says}": `{self.value}` can\'t be computed here ({type(error).__name__}: {error})'
            ) from error
        return None if self.bound.holds(found) else f'"{self.says}" ({self.bound}). Here it is {_short(found)}.'


def numbers_of(notebook: str) -> tuple[Number, ...]:
    """The numbers of a lesson's prose, from `[[numbers]]` in its data file; one without a bound raises ValueError."""
    entries = exercise.texts(notebook).get("numbers", ())
    return tuple(
        Number(
            one["says"],
            one["value"],
            bound({k: v for k, v in one.items() if k not in ("says", "value", "clock")}),
            one.get("clock", False),
        )
        for one in entries
    )


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
    verdict = _verdict(len(every), [failure for _, failure in failed])
    _show(f"{len(every)} numbers of this text were compared with your run: {verdict}")


def _verdict(count: int, other: list[str]) -> str:
    if not other:
        return "all hold."
    return f"{count - len(other)} hold. {OWN_TIMES}; here it is otherwise with {' And with '.join(other)}"


def _short(found: Any) -> str:
    return f"{found:.4g}" if isinstance(found, float) else repr(found)


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
