"""How a cost is shared out among the layers: the same share of each, one contest of all, or by sensitivity and gain."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from torch import Tensor

from ..core import Group, PruneError
from ..sensitivity import Scan
from .costs import LatencyTable, Layout, at_least, dense_layout

STEPS = 128  # shares tried between all and nothing
TINY = 1e-6  # a rise of the loss below this counts as none: the saving alone decides

Limits: TypeAlias = Mapping[str, float]  # cost -> the fraction of the dense model's that it may reach
Worth: TypeAlias = Mapping[str, Tensor]  # group -> (units,) scores


@dataclass(frozen=True)
class Question:
    """All that a rule may look at: which groups may lose units, to which counts, what that saves and what it costs."""

    groups: tuple[Group, ...]
    widths: Mapping[str, Sequence[int]]
    costs: LatencyTable
    worth: Worth
    scan: Scan | None = None

    @property
    def dense(self) -> Layout:
        """Everything stays, in the groups that may not be touched, too."""
        return dense_layout(self.costs.groups)

    def meets(self, layout: Layout, limits: Limits) -> bool:
        """Whether the predicted costs are within the limits."""
        return all(self.costs.ratio(layout, cost) <= limit for cost, limit in limits.items())


Rule: TypeAlias = Callable[[Question, Limits], Layout]


def uniform(question: Question, limits: Limits) -> Layout:
    """The same share of every group."""

    def at(share: float) -> Layout:
        return {g.name: at_least(question.widths[g.name], round((1 - share) * g.units)) for g in question.groups}

    return _first_that_meets(question, limits, at)


def global_ranking(question: Question, limits: Limits) -> Layout:
    """The lowest scores of all groups together go: a global threshold, on scores relative to each layer's usual."""
    everything = np.concatenate([question.worth[g.name].double().cpu().numpy() for g in question.groups])
    ordered = np.sort(everything)

    def at(share: float) -> Layout:
        bar = ordered[min(int(share * len(ordered)), len(ordered) - 1)]
        kept = {g.name: int((question.worth[g.name].double() >= float(bar)).sum()) for g in question.groups}
        return {g.name: at_least(question.widths[g.name], max(kept[g.name], 1)) for g in question.groups}

    return _first_that_meets(question, limits, at)


def by_sensitivity(question: Question, limits: Limits) -> Layout:
    """Take, again and again, what raises the loss least for each millisecond (byte, MAC) that it saves.

    rise(group, count) is the scan's, a straight line between its points and beyond the last; the saving is the
    table's, given all that went before: a convolution that has lost half of its inputs saves only half as much.
    Yang et al. 2018, NetAdapt, arXiv 1804.03230, takes one layer a step too, by accuracy after a short retraining.
    """
    rises = {g.name: _rise(question, g) for g in question.groups}
    layout = question.dense
    while not question.meets(layout, limits):
        cost = max(limits, key=lambda c: question.costs.ratio(layout, c) / limits[c])
        step = _cheapest_step(question, layout, rises, cost)
        if step is None:
            raise _unreachable(question, layout, limits)
        layout = {**layout, **step}
    return _given_back(question, layout, rises, limits)


RULES: dict[str, Rule] = {"uniform": uniform, "global": global_ranking, "sensitivity": by_sensitivity}


def smallest(question: Question) -> Layout:
    """As little as the widths allow, of every group that may be touched."""
    return {**question.dense, **{g.name: question.widths[g.name][0] for g in question.groups}}


def _first_that_meets(question: Question, limits: Limits, at: Callable[[float], Layout]) -> Layout:
    """The least share that meets the limits, found by halving: costs fall as the share grows."""

    def whole(step: int) -> Layout:
        return {**question.dense, **at(step / STEPS)}

    step = bisect_left(range(STEPS + 1), True, key=lambda i: question.meets(whole(i), limits))
    if step > STEPS:
        raise _unreachable(question, whole(STEPS), limits)
    return whole(step)


def _rise(question: Question, group: Group) -> Callable[[int], float]:
    """The rise of the loss by the units kept, never falling as more go."""
    assert question.scan is not None
    curve = question.scan.curve(group.name)
    points = {0: 0.0, **dict(zip(curve.removed, (v - question.scan.dense.loss for v in curve.loss), strict=True))}
    removed = np.array(sorted(points), float)
    rise = np.maximum.accumulate(np.array([points[int(n)] for n in removed]))
    slope = max((rise[-1] - rise[-2]) / (removed[-1] - removed[-2]), TINY) if len(removed) > 1 else TINY

    def at(kept: int) -> float:
        gone = group.units - kept
        return float(np.interp(gone, removed, rise) + max(0.0, gone - removed[-1]) * slope)

    return at


def _cheapest_step(
    question: Question, layout: Layout, rises: Mapping[str, Callable[[int], float]], cost: str
) -> Layout | None:
    """The removal from one group, of one width or more, that saves most for what it costs; None if nothing saves."""
    best, chosen, now = 0.0, None, question.costs.predict(layout, cost)
    for group in question.groups:
        at = layout[group.name]
        for fewer in (w for w in question.widths[group.name] if w < at):
            saved = now - question.costs.predict({**layout, group.name: fewer}, cost)
            worth = saved / max(rises[group.name](fewer) - rises[group.name](at), TINY)
            if worth > best:
                best, chosen = worth, {group.name: fewer}
    return chosen


def _given_back(
    question: Question, layout: Layout, rises: Mapping[str, Callable[[int], float]], limits: Limits
) -> Layout:
    """Put back what the last steps took too much, the dearest first, as long as the limits hold."""
    while True:
        back = []
        for group in question.groups:
            more = [r for r in question.widths[group.name] if r > layout[group.name]]
            if more and question.meets({**layout, group.name: more[0]}, limits):
                relief = rises[group.name](layout[group.name]) - rises[group.name](more[0])
                back.append((relief, group.name, more[0]))
        if not back:
            return layout
        _, name, units = max(back)
        layout = {**layout, name: units}


def _unreachable(question: Question, layout: Layout, limits: Limits) -> PruneError:
    got = ", ".join(f"{cost} {question.costs.ratio(layout, cost):.2f} of {limit:.2f}" for cost, limit in limits.items())
    return PruneError(f"out of reach with {', '.join(g.name for g in question.groups)}: predicted {got}")
