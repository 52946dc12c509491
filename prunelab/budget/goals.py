"""What is asked for: costs that must not be exceeded, and how much accuracy may go."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..checks import check_number
from ..core import PruneError
from ..text import percent, seconds, size

UNITS: dict[str, dict[str, float]] = {
    "latency": {"s": 1, "ms": 1e-3, "us": 1e-6, "µs": 1e-6},
    "bytes": {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9},
    "macs": {"MACs": 1, "kMACs": 1e3, "MMACs": 1e6, "GMACs": 1e9},
}
EXAMPLES = {"latency": '"2.5 ms"', "bytes": '"300 kB"', "macs": '"1.5 MMACs"'}
_QUANTITY = re.compile(r"\s*([0-9]*\.?[0-9]+(?:e-?\d+)?)\s*([A-Za-zµ]+)\s*")


@dataclass(frozen=True)
class Goal:
    """A cost that must not be exceeded: a fraction of the dense model's, or seconds, bytes or MACs."""

    cost: str
    limit: float
    relative: bool = True

    def fraction(self, dense: float) -> float:
        """The limit as a fraction of what the dense model costs."""
        return self.limit if self.relative else self.limit / dense

    def __str__(self) -> str:
        if self.relative:
            return f"{self.cost} at most {percent(self.limit)} of the dense model's"
        return f"{self.cost} at most {written(self.cost, self.limit)}"


@dataclass(frozen=True)
class Goals:
    """All that was asked for. Without a cost: the fastest model within the drop."""

    costs: tuple[Goal, ...]
    max_drop: float | None

    @property
    def aim(self) -> str:
        """The cost that counts most: the first one asked for, or latency."""
        return self.costs[0].cost if self.costs else "latency"

    def fractions(self, dense: Mapping[str, float]) -> dict[str, float]:
        """Each limit as a fraction of the dense model's cost."""
        return {g.cost: g.fraction(dense[g.cost]) for g in self.costs}

    def __str__(self) -> str:
        drop = [] if self.max_drop is None else [f"at most {100 * self.max_drop:g} points of accuracy lost"]
        return "; ".join([*map(str, self.costs), *drop])


def goals(latency: Any = None, bytes: Any = None, macs: Any = None, max_drop: Any = None) -> Goals:
    """The goals, checked.

    A number in (0, 1] is a fraction of the dense model's cost; a text has its unit, "2.5 ms"; a whole number of bytes
    or MACs above 1 is that count. max_drop is a fraction of all labels: 0.01 is one point.

    >>> print(goals(latency="2.5 ms", bytes=0.3, max_drop=0.01))
    latency at most 2.50 ms; bytes at most 30.0 % of the dense model's; at most 1 points of accuracy lost
    >>> goals(latency="2.5 ms").fractions({"latency": 0.01})  # of a dense model that takes 10 ms
    {'latency': 0.25}
    """
    given = {"latency": latency, "bytes": bytes, "macs": macs}
    costs = tuple(_goal(cost, value) for cost, value in given.items() if value is not None)
    if not costs and max_drop is None:
        raise PruneError("no goal: give latency=, bytes= or macs= (0.5: half of the dense model's), or max_drop=0.01")
    if max_drop is not None:
        big = isinstance(max_drop, (int, float)) and 1 <= max_drop < 100
        meant = f" Did you mean {max_drop / 100:g}?" if big else ""
        wanted = f"give the share of labels that may be lost, 0.01 for one point.{meant}"
        check_number("max_drop", max_drop, wanted, least=0, below=1)
    return Goals(costs, None if max_drop is None else float(max_drop))


def written(cost: str, value: float) -> str:
    """A cost with its unit."""
    if cost == "latency":
        return seconds(value)[0]
    return size(round(value)) if cost == "bytes" else f"{round(value):,} MACs"


def _goal(cost: str, value: Any) -> Goal:
    if isinstance(value, str):
        return Goal(cost, _quantity(cost, value), relative=False)
    wanted = f"give a fraction of the dense model's, such as 0.5, or a text with its unit, such as {EXAMPLES[cost]}"
    check_number(cost, value, wanted, above=0)
    if value <= 1:
        return Goal(cost, float(value))
    if isinstance(value, int) and cost != "latency":
        return Goal(cost, float(value), relative=False)
    guess = f"did you mean {float(value) / 100:g}?" if value <= 100 else "that is more than all of it"
    raise PruneError(f"{cost}={value!r} is a fraction of the dense model's: {guess} Or give a unit: {EXAMPLES[cost]}")


def _quantity(cost: str, text: str) -> float:
    found = _QUANTITY.fullmatch(text)
    units = UNITS[cost]
    if found is None or found[2] not in units or not float(found[1]) > 0:
        raise PruneError(f"{cost}={text!r}: give a number and its unit ({', '.join(units)}), such as {EXAMPLES[cost]}")
    return float(found[1]) * units[found[2]]
