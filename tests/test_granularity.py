"""Single weights as groups."""

from functools import partial

import pytest
from torch import nn

from prunelab import PruneError, granularity
from prunelab.core import Group, Member


def test_one_group_a_tensor_one_unit_an_entry(build):
    assert granularity.weights(build("mlp")) == [
        Group("0.weight", 48, (Member("0.weight"),)),
        Group("2.weight", 24, (Member("2.weight"),)),
    ]


def test_tied_weights_are_one_group(build):
    assert [g.name for g in granularity.weights(build("tied"))] == ["first.weight", "head.weight"]


def test_exclude_and_partial(build):
    fewer = partial(granularity.weights, exclude=["8.weight"])
    assert [g.name for g in fewer(build("cnn"))] == ["0.weight", "3.weight"]
    assert granularity.by_name(fewer) is fewer


def test_exclude_what_is_not_there(build):
    with pytest.raises(PruneError, match=r"cannot exclude '1\.weight'.*0\.weight, 3\.weight, 8\.weight"):
        granularity.weights(build("cnn"), exclude=["1.weight"])


def test_exclude_everything(build):
    with pytest.raises(PruneError, match="nothing is left to prune: all of 0"):
        granularity.weights(build("mlp"), exclude=["0.weight", "2.weight"])


def test_nothing_prunable():
    with pytest.raises(PruneError, match="nothing to prune"):
        granularity.weights(nn.ReLU())


@pytest.mark.parametrize("unknown", ["filter", None, 3])
def test_unknown_names(unknown):
    with pytest.raises(PruneError, match=r"no granularity is called .*; there is .*weights"):
        granularity.by_name(unknown)
