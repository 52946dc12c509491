"""The grid of notebook 07: movement against magnitude, over the weights' learning rate and the density left."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import cache
from typing import Any

from torch import nn

from ... import zoo
from ..author.resuming import Point, resumable
from .transfers import pretrained, transfer

SEEDS = range(5)
RATES = (1e-2, 1e-3, 1e-4, 3e-5)
LEFT = (0.15, 0.10, 0.05, 0.03)
ENDS = (RATES[0], RATES[-1])  # where the other scores run too
OTHERS = ("MAMA's score", "random")
PENALTIES = (30.0, 100.0, 200.0)  # of soft movement, which learns how many are left


def points() -> Iterator[Point]:
    """Every setting, a whole network after another, so that a part of the grid is a fair one."""
    for seed in SEEDS:
        for lr in RATES:
            yield {"network": seed, "way": "dense", "lr": lr, "left": 1.0}
            for left in LEFT:
                yield from ({"network": seed, "way": way, "lr": lr, "left": left} for way in ("movement", "magnitude"))
    for seed in SEEDS:
        for lr in ENDS:
            for left in LEFT:
                yield from ({"network": seed, "way": way, "lr": lr, "left": left} for way in OTHERS)
            for penalty in PENALTIES:
                yield {"network": seed, "way": "soft movement", "lr": lr, "penalty": penalty}


def movement() -> Iterator[dict[str, Any]]:
    """Notebook 07: five networks of digits 0 to 4, fine-tuned on 5 to 9 and pruned meanwhile, by several scores."""
    return resumable(zoo.data_dir() / "grid-movement.part", points(), measured)


def measured(point: Point) -> Point:
    """One run."""
    start = time.perf_counter()
    amount = point["penalty"] if "penalty" in point else point["left"]
    found = transfer(_network(point["network"]), point["way"], amount, point["lr"], seed=point["network"])
    return {
        "density": round(found.density, 4),
        "accuracy": round(found.accuracy, 4),
        "stayed": round(found.stayed, 4),
        "seconds": round(time.perf_counter() - start, 1),
    }


@cache
def _network(seed: int) -> nn.Module:
    return pretrained(seed)
