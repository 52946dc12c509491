"""The grid of notebook 09: the same budgets, searched for and spent in equal shares, on several networks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .. import zoo
from ..budget import GoalNotMet, How, Result, fit_budget
from ..measurement import evaluate

NETWORKS = {
    "the course's CNN": ("digits-cnn", "digits-cnn-1", "digits-cnn-2"),
    "a Vision Transformer": ("digits-vit",),
    "a residual network": ("exam",),
}
BUDGETS = (0.7, 0.5, 0.35)
STEPS = 100
WAYS = {
    "searched": How(),
    "equal shares": How(criteria=("magnitude",), rules=("uniform",), finalists=1, front=()),
}


def fronts() -> Iterator[dict[str, Any]]:
    """Notebook 09: five networks, three budgets of time, by search and by equal shares of magnitude."""
    data = zoo.load("digits")
    for network, checkpoints in NETWORKS.items():
        for seed, name in enumerate(checkpoints):
            dense = zoo.checkpoint(name)
            facts = {"network": network, "checkpoint": name, "dense": evaluate(dense, data, "test").accuracy}
            for budget in BUDGETS:
                for way, how in WAYS.items():
                    found = _found(dense, data, budget, how, seed)
                    yield {**facts, "budget": budget, "way": way, **found}


def _found(dense: Any, data: Any, budget: float, how: How, seed: int) -> dict[str, Any]:
    """What came of one search; the test split is looked at here, once, and nothing is chosen by it."""
    try:
        result: Result | None = fit_budget(
            dense, data, latency=budget, recover_steps=STEPS, seed=seed, how=how, progress=False
        )
    except GoalNotMet as missed:
        result = missed.result
    if result is None or not result.met:
        return {"met": False}
    chosen = result.chosen
    return {
        "met": True,
        "chosen": chosen.name,
        "kept": chosen.layout,
        "test": evaluate(result.model, data, "test").accuracy,
        "ratios": {cost: round(value, 4) for cost, value in chosen.ratios.items()},
    }
