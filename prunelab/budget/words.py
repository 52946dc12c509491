"""The verdict in words: what was met, at what price, what is missing, and when not to prune at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..measurement.text import percent
from .goals import Goals
from .layer_costs import REST, LatencyTable
from .layouts import Layout
from .rules import Limits
from .trials import Trial, shortfall

WORTH = 1.1  # times faster: less is not worth a pruned model
DEAR = 0.1  # of the labels: a drop beyond which a smaller network trained from the start may well be better
NAMES = {"latency": "latency", "bytes": "bytes", "macs": "MACs"}


def verdict(chosen: Trial, dense: Trial, trials: Sequence[Trial], goals: Goals, left_alone: Sequence[str]) -> str:
    """The result, in a few sentences."""
    said = [_dont(dense, trials, goals)] if chosen is dense else _pruned(chosen, dense, goals)
    if left_alone:
        said.append(f"Left as they are: {listed(left_alone)}.")
    return " ".join(said)


def missed(chosen: Trial, dense: Trial, trials: Sequence[Trial], goals: Goals) -> str:
    """Why the goals are not met, and how near it got; of goals that contradict each other, both ends."""
    limits = goals.fractions(dense.costs)
    said = f"not met: {goals}. The nearest, {chosen.name}: {how_near(chosen, dense, goals)}."
    if not limits or goals.max_drop is None:
        return said
    accurate = [t for t in trials if t is not dense and dense.accuracy - t.accuracy <= goals.max_drop]
    cheapest = min(accurate, key=lambda t: t.ratios[goals.aim], default=None)
    other = "nothing that was tried" if cheapest is None else f"{percent(cheapest.ratios[goals.aim])} ({cheapest.name})"
    return (
        f"{said} The two goals contradict each other here: within the drop, the lowest {NAMES[goals.aim]} found is "
        f"{other}. Allow a larger drop, a higher cost, or more recover_steps"
    )


def how_near(trial: Trial, dense: Trial, goals: Goals) -> str:
    """What a trial has, beside what was asked for."""
    drop = dense.accuracy - trial.accuracy
    parts = [too_much(trial.ratios, goals.fractions(dense.costs))]
    if goals.max_drop is not None and drop > goals.max_drop:
        parts.append(f"it loses {100 * drop:.1f} points of accuracy, and {100 * goals.max_drop:g} were allowed")
    return "; ".join(p for p in parts if p)


def too_much(ratios: Mapping[str, float], limits: Limits) -> str:
    """Which costs are above their limits, and by how much."""
    return ", ".join(
        f"it has {percent(ratios[cost])} of the dense model's {NAMES[cost]}, and {percent(limit)} was asked for"
        for cost, limit in limits.items()
        if ratios[cost] > limit
    )


def remains(table: LatencyTable, layout: Layout, most: int = 3) -> str:
    """Where the time of a layout goes: its slowest layers."""
    shares = {g.name: layout[g.name] / g.units for g in table.groups}
    times = {name: max(fit.at(shares), 0.0) for name, fit in table.fits["latency"].items()}
    total = max(sum(times.values()), 1e-12)
    slowest = sorted(times, key=lambda n: -times[n])[:most]
    said = {REST: "what lies between the layers"}
    return ", ".join(f"{said.get(n, n)} takes {percent(times[n] / total)}" for n in slowest)


def listed(names: Sequence[str], most: int = 6) -> str:
    """The first few, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def _pruned(chosen: Trial, dense: Trial, goals: Goals) -> list[str]:
    loss = dense.accuracy - chosen.accuracy
    said = [
        f"{'Goal met' if chosen.meets else 'Goal not met'}: {chosen.name} takes {percent(chosen.ratios['latency'])} of "
        f"the dense model's time ({chosen.speedup} times faster), {percent(chosen.ratios['bytes'])} of its bytes and "
        f"{percent(chosen.ratios['macs'])} of its MACs.",
        f"On the validation data it reads {percent(chosen.accuracy)}, the dense model {percent(dense.accuracy)}.",
    ]
    if not chosen.meets:
        said.append(f"What is missing: {how_near(chosen, dense, goals)}.")
    if loss > DEAR:
        said.append(f"That loses {100 * loss:.1f} points: compare it with a smaller network trained from the start.")
    return said


def _dont(dense: Trial, trials: Sequence[Trial], goals: Goals) -> str:
    if goals.costs:
        if dense.meets:
            return "Don't prune: the dense model is within the goal as it is."
        return f"Don't prune this model for this: nothing that was tried comes within the goal ({goals})."
    within = [t for t in trials if t is not dense and not shortfall(t, goals, dense)]
    fastest = min(within, key=lambda t: t.ratios["latency"], default=None)
    if fastest is None:
        return f"Don't prune this model for this: whatever was tried loses more ({goals}), or gains no time."
    return (
        f"Don't prune: the fastest that was tried within the goal ({goals}) is {fastest.speedup} times faster, which "
        "is not worth a pruned model."
    )
