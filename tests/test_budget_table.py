"""The table: which groups a layer depends on, and predictions of what can be counted, which must be exact."""

import numpy as np
import pytest
import torch
from tiny_decoders import decoder, token_ids
from torch import nn

import prunelab as pl
from prunelab.budget.costs import REST, _fit, any_keep, dense_layout, latency_table, widths
from prunelab.measurement import macs, stored_bytes


class Mixed(nn.Module):
    """A convolution, a Linear, and work between the layers."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x):
        x = self.conv2(self.conv1(x).relu()).relu().mean((2, 3))
        return self.fc2(self.fc1(x).relu())


@pytest.fixture(scope="module")
def found():
    torch.manual_seed(0)
    model, x = Mixed().eval(), torch.randn(4, 1, 6, 6)
    groups = pl.granularity.coupled(model, x)
    return model, x, groups, latency_table(model, groups, x, {g.name: widths(g, 1) for g in groups})


def test_layers_and_the_groups_they_depend_on(found):
    *_, table = found
    kept = {row.layer: set(row.kept) for row in table.rows}
    assert kept == {"conv1": {"conv1"}, "conv2": {"conv1", "conv2"}, "fc1": {"conv2", "fc1"}, "fc2": {"fc1"}}
    counts = {tuple(row.kept.values()) for row in table.rows if row.layer == "conv2"}
    assert (8, 8) in counts
    assert len(counts) > 10  # of the 16 pairs of levels
    assert "batch 4, 1 thread, cpu" in str(table)
    assert "<table>" in table._repr_html_()


@pytest.mark.parametrize("layout", [(8, 8, 16), (1, 8, 16), (3, 5, 7), (1, 1, 1)])
def test_what_can_be_counted_is_predicted_to_the_digit(found, layout):
    model, x, groups, table = found
    layout = dict(zip((g.name for g in groups), layout, strict=True))
    small = pl.shrink(model, groups, any_keep(groups, layout))
    assert table.predict(layout, "bytes") == pytest.approx(stored_bytes(small, ["dense"])["dense"], rel=0.01)
    assert table.predict(layout, "macs") == pytest.approx(macs(small, x), rel=0.01)


def test_times_fall_with_the_counts(found):
    _, _, groups, table = found
    dense = dense_layout(groups)
    assert table.ratio(dense) == 1
    for group in groups:
        layout = {**dense, group.name: 1}
        assert 0 < table.ratio(layout) <= 1
    assert set(table.fits["latency"]) == {"conv1", "conv2", "fc1", "fc2", REST}


def test_the_model_is_left_as_it_is(build, data_for, snapshot):
    model, (x, _) = build("residual"), data_for("residual")
    groups = pl.granularity.filters(model, x)
    before = snapshot(model)
    latency_table(model, groups, x, {g.name: widths(g, 1) for g in groups})
    assert snapshot(model) == before


def test_whole_modules_are_refused(snapshot):
    model = decoder()
    groups, before = pl.granularity.layers(model), snapshot(model)
    with pytest.raises(pl.PruneError, match=r"layers holds whole modules, such as model\.layers\.0"):
        latency_table(model, groups, token_ids(), {"layers": (1, 2, 4)})
    assert snapshot(model) == before


def test_attention_is_a_layer(build, data_for):
    x, _ = data_for("attention")
    model = build("attention")
    groups = pl.granularity.heads(model, x)
    table = latency_table(model, groups, x, {g.name: (1, 2) for g in groups})
    assert {row.layer for row in table.rows} == {"attend", "widen", "head"}


def test_a_fit_recovers_its_form():
    shares = np.column_stack([np.ones(30), np.random.default_rng(0).uniform(0.2, 1, (30, 2))])
    terms = [(0, 0), (0, 1), (1, 2)]
    truth = np.array([[2.0, 0.0, 0.0], [0.0, 0.0, 5.0], [0.0, 0.0, 0.0]])
    fit = _fit(shares, terms, [s @ truth @ s for s in shares])
    half = np.array([1.0, 0.5, 0.5])
    assert half @ fit @ half == pytest.approx(half @ truth @ half, rel=0.01)
    assert (fit >= 0).all()
    assert not _fit(shares, terms, [0.0] * 30).any()
