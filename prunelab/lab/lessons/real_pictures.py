"""Residual networks on CIFAR-10, against which notebooks 00, 04, 05 and 06 hold what the digits told them.

`zoo.load("cifar10")` downloads the published pictures; no notebook does: what is found stands in the stored grids.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from ... import zoo
from ...allocation import choose, expand, unit_scores
from ...calibration import Calibration
from ...criteria import by_name as criterion_named
from ...granularity import filters, weights
from ...masking import apply
from ...measurement import evaluate, macs
from ...recovery import finetune, recalibrate_batchnorm
from ...surgery import shrink
from ..learn import stored_grid
from ..learn.stored_grid import Grid, Resumable, Run
from ..show.figure import table
from ..show.measuring import measured
from .pruned_networks import FAST, RULES, pruned, spread

NETWORKS = ("cifar10-resnet", "cifar10-resnet-1", "cifar10-resnet-2")  # differing in nothing but the seed
NOTES = 1280  # training pictures that BatchNorm statistics are estimated from
TESTED = 2500  # test pictures that an experiment without retraining is read on; all 10,000 where it is retrained
BATCH = 128
LEVELS = (0.5, 0.7, 0.8, 0.9)
CUT = 0.9  # of one layer alone, in the scan
STEPS = 176  # of retraining: half an epoch


def network(name: str) -> nn.Module:
    """A checkpoint in the memory layout in which it is fastest."""
    return zoo.checkpoint(name).to(memory_format=FAST)


def tested(model: nn.Module, data: zoo.Data) -> float:
    """Accuracy on the first test pictures."""
    return evaluate(model, tuple(t[:TESTED] for t in data.test.tensors)).accuracy


def refreshed(model: nn.Module, data: zoo.Data) -> float:
    """The same once BatchNorm statistics are estimated again, on a part of the training pictures."""
    recalibrate_batchnorm(model, tuple(t[:NOTES] for t in data.train.tensors), batch_size=BATCH)
    return tested(model, data)


# The stored grids


def shares() -> Resumable:
    """Notebooks 00 and 04: the CIFAR-10 networks, four rules, four levels, statistics old (of one rule) and fresh."""
    points = [{"network": n, "rule": r, "sparsity": s} for n in NETWORKS for r in RULES for s in LEVELS]
    data = zoo.load("cifar10")

    def run(point: Run) -> Run:
        model = pruned(network(point["network"]), point["rule"], point["sparsity"])
        old = {"old": tested(model, data)} if point["rule"] == "global" else {}
        return {**old, "fresh": refreshed(model, data)}

    return points, run


def scans() -> Resumable:
    """Notebook 05: the CIFAR-10 networks, nine tenths of each layer alone removed, statistics old and fresh."""
    layers = [g.name for g in weights(network(NETWORKS[0]))]
    points = [{"network": n, "layer": layer} for n in NETWORKS for layer in ("none", *layers)]
    data = zoo.load("cifar10")

    def run(point: Run) -> Run:
        model = network(point["network"])
        groups = weights(model)
        cut = spread(model, {g.name: CUT * (g.name == point["layer"]) for g in groups})
        apply(model, expand(model, groups, cut))
        units = {g.name: g.units for g in groups}.get(point["layer"], 0)
        return {"weights": units, "old": tested(model, data), "fresh": refreshed(model, data)}

    return points, run


JUDGES = [("layer", "random", "sum"), ("layer", "magnitude", "sum"), ("layer", "taylor", "sum"),
          ("global", "magnitude", "sum"), ("global", "magnitude", "mean"), ("global", "taylor", "sum"),
          ("global", "taylor", "mean")]  # fmt: skip
SHARES = (0.3, 0.5)  # of the filters, that go; the larger is retrained where the judge compares within layers


def judges() -> Resumable:
    """Notebook 06: the CIFAR-10 networks, filters removed by seven judges; statistics fresh, then half an epoch."""
    points = [{"network": n, "scope": scope, "criterion": criterion, "way": way, "share": share}
              for n in NETWORKS for scope, criterion, way in JUDGES for share in SHARES]  # fmt: skip
    data = zoo.load("cifar10")

    def run(point: Run) -> Run:
        model = zoo.checkpoint(point["network"])  # torch 2.14 corrupts memory, training few channels in channels_last
        groups = filters(model, data.train[:2][0])
        scores = criterion_named(point["criterion"])(model, Calibration.of(data, samples=512))
        units = unit_scores(scores, groups, point["way"])
        small = shrink(model, groups, choose(units, groups, point["share"], point["scope"]))
        found = {"macs": macs(small, data.train[:1][0]), "fresh": refreshed(small, data)}
        if point["scope"] == "layer" and point["share"] == SHARES[-1]:
            retrained(small, data, point["network"])
            found["after"] = evaluate(small, data, "test").accuracy
        return found

    return points, run


def retrained(model: nn.Module, data: zoo.Data, name: str) -> None:
    """Half an epoch, in place, at the gentle rate of `finetune`."""
    finetune(model, data.train, steps=STEPS, batch_size=BATCH, seed=NETWORKS.index(name), progress=False)


GRIDS: dict[str, Grid] = {"cifar-shares": shares, "cifar-scans": scans, "cifar-judges": judges}


# What the notebooks measure on them


def found(grid: str, value: str, **which: Any) -> np.ndarray:
    """One value of a grid's runs, a network each: `found("shares", "fresh", rule="global", sparsity=0.7)`."""
    return np.array([run[value] for run in stored_grid.grid(f"cifar-{grid}") if which.items() <= run.items()])


def mean_and_range(values: np.ndarray) -> str:
    """The mean, and the lowest and the highest network."""
    return measured(float(values.mean()), "%", interval=(float(values.min()), float(values.max())))


def by_rule() -> None:
    """Show what each rule leaves at each level, statistics fresh."""
    columns = {"rule": None, **{f"{100 * level:g} % zero": None for level in LEVELS}}
    rows = [[r, *(mean_and_range(found("shares", "fresh", rule=r, sparsity=s)) for s in LEVELS)] for r in RULES]
    table("CIFAR-10, statistics fresh: mean [lowest, highest network]", columns, rows)
