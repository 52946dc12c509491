"""Rules on a table made by hand, where the right answer is known."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from prunelab import PruneError
from prunelab.budget.costs import LatencyTable
from prunelab.budget.rules import RULES, Question, by_sensitivity, global_ranking, smallest, uniform
from prunelab.core import Group, Member
from prunelab.measurement import Evaluation
from prunelab.sensitivity import Curve, Scan

UNITS = {"a": 8, "b": 8}
GROUPS = tuple(Group(n, u, (Member(n, 0),)) for n, u in UNITS.items())


def question(fits, rises=None, worth=None, only="ab"):
    """A table of the given fits, and a scan in which each group's loss rises in a straight line to the given value."""
    table = LatencyTable(GROUPS, (), {"latency": fits}, "")
    worth = worth or {n: torch.arange(u, dtype=torch.float) for n, u in UNITS.items()}
    dense = Evaluation(1.0, 1.0, 10, 10)
    curves = [Curve(n, u, (4, 6), (9, 9), (1 + r / 2, 1 + 3 * r / 4)) for (n, u), r in
              zip(UNITS.items(), rises or (1, 1), strict=True)]  # fmt: skip
    groups = tuple(g for g in GROUPS if g.name in only)
    return Question(
        groups, {n: tuple(range(1, 9)) for n in UNITS}, table, worth, Scan((0.5, 0.75), tuple(curves), dense)
    )


def fit(**terms):
    """W for terms such as a=3.0, ab=1.0 and rest=2.0, which stays whatever is kept."""
    places = {"rest": (0, 0), "a": (0, 1), "b": (0, 2), "ab": (1, 2)}
    found = np.zeros((3, 3))
    for term, weight in terms.items():
        found[places[term]] = weight
    return found


SEPARATE = {"x": fit(a=3.0), "y": fit(b=1.0)}  # a costs three times as much as b
PRODUCT = {"x": fit(ab=1.0)}  # a layer that reads a and makes b
FLOOR = {"x": fit(rest=2.0, a=1.0, b=1.0)}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("fits", [SEPARATE, PRODUCT, FLOOR], ids=["separate", "product", "floor"])
@pytest.mark.parametrize("limit", [0.55, 0.75, 0.9])
def test_the_limit_is_met_and_nothing_could_be_put_back(rule, fits, limit):
    asked = question(fits)
    if fits is FLOOR and limit < 0.6:
        limit = 0.65
    layout = RULES[rule](asked, {"latency": limit})
    assert asked.costs.ratio(layout) <= limit
    assert set(layout) == set(UNITS)
    if rule == "sensitivity":
        for name, kept in layout.items():
            assert kept == 8 or asked.costs.ratio({**layout, name: kept + 1}) > limit


def test_uniform_takes_the_same_of_both():
    assert uniform(question(SEPARATE), {"latency": 0.5}) == {"a": 4, "b": 4}
    assert uniform(question(PRODUCT), {"latency": 0.25}) == {"a": 4, "b": 4}


def test_global_ranking_takes_the_lowest():
    worth = {"a": torch.arange(8.0), "b": torch.arange(8.0) + 100}
    assert global_ranking(question(SEPARATE, worth=worth), {"latency": 0.65}) == {"a": 4, "b": 8}


def test_sensitivity_weighs_the_rise_against_the_saving():
    assert by_sensitivity(question(SEPARATE), {"latency": 0.7}) == {"a": 4, "b": 8}  # equal rise, a saves thrice
    assert by_sensitivity(question(SEPARATE, rises=(10, 1)), {"latency": 0.82}) == {"a": 8, "b": 2}


def test_what_was_taken_too_much_goes_back_to_whom_it_hurts_most():
    assert by_sensitivity(question(FLOOR, rises=(1, 3)), {"latency": 0.75}) == {"a": 1, "b": 7}


def test_a_loss_that_falls_again_does_not_make_more_pruning_cheaper():
    alike = {"x": fit(a=1.0), "y": fit(b=1.0)}
    asked = question(alike, rises=(0, 0.4))
    falls = replace(asked.scan.curves[0], loss=(1.5, 1.1))  # of four units that went, and of six
    asked = replace(asked, scan=replace(asked.scan, curves=(falls, asked.scan.curves[1])))
    assert by_sensitivity(asked, {"latency": 0.8}) == {"a": 8, "b": 4}  # b's cost 0.2, a's 0.5


def test_sensitivity_is_the_best_there_is_on_straight_lines():
    rises = (2.0, 1.0)
    asked = question(SEPARATE, rises=rises)
    for limit in (0.9, 0.75, 0.6):
        layout = by_sensitivity(asked, {"latency": limit})
        pay = lambda x: sum(r * (8 - x[n]) / 8 for r, n in zip(rises, UNITS, strict=True))  # noqa: E731
        every = [{"a": a, "b": b} for a, b in itertools.product(range(1, 9), repeat=2)]
        best = min(pay(x) for x in every if asked.costs.ratio(x) <= limit)
        assert pay(layout) <= best + 0.26  # within one unit: greedy steps, whole units


def test_beyond_the_scan_it_gets_no_cheaper():
    asked = question(SEPARATE)
    layout = by_sensitivity(asked, {"latency": 0.2})  # more than the six units that were scanned
    assert asked.costs.ratio(layout) <= 0.2


@pytest.mark.parametrize("rule", RULES)
def test_out_of_reach(rule):
    with pytest.raises(PruneError, match=r"out of reach with a, b: predicted latency 0\.\d+ of 0\.30"):
        RULES[rule](question(FLOOR), {"latency": 0.3})


@pytest.mark.parametrize("rule", RULES)
def test_only_what_may_be_touched_is(rule):
    layout = RULES[rule](question(SEPARATE, only="b"), {"latency": 0.9})
    assert layout["a"] == 8
    assert layout["b"] < 8
    assert smallest(question(SEPARATE, only="b")) == {"a": 8, "b": 1}


def test_two_limits_at_once():
    fits = {"latency": SEPARATE, "bytes": {"x": fit(b=1.0)}}
    asked = question(SEPARATE)
    both = Question(asked.groups, asked.widths, LatencyTable(GROUPS, (), fits, ""), asked.worth, asked.scan)
    for rule in RULES.values():
        layout = rule(both, {"latency": 0.6, "bytes": 0.5})
        assert both.costs.ratio(layout) <= 0.6
        assert layout["b"] <= 4
