"""A comparison in words: where a pruned model is faster, and where it is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..core import PruneError
from .text import shown_as_table
from .timing import Comparison, Speedup, compare

MARGIN = 0.1  # a tenth: less than that is not worth a word
WORDS = {
    "faster": "is faster than {}",
    "alike": "is no faster than {}",
    "slower": "is slower than {}",
    "unclear": "can't be told from {}",
}


@shown_as_table
@dataclass(frozen=True, repr=False)
class Verdict:
    """What may be said of each model at each batch size, from measured intervals alone.

    speedups: model -> batch -> how many times faster than the baseline; margin: how much faster counts
    """

    baseline: str
    speedups: dict[str, dict[int, Speedup]]
    margin: float
    conditions: str

    def outcome(self, model: str, batch: int) -> str:
        """One of "faster", "alike", "slower" and "unclear"."""
        return outcome(self.speedups[model][batch], self.margin)

    def words(self, model: str) -> str:
        """The verdict on one model, as a sentence."""
        found: dict[str, list[int]] = {}
        for batch in self.speedups[model]:
            found.setdefault(self.outcome(model, batch), []).append(batch)
        parts = [
            f"{words.format(self.baseline)} at batch {_listed(found[kind])}"
            for kind, words in WORDS.items()
            if kind in found
        ]
        return f"{model} {', and '.join(parts)}, here ({self.conditions})."

    def _lines(self) -> tuple[str, list[str], list[list[str]]]:
        batches = list(next(iter(self.speedups.values())))
        rows = [[name, *(str(own[b]) for b in batches), self.words(name)] for name, own in self.speedups.items()]
        head = ["model", *(f"batch {b}" for b in batches), "verdict"]
        return f"Times faster than {self.baseline} [95 %], {self.conditions}", head, rows


def outcome(speedup: Speedup, margin: float = MARGIN) -> str:
    """What an interval allows to say: "faster" or "slower" beyond the margin, "alike" all within it, or "unclear"."""
    if speedup.low > 1 + margin:
        return "faster"
    if speedup.high < 1 / (1 + margin):
        return "slower"
    return "alike" if 1 / (1 + margin) <= speedup.low and speedup.high <= 1 + margin else "unclear"


def verdict(
    models: Mapping[str, nn.Module],
    example_or_data: Any,
    batches: Sequence[int] = (1, 64),
    *,
    margin: float = MARGIN,
    threads: int = 1,
    rounds: int | None = None,
    clock: str = "steady",
) -> Verdict:
    """Compare models with the first of them at several batch sizes, and say in words which is faster where.

    Raises PruneError as `compare` does, and if there is nothing to compare.
    """
    if len(models) < 2 or not batches:
        raise PruneError(
            f"{len(models)} model(s) at {len(batches)} batch sizes: give at least two models, one batch size"
        )
    found = {
        b: compare(models, example_or_data, batch_size=b, threads=threads, rounds=rounds, clock=clock) for b in batches
    }
    return of(found, margin)


def of(comparisons: Mapping[int, Comparison], margin: float = MARGIN) -> Verdict:
    """The verdict on comparisons that were made already: batch -> comparison."""
    first = next(iter(comparisons.values()))
    base = first.baseline
    names = [name for name in first.latency if name != base]
    where = first.latency[base].conditions.split(", ", 1)[1]
    return Verdict(base, {n: {b: c.speedup[n] for b, c in comparisons.items()} for n in names}, margin, where)


def _listed(batches: Sequence[int]) -> str:
    *most, last = map(str, batches)
    return f"{', '.join(most)} and {last}" if most else last
