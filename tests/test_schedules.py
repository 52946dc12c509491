"""From 0 to 1, never back, by the formulas."""

import math

import pytest

from prunelab import PruneError, schedules


@pytest.mark.parametrize(("name", "half"), [("one_shot", 1), ("linear", 0.5), ("cubic", 0.875), ("cosine", 0.5)])
def test_by_hand(name, half):
    schedule = schedules.by_name(name)
    assert schedule(0.0) == 0
    assert schedule(1.0) == 1
    assert schedule(0.5) == pytest.approx(half)


def test_more_by_hand():
    assert schedules.cubic(0.1) == pytest.approx(0.271)
    assert schedules.cosine(0.25) == pytest.approx((1 - math.sqrt(0.5)) / 2)


@pytest.mark.parametrize("name", schedules.SCHEDULES)
def test_never_goes_back_nor_beyond(name):
    shares = [schedules.SCHEDULES[name](i / 50) for i in range(51)]
    assert shares == sorted(shares)
    assert all(0 <= s <= 1 for s in shares)


@pytest.mark.parametrize("unknown", ["exponentiall", None, 3])
def test_unknown_names(unknown):
    with pytest.raises(
        PruneError,
        match=r"no schedule is called .*; there is between.start, end., cosine, .*, linear, one_shot",
    ):
        schedules.by_name(unknown)


def test_ones_own():
    assert schedules.by_name(math.sqrt) is math.sqrt
    with pytest.raises(PruneError, match="goes from 1 to 0"):
        schedules.by_name(lambda t: 1 - t)
    with pytest.raises(PruneError, match="goes from 0 to 100"):
        schedules.by_name(lambda t: 100 * t)
    with pytest.raises(PruneError, match="goes from nan"):
        schedules.by_name(lambda t: math.nan)
