"""Old names: each works for one release, and says what it is called now."""

import pytest

import prunelab as pl
from prunelab import lab


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
