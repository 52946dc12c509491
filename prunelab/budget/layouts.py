"""Layouts: how many units each group keeps; which counts are worth trying, and a few layouts to learn from."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import TypeAlias

import torch

from ..core import Group, Keep, PruneError

Layout: TypeAlias = dict[str, int]  # group name -> units kept
LEVELS = (1.0, 0.75, 0.5, 0.25)  # shares kept at which layers are timed
SCATTERED = 8  # layouts drawn at random


def check_sliced(groups: Sequence[Group]) -> None:
    """PruneError for groups of whole modules: what a layer costs is fitted to the channels that it keeps."""
    whole = next((g for g in groups if g.parts), None)
    if whole is not None:
        raise PruneError(
            f"{whole.name} holds whole modules, such as {whole.parts[0].path}, and a budget is searched for by the "
            'channels that layers keep: give How(granularity="neurons"), say, and remove whole modules with pl.prune '
            "and pl.shrink first"
        )


def dense_layout(groups: Sequence[Group]) -> Layout:
    """Everything stays."""
    return {g.name: g.units for g in groups}


def ladder(group: Group, round_to: int) -> tuple[int, ...]:
    """The counts worth keeping, ascending: multiples of round_to, where the group has enough units for it to matter.

    Processors compute in packs of eight or sixteen channels, so that what lies between costs as much as the next
    multiple. A unit that is itself a block of channels, such as a head, counts alone.
    """
    step = round_to if group.units >= 2 * round_to and group.members[0].block == 1 else 1
    return tuple(sorted({*range(step, group.units + 1, step), group.units}))


def at_least(rungs: Sequence[int], count: float) -> int:
    """The lowest rung that keeps so many; the highest if none does."""
    return next((r for r in rungs if r >= count), rungs[-1])


def nearest(rungs: Sequence[int], count: float) -> int:
    """The rung nearest to a count."""
    return min(rungs, key=lambda r: (abs(r - count), r))


def any_keep(groups: Sequence[Group], layout: Layout) -> Keep:
    """Some choice of units with these counts, for what depends on the counts alone: time, MACs, bytes."""
    return {g.name: torch.arange(g.units) < layout[g.name] for g in groups}


def telling_layouts(
    groups: Sequence[Group], rungs: Mapping[str, Sequence[int]], together: Iterable[frozenset[str]]
) -> list[Layout]:
    """Sixteen layouts in which every two groups that meet in a layer take every pair of levels, or nearly; and more.

    `together`: the sets of groups that meet. Groups that meet get different colours; the first colour counts through
    the levels in one digit, the second in the other, the others in the rows of Latin squares. Groups of one colour
    go in step there, so that dice throw some layouts in which they don't: what happens between layers shows only there.
    """
    colours = _colours([g.name for g in groups], list(together))
    n = len(LEVELS)
    found = []
    for a, b in product(range(n), range(n)):
        found.append({name: _square(colour, a, b) % n for name, colour in colours.items()})
    dice = random.Random(0)
    found += [{g.name: dice.randrange(n) for g in groups} for _ in range(SCATTERED)]
    found = [{g.name: nearest(rungs[g.name], LEVELS[x[g.name]] * g.units) for g in groups} for x in found]
    return [dict(t) for t in dict.fromkeys(tuple(f.items()) for f in found)]


def _square(colour: int, a: int, b: int) -> int:
    return (a, b, a + b, a + 2 * b, a + 3 * b, 2 * a + b, 3 * a + b)[colour % 7]


def _colours(names: Sequence[str], together: Sequence[frozenset[str]]) -> dict[str, int]:
    """A colour for each group, different from those of all groups it meets: greedily, the most met first."""
    met = {n: set().union(*(s for s in together if n in s)) - {n} for n in names}
    colours: dict[str, int] = {}
    for name in sorted(names, key=lambda n: (-len(met[n]), names.index(n))):
        used = {colours[m] for m in met[name] if m in colours}
        colours[name] = next(c for c in range(len(names) + 1) if c not in used)
    return colours
