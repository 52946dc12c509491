"""Residual networks on CIFAR-10, against which notebooks 00, 04, 05, 06, 10 and 11 hold what the digits told them.

`zoo.load("cifar10")` downloads the published pictures; no notebook does: what is found stands in the stored grids.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import combinations, permutations
from typing import Any

import numpy as np
from scipy.stats import spearmanr
from torch import Tensor, nn

from ... import zoo
from ...allocation import choose, unit_scores
from ...calibration import Calibration
from ...criteria import by_name as criterion_named
from ...granularity import filters, weights
from ...masking import apply, expand
from ...measurement import evaluate, macs
from ...pipeline import Recipe, gradually, prune
from ...recovery import finetune, recalibrate_batchnorm, rewind_rates, train
from ...surgery import shrink
from ..learn import stored_grid
from ..learn.stored_grid import Grid, Resumable, Run
from ..show.figure import table
from ..show.measuring import measured
from .lesson_10 import leads, searched, written
from .lesson_11 import Reads, binned, bits, judged
from .pruned_networks import FAST, RULES, kept, pruned

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
        cut = kept(model, {g.name: CUT * (g.name == point["layer"]) for g in groups})
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


def retrained(model: nn.Module, data: zoo.Data, name: str, order: int = 0) -> None:
    """Half an epoch, in place, at the gentle rate of `finetune`; `order` shuffles the pictures otherwise."""
    seed = NETWORKS.index(name) + len(NETWORKS) * order
    finetune(model, data.train, steps=STEPS, batch_size=BATCH, seed=seed, progress=False)


LOST = {"70 %": 0.7, "90 %": 0.9, "95 %": 0.95}  # by LAMP, which leaves the first layer more than a contest does
KINDS = ("dense", "trained on", "another order", *LOST)
FOLDS = 10


def forgotten() -> Resumable:
    """Notebook 11: the CIFAR-10 networks, dense, trained on (in two orders), pruned and retrained: what is read."""
    data = zoo.load("cifar10")

    def run(point: Run) -> Run:
        model, kind = zoo.checkpoint(point["network"]), point["kind"]
        if kind in LOST:
            prune(model, Recipe("lamp", sparsity=LOST[kind]))
        if kind != "dense":
            retrained(model, data, point["network"], order=int(kind == "another order"))
        sure, right = judged(model.eval(), *data.test.tensors)
        return {"right": bits(right), "bins": binned(sure, right), "read": in_folds(right, data.test.tensors[1])}

    return [{"network": name, "kind": kind} for kind in KINDS for name in NETWORKS], run


def in_folds(right: Tensor, labels: Tensor) -> list[list[int]]:
    """How many pictures are read of each class (a row) in each tenth of its pictures, dealt out like cards."""
    own = [right[labels == label] for label in range(10)]
    return [[int(one[fold::FOLDS].sum()) for fold in range(FOLDS)] for one in own]


RACE = {"steps": 126, "batch_size": 64}  # of each way back, as on digits
RATES = (0.003, 0.01, 0.03)
RACED = 0.95  # of the weights, that are zero
SOON = 0.1  # gradual's last cut, where the digits had it
WAYS: dict[str, Callable[..., Any]] = {
    "one full cycle": train,
    "rates rewound": lambda model, pictures, **how: rewind_rates(model, pictures, of=2 * RACE["steps"], **how),
    "gradual": lambda model, pictures, **how: train(model, pictures, **how, on_step=gradually(
        model, Recipe("lamp", sparsity=RACED, schedule="cubic", rounds=9), until=SOON)),
}  # fmt: skip


def ways() -> Resumable:
    """Notebook 10: three ways back from 95 % zeros; of three rates the best on validation, then each network."""
    data = zoo.load("cifar10")

    def back(way: str, seed: int, data: zoo.Data, lr: float) -> nn.Module:
        model = zoo.checkpoint(NETWORKS[seed])
        if way != "gradual":
            prune(model, Recipe("lamp", sparsity=RACED))
        WAYS[way](model, data.train, **RACE, lr=lr, seed=seed, progress=False)
        return model.eval()

    def run(point: Run) -> Run:
        found = searched(partial(back, point["way"]), [{"lr": lr} for lr in RATES], data, range(len(NETWORKS)))
        return {"valid": found["valid"], "rate": found["chosen"]["lr"], "accuracy": found["accuracy"]}

    return [{"way": way} for way in WAYS], run


GRIDS: dict[str, Grid] = {
    "cifar-shares": shares, "cifar-scans": scans, "cifar-judges": judges,
    "cifar-forgotten": forgotten, "cifar-ways": ways,
}  # fmt: skip


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


def tolls(kind: str) -> np.ndarray:
    """Points that each class pays beside the dense twin: (networks, classes, tenths of a class's pictures)."""
    return found("forgotten", "read", kind="trained on") - found("forgotten", "read", kind=kind)


def agreement(kind: str, networks: bool = False) -> float:
    """Split-half reliability: the mean rank correlation of what classes pay on one half of the pictures and the other.

    Over all halvings of the ten tenths: of the networks' mean, or with `networks` of one network on one half and
    another on the other half, over all pairs.
    """
    toll = tolls(kind)
    halves = [(half, [f for f in range(FOLDS) if f not in half]) for half in map(list, combinations(range(FOLDS), 5))]
    sides = list(permutations(toll, 2)) if networks else [(toll.mean(0), toll.mean(0))]
    pairs = [(a[:, one].mean(1), b[:, other].mean(1)) for one, other in halves if 0 in one for a, b in sides]
    return float(np.mean([spearmanr(one, other).statistic for one, other in pairs]))


def agreements(reads: Reads) -> dict[str, tuple[float, float]]:
    """Show what changes beside the dense twin, and how far halves and networks agree on who pays; give the latter."""
    agree = {kind: (agreement(kind), agreement(kind, networks=True)) for kind in KINDS[2:]}
    twin, rows = reads["trained on"], []
    for kind, two in agree.items():
        lost, gained = (float(moved.sum(1).mean()) for moved in (twin & ~reads[kind], ~twin & reads[kind]))
        rows.append([kind, float(reads[kind].mean()), lost, gained, *two])
    columns = {"network": None, "read": "%", "lost": "", "gained": "", "halves agree": "", "networks agree": ""}
    table("CIFAR-10, beside the dense twin, and who pays", columns, rows)
    return agree


def ways_back() -> None:
    """Show what each way's search saw, and the networks' mean with its lead over the first way."""
    runs = stored_grid.grid("cifar-ways")
    lead = leads({run["way"]: run["accuracy"] for run in runs}, first := runs[0]["way"])
    rows = [[r["way"], *r["valid"], float(np.mean(r["accuracy"])), written(lead[r["way"]]) if r["way"] in lead else ""]
            for r in runs]  # fmt: skip
    columns = {"way": None, **{f"rate {rate:g}": "%" for rate in RATES}, "test": "%", f"ahead of {first}": None}
    table("CIFAR-10, 95 % zeros: one network's search; then all, at the best rate (95 % interval)", columns, rows)
