"""What an argument must be; and old names, each of which works for one release and says what it is called now."""

import pytest

import prunelab as pl
from prunelab import lab
from prunelab.checks import known


@pytest.mark.parametrize(
    ("package", "old", "new"),
    [
        (pl.recovery, "reestimate", pl.recovery.recalibrate_batchnorm),
        (pl.budget, "How", pl.budget.SearchOptions),
        (pl.measurement, "pitfalls", lab.physics),
        (pl.measurement, "roofline", lab.physics.roofline),
    ],
)
def test_an_old_name_warns_and_works(package, old, new):
    with pytest.warns(DeprecationWarning, match=f"{old} is now "):
        assert getattr(package, old) is new


def test_what_never_was_is_no_name():
    with pytest.raises(AttributeError, match="no attribute 'luck'"):
        pl.budget.luck  # noqa: B018


@pytest.mark.parametrize("given", ["dense", 3, None, ["csr", ["dense"]], ("csr", "luck")])
def test_what_is_none_of_the_choices_is_refused(given):
    with pytest.raises(pl.PruneError, match=r"give a tuple with some of \('dense', 'csr'\)"):
        known("formats", given, ("dense", "csr"))


def test_of_several_names_the_wrong_one_is_said():
    with pytest.raises(pl.PruneError, match="'luck' is none of them"):
        known("formats", ("csr", "luck", "dense"), ("dense", "csr"))
