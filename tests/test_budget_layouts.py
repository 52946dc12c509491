"""Layouts: the counts worth keeping, and layouts that tell all pairs of levels apart."""

import itertools
from dataclasses import replace

import pytest

from prunelab.budget.costs import LEVELS, REPEATS, any_keep, at_least, dense_layout, telling_layouts, widths
from prunelab.core import Group, Member


def group(name, units, block=1):
    return Group(name, units, (Member(name, 0, block),))


@pytest.mark.parametrize(
    ("units", "block", "step", "rungs"),
    [
        (32, 1, 8, (8, 16, 24, 32)),
        (32, 1, 16, (16, 32)),
        (20, 1, 8, (8, 16, 20)),  # all of it is always allowed
        (15, 1, 8, tuple(range(1, 16))),  # too few for packs to matter
        (8, 6, 8, tuple(range(1, 9))),  # heads count alone
    ],
)
def test_the_widths(units, block, step, rungs):
    assert widths(group("a", units, block), step) == rungs
    assert widths(replace(group("a", units, block), floor=3), step) == tuple(w for w in rungs if w >= 3)


def test_rungs():
    assert [at_least((8, 16, 32), n) for n in (0, 8, 9, 17, 99)] == [8, 8, 16, 32, 32]


def test_a_keep_has_the_layouts_counts():
    groups = [group("a", 4), group("b", 3)]
    keep = any_keep(groups, {"a": 1, "b": 3})
    assert {n: int(k.sum()) for n, k in keep.items()} == {"a": 1, "b": 3}
    assert dense_layout(groups) == {"a": 4, "b": 3}


def test_every_group_has_every_level_as_often_and_groups_are_told_apart():
    groups = [group(n, 32) for n in "abcd"]
    candidates = {g.name: widths(g, 8) for g in groups}
    dense, *found = telling_layouts(groups, candidates)
    assert dense == dense_layout(groups)
    for g in groups:
        assert sorted(x[g.name] for x in found) == sorted([round(32 * level) for level in LEVELS] * REPEATS)
    for one, other in itertools.combinations("abcd", 2):
        assert len({(x[one], x[other]) for x in found}) >= 10  # of the 16 pairs of levels
    assert [dense, *found] == telling_layouts(groups, candidates)
    assert len(telling_layouts(groups[:1], candidates)) == len(LEVELS)  # each layout once
