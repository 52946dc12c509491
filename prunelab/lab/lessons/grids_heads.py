"""The grid of notebook 12: five Vision Transformers, five orders in which their heads leave."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ... import zoo
from ...agreement import leave_one_out
from ...allocation import allocate, unit_scores
from ...calibration import Calibration
from ...core import Group, Keep, Member
from ...criteria import Random, head_importance, magnitude
from ...granularity import heads
from ...measurement import evaluate
from ...recovery import finetune
from ...surgery import shrink

VITS = ("digits-vit", "digits-vit-1", "digits-vit-2", "digits-vit-3", "digits-vit-4")
REMOVED = (8, 16, 24, 28)  # of 32 heads; the last of each of four blocks stays
ORDERS = ("random", "magnitude", "Michel", "left out alone", "one by one")
DRAWS = 5  # lotteries, of which the accuracy without retraining is the mean; the first one is retrained
CALIBRATION = 512  # training pictures that Michel's gradient sees
JUDGED = 300  # validation pictures on which a head is left out: one of each scan
VIEWS, LR = 8, 1e-3  # of the short retraining: new pictures of each training scan, once through


def grid() -> Iterator[dict[str, Any]]:
    """Notebook 12: five networks, five orders of removing heads, before and after a short retraining."""
    for name in VITS:
        yield from of_network(name)


def of_network(name: str) -> Iterator[dict[str, Any]]:
    """The runs of one network; with nothing removed, all orders are the same."""
    data, model, seed = zoo.load("digits"), zoo.checkpoint(name), VITS.index(name)
    whole = {g.name: torch.ones(g.units, dtype=torch.bool) for g in heads(model)}
    control = _run(model, data, whole, seed)
    for order in ORDERS:
        yield {"network": name, "order": order, "removed": 0, **control}
        for removed, keep in kept(model, data, order, REMOVED, seed).items():
            run = _run(model, data, keep, seed)
            if order == "random":
                run["before"] = lottery(model, data, removed, seed)
            yield {"network": name, "order": order, "removed": removed, **run}


def lottery(model: nn.Module, data: zoo.Data, removed: int, seed: int, draws: int = DRAWS) -> float:
    """The mean accuracy without so many heads, drawn at random several times."""
    keeps = (lowest_out(importance(model, data, "random", seed + 100 * draw), removed) for draw in range(draws))
    return float(np.mean([evaluate(shrink(model, heads(model), keep), data, "test").accuracy for keep in keeps]))


def _run(model: nn.Module, data: zoo.Data, keep: Keep, seed: int) -> dict[str, Any]:
    small = shrink(model, heads(model), keep)
    before = evaluate(small, data, "test").accuracy
    retrain(small, seed)
    board = ["".join("1" if stays else "0" for stays in k.tolist()) for k in keep.values()]
    return {"before": before, "after": evaluate(small, data, "test").accuracy, "kept": board}


def retrain(model: nn.Module, seed: int) -> None:
    """A short retraining, in place: once through new pictures of the training scans."""
    finetune(model, zoo.more_views(VIEWS, seed=2), epochs=1, lr=LR, seed=seed, progress=False)


def kept(model: nn.Module, data: zoo.Data, order: str, removed: tuple[int, ...], seed: int = 0) -> dict[int, Keep]:
    """Which heads stay, for each number of heads removed in an order."""
    groups = heads(model)
    if order == "one by one":
        left = one_by_one(model, data.valid[:JUDGED])
        return {k: _without(groups, left[:k]) for k in removed}
    values = importance(model, data, order, seed)
    return {k: lowest_out(values, k) for k in removed}


def importance(model: nn.Module, data: zoo.Data, order: str, seed: int = 0) -> dict[str, Tensor]:
    """What each head is worth, (heads,) a layer."""
    groups = heads(model)
    if order == "left out alone":
        return leave_one_out(model, [data.valid[:JUDGED]], groups, progress=False)
    if order == "Michel":
        calib = Calibration.of(data, samples=CALIBRATION)
        return unit_scores(head_importance(model, calib), groups, "sum")  # comparable as it is: normalised a layer
    return unit_scores((magnitude if order == "magnitude" else Random(seed))(model), groups)


def lowest_out(values: Mapping[str, Tensor], k: int) -> Keep:
    """Without the k lowest of all layers together; each layer's best stays."""
    alone = [Group(name, len(v), (Member(name, 0),)) for name, v in values.items()]
    return allocate(dict(values), alone, k / sum(map(len, values.values())), "global", reduce="sum")


def one_by_one(model: nn.Module, pictures: tuple[Tensor, Tensor]) -> list[tuple[str, int]]:
    """The order in which heads leave if each time all that are left are tried, and the one least missed goes."""
    left = {g.name: list(range(g.units)) for g in heads(model)}
    gone = []
    for _ in range(sum(len(units) - 1 for units in left.values())):
        groups = heads(model)  # those of layers with one head left are no longer among them
        rises = leave_one_out(model, [pictures], groups, progress=False)
        name, unit = min(
            ((n, u) for n, r in rises.items() for u in range(len(r))), key=lambda x: float(rises[x[0]][x[1]])
        )
        gone.append((name, left[name].pop(unit)))
        model = shrink(
            model, groups, {g.name: torch.arange(g.units) != (unit if g.name == name else -1) for g in groups}
        )
    return gone


def _without(groups: list[Group], gone: list[tuple[str, int]]) -> Keep:
    return {g.name: torch.tensor([(g.name, u) not in gone for u in range(g.units)]) for g in groups}
