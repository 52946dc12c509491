import numpy as np
import pytest
import torch

from prunelab import lab
from prunelab.lab.learn import claim

HOLDS = [
    (5, {"equals": 5}),
    (torch.tensor(5), {"equals": 5}),
    ([1, 2], {"equals": [1, 2]}),
    (np.array([1, 2]), {"equals": [1, 2]}),
    (True, {"equals": True}),
    ("csr", {"equals": "csr"}),
    (0.5, {"between": (0.5, 0.6)}),
    (np.float32(2.0), {"at_least": 2}),
    (torch.tensor(0.25), {"at_most": 0.25}),
]
FAILS = [
    (6, {"equals": 5}),
    (1, {"equals": True}),
    (True, {"equals": 1}),
    ([1, 3], {"equals": [1, 2]}),
    ([1], {"equals": [1, 2]}),
    (None, {"equals": 5}),
    (0.61, {"between": (0.5, 0.6)}),
    (0.49, {"between": (0.5, 0.6)}),
    (1.99, {"at_least": 2}),
    (0.26, {"at_most": 0.25}),
    ("many", {"at_least": 2}),
    (True, {"at_least": 0.5}),
]


@pytest.mark.parametrize(("value", "kind"), HOLDS)
def test_a_claim_that_holds_shows_its_text(value, kind, capsys):
    assert lab.claim("It is so.", value, **kind) is None
    assert capsys.readouterr().out.startswith("✓ It is so.")


@pytest.mark.parametrize(("value", "kind"), FAILS)
def test_a_claim_that_does_not_hold_says_what_was_claimed_and_measured(value, kind):
    with pytest.raises(lab.ClaimError) as caught:
        lab.claim("It is so.", value, **kind)
    assert "It is so." in str(caught.value)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("kind", [{"equals": 1.0}, {"between": (0, 1)}, {"at_least": -1e9}, {"at_most": 1e9}])
@pytest.mark.parametrize("nan", [float("nan"), torch.tensor(float("nan")), np.float64("nan")])
def test_nan_never_holds(nan, kind):
    with pytest.raises(AssertionError):
        lab.claim("Not a number.", nan, **kind)


@pytest.mark.parametrize(
    "kinds",
    [
        {},
        {"at_least": 1, "at_most": 2},
        {"equals": 1, "between": (0, 2)},
        {"near": 1},
        {"at_least": float("-inf")},
        {"at_most": float("inf")},
        {"at_most": float("nan")},
        {"equals": float("nan")},
        {"between": (float("-inf"), float("inf"))},
        {"between": (2, 1)},
        {"between": (1, 1)},
        {"between": (1,)},
        {"at_least": None},
        {"at_least": "1"},
    ],
)
def test_a_claim_that_could_not_fail_or_has_no_single_bound_is_refused(kinds):
    with pytest.raises(ValueError, match=r"claim|bound|between"):
        lab.claim("Vacuous.", 1.0, **kinds)


def test_a_claim_within_bounds_shows_the_value_in_the_measured_form(capsys):
    lab.claim("The network is right.", 0.94321, between=(0.9, 0.97))
    assert capsys.readouterr().out == "✓ The network is right. (≈ 0.943; claimed: between 0.9 and 0.97)\n"


def test_a_sentence_in_percent_is_answered_in_percent(capsys):
    lab.claim("It reads 94 % of them.", 0.94321, between=(0.92, 0.955))
    assert capsys.readouterr().out == "✓ It reads 94 % of them. (≈ 94.3 %; claimed: between 92 % and 95.5 %)\n"
    lab.claim("60 % and 40 % go.", [60, 40], equals=[60, 40])
    assert capsys.readouterr().out == "✓ 60 % and 40 % go.\n"
    lab.claim("At 80 % it takes 27 ms.", 27.1, at_least=20)
    assert capsys.readouterr().out == "✓ At 80 % it takes 27 ms. (≈ 27.1; claimed: at least 20)\n"


def test_bounds_read_as_words():
    assert [str(claim.Bound(k, 2)) for k in ("equals", "at_least", "at_most")] == [
        "equals 2",
        "at least 2",
        "at most 2",
    ]


def test_the_numbers_of_a_text_are_held_to_the_run(monkeypatch, capsys):
    entries = [
        {"says": "It reads 94 %.", "value": "right * 100", "between": [92, 96]},
        {"says": "It has 10 weights.", "value": "len(weights)", "equals": 10},
    ]
    monkeypatch.setattr(claim.exercise, "texts", lambda _: {"numbers": entries})
    names = {"right": 0.94, "weights": torch.zeros(10)}
    lab.check_numbers("01", names)
    assert capsys.readouterr().out == "✓ 2 numbers of this text were compared with your run: all hold.\n"
    assert set(names) == {"right", "weights"}
    with pytest.raises(lab.ClaimError, match=r"1 of 2 numbers .*\n.*10 weights.*Here it is 9\."):
        lab.check_numbers("01", names | {"weights": torch.zeros(9)})
    with pytest.raises(lab.ClaimError, match=r"(?s)`right \* 100` can't be computed here \(NameError"):
        lab.check_numbers("01", {"weights": torch.zeros(10)})
    entries[0] |= {"at_most": 3}
    with pytest.raises(ValueError, match="exactly one"):
        lab.check_numbers("01", names)


def test_a_time_that_came_out_otherwise_is_told_and_raises_nothing(monkeypatch, capsys):
    entries = [
        {"says": "It is twice as fast.", "value": "faster", "between": [1.5, 3], "clock": True},
        {"says": "It has 10 weights.", "value": "weights", "equals": 10},
    ]
    monkeypatch.setattr(claim.exercise, "texts", lambda _: {"numbers": entries})
    lab.check_numbers("01", {"faster": 2.0, "weights": 10})
    assert capsys.readouterr().out.endswith(" all hold.\n")
    lab.check_numbers("01", {"faster": 1.2, "weights": 10})
    told = capsys.readouterr().out
    assert '1 hold. Times are your machine\'s own; here it is otherwise with "It is twice as fast."' in told
    assert told.endswith("Here it is 1.2.\n")
    with pytest.raises(lab.ClaimError, match=r"1 of 2 numbers .*\n.*10 weights.*Here it is 9\."):
        lab.check_numbers("01", {"faster": 1.2, "weights": 9})
    with pytest.raises(lab.ClaimError, match="can't be computed"):
        lab.check_numbers("01", {"weights": 10})
