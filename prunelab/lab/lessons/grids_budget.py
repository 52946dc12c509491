"""The grid of notebook 09: one search each on five networks, with every trial of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ... import zoo
from ...budget import SearchOptions, Trial, fit_budget
from ...measurement import evaluate

NETWORKS = {
    "digits-cnn": "the course's CNN",
    "digits-cnn-1": "another CNN",
    "digits-cnn-2": "a third CNN",
    "digits-vit": "a Vision Transformer",
    "exam": "a residual network",
}
BUDGET, STEPS = 0.5, 100
HOW = SearchOptions(front=(1.6, 1.3, 0.75, 0.6))


def fronts() -> Iterator[dict[str, Any]]:
    """Notebook 09: five networks, a search for half of the time on each, all that was tried."""
    for name in NETWORKS:
        yield from searched(name)


def searched(name: str) -> Iterator[dict[str, Any]]:
    """Every trial of one network's search; of the chosen one the test accuracy, too, looked at once."""
    dense, data = zoo.checkpoint(name), zoo.load("digits")
    result = fit_budget(dense, data, latency=BUDGET, recover_steps=STEPS, how=HOW, progress=False)
    for trial in result.trials:
        chosen = trial is result.chosen
        model = result.model if chosen else dense if trial is result.dense else None
        test = None if model is None else evaluate(model, data, "test").accuracy
        yield {"network": NETWORKS[name], **_facts(trial), "chosen": chosen, "test": test}


def _facts(trial: Trial) -> dict[str, Any]:
    ratios = {cost: round(value, 4) for cost, value in trial.ratios.items()}
    facts = {"name": trial.name, "stage": trial.stage, "steps": trial.steps, "accuracy": trial.accuracy}
    return {**facts, **ratios, "kept": trial.layout}
