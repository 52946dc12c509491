"""Layouts: the counts worth keeping, and layouts that tell all pairs of levels apart."""

import itertools

import pytest

from prunelab.budget.costs import LEVELS, any_keep, at_least, dense_layout, nearest, telling_layouts, widths
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


def test_rungs():
    assert [at_least((8, 16, 32), n) for n in (0, 8, 9, 17, 99)] == [8, 8, 16, 32, 32]
    assert [nearest((8, 16, 32), n) for n in (0, 12, 13, 25, 99)] == [8, 8, 16, 32, 32]


def test_a_keep_has_the_layouts_counts():
    groups = [group("a", 4), group("b", 3)]
    keep = any_keep(groups, {"a": 1, "b": 3})
    assert {n: int(k.sum()) for n, k in keep.items()} == {"a": 1, "b": 3}
    assert dense_layout(groups) == {"a": 4, "b": 3}


def test_groups_that_meet_take_every_pair_of_levels():
    names = "abcd"
    groups = [group(n, 32) for n in names]
    meet = [frozenset("ab"), frozenset("bc"), frozenset("cd"), frozenset("d"), frozenset()]
    found = telling_layouts(groups, {n: widths(group(n, 32), 8) for n in names}, meet)
    for one, other in ("ab", "bc", "cd"):
        pairs = {(x[one], x[other]) for x in found}
        assert pairs >= set(itertools.product([round(32 * level) for level in LEVELS], repeat=2))
    assert dense_layout(groups) in found
    assert any(x["a"] != x["c"] for x in found)  # of one colour, and yet told apart
    assert found == telling_layouts(groups, {n: widths(group(n, 32), 8) for n in names}, meet)
