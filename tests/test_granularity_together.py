"""Several granularities as one: all that they find, nothing twice."""

import pytest
from torch import nn

import prunelab as pl
from prunelab import PruneError, units, zoo
from prunelab.granularity import Together


def test_it_finds_what_each_finds(build, data_for):
    x, _ = data_for("cnn")
    both = Together(("filters", "neurons"))(build("cnn"), x)
    assert both == pl.granularity.filters(build("cnn"), x)  # it has no neurons, which is no failure
    found = Together(("neurons", "filters")).found(build("mlp"), data_for("mlp")[0])
    assert list(found) == ["neurons"]


def test_what_one_has_claimed_no_other_gets(data_for):
    model = zoo.vit(width=16, depth=1, heads=4, hidden=8, pixels=8, patch=4)
    x = zoo.load("digits").train[:2][0][..., :8, :8]
    alone = {n: pl.granularity.GRANULARITIES[n](model, x) for n in ("heads", "coupled")}
    found = Together(("heads", "coupled")).found(model, x)
    assert found["heads"] == alone["heads"]
    rows = [(m.tensor, m.dim, i) for groups in found.values() for g in groups for m in g.members
            for i in units.index(m, g.units).flatten().tolist()]  # fmt: skip
    assert len(rows) == len(set(rows))
    assert {g.name for g in alone["coupled"]} >= {g.name for g in found["coupled"]}
    assert Together(("coupled", "coupled")).found(model, x) == {"coupled": alone["coupled"]}


def test_single_weights_are_left_only_where_no_slice_is_claimed(build, data_for):
    x = data_for("mlp")[0]
    model = nn.Sequential(build("mlp"), nn.LSTM(3, 2)).eval()  # no granularity of slices takes a part of the LSTM's
    slices, rest = Together(("neurons", "weights")).found(model, x).values()
    sliced, single = ({m.tensor for g in groups for m in g.members} for groups in (slices, rest))
    assert all((sliced, single))
    assert not sliced & single
    assert list(Together(("weights", "neurons")).found(model, x)) == ["weights"]


def test_bad_input(build, data_for):
    with pytest.raises(PruneError, match="no granularity is called 'grains'"):
        Together(("filters", "grains"))
    with pytest.raises(PruneError, match=r"Linear has no structure.*filters: .*neurons: "):
        Together(("filters", "neurons"))(nn.Linear(6, 3), data_for("mlp")[0])


def test_what_could_not_look_is_no_nothing(build):
    """Without an example filters can't be traced: that is told, and heads alone are not all that was asked for."""
    with pytest.raises(PruneError, match="example"):
        Together(("heads", "filters"))(build("attention"))


def test_what_stays_is_told_by_all(build, data_for):
    x = data_for("cnn")[0]
    assert Together(("filters", "neurons"))(build("cnn"), x).stays == pl.granularity.coupled(build("cnn"), x).stays
