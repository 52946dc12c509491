"""Whatever is given for a model: a sentence, never an error from the depths of torch."""

from __future__ import annotations

import inspect

import pytest
import torch
from test_error_paths import EXEMPT, FUNCTIONS, World, arguments, call
from torch import nn

import prunelab as pl
from prunelab import zoo

TAKEN = {n: p for n, f in FUNCTIONS.items() if n not in EXEMPT
         for p in ("model", "fresh_model", "teacher") if p in inspect.signature(f).parameters}  # fmt: skip


@pytest.fixture(scope="module")
def givens():
    return {
        "none": None,
        "state": nn.Linear(2, 2).state_dict(),
        "class": nn.Linear,
        "function": lambda x: x,
        "lazy": nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)),
    }


@pytest.mark.parametrize("kind", ["none", "state", "class", "function", "lazy", "meta", "partly meta"])
def test_what_is_no_model_or_has_no_values(build, data_for, tmp_path, givens, kind):
    world = World(build("cnn"), data_for("cnn"), tmp_path, masked=False)
    refused = 0
    for name, parameter in TAKEN.items():
        given = givens.get(kind)
        if "meta" in kind:
            given = build("cnn")
            (given if kind == "meta" else next(given.children())).to("meta")
        try:
            call(FUNCTIONS[name], {**arguments(FUNCTIONS[name], world), parameter: given})
        except (pl.PruneError, zoo.ZooError) as error:
            refused += len(str(error)) > 20
        except Exception as error:
            pytest.fail(f"{name}({parameter}={kind}): {error!r}")
        if kind == "lazy":
            assert nn.parameter.is_lazy(given[0].weight), f"{name} made the layers of a lazy model"
    assert refused > 55


@pytest.mark.parametrize("cost", [pl.measurement.macs, pl.measurement.peak_memory])
def test_counting_does_not_make_the_layers_of_a_lazy_model(givens, cost):
    with pytest.raises(pl.PruneError, match="a lazy layer"):
        cost(givens["lazy"], torch.zeros(2, 1, 8, 8))
    assert nn.parameter.is_lazy(givens["lazy"][0].weight)


def test_a_model_without_values_is_neither_timed_nor_written(tmp_path):
    net, x = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).to("meta"), torch.zeros(1, 2)
    groups = pl.granularity.neurons(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)), x)
    keep = {groups[0].name: torch.tensor([True, False])}
    for refused in (
        lambda: pl.measurement.latency(net, x.to("meta")),
        lambda: pl.export(net, x, tmp_path / "net.pt2"),
        lambda: pl.measurement.stored_bytes(net),
        lambda: pl.reconstruction.redistribute(net, {"0.weight": torch.ones(2, 2).bool()}),
        lambda: pl.surgery.difference(net, groups, keep, x.to("meta")),
    ):
        with pytest.raises(pl.PruneError, match="is on the meta device"):
            refused()


def test_the_sentence_says_what_was_given():
    with pytest.raises(pl.PruneError, match=r"the model is a OrderedDict: give a torch\.nn\.Module"):
        pl.measurement.count(nn.Linear(2, 2).state_dict())
    with pytest.raises(pl.PruneError, match=r"0\.weight has no shape yet .a lazy layer.: run one batch"):
        pl.granularity.weights(nn.Sequential(nn.LazyLinear(3)))
    with pytest.raises(pl.PruneError, match=r"weight \(2, 2\) of this Linear is on the meta device"):
        pl.measurement.evaluate(nn.Linear(2, 2, device="meta"), (torch.zeros(3, 2), torch.zeros(3).long()))
