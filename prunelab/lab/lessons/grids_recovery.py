"""The experiments of notebook 09: what comes back, by which way, in how many rounds, and where nothing does."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ... import zoo
from ...measurement import evaluate
from . import contests
from . import recoveries as ways_back

Run = dict[str, Any]
SEEDS = (0, 1, 2, 3, 4)  # of the networks "digits-cnn", "digits-cnn-1", ...
SPARSITIES = (0.95, 0.98)
STAGES = (0.9, 0.95, 0.97, 0.98, 0.99)
LONG = 6 * ways_back.EPOCH  # steps, one and a half first trainings
BUDGETS = (0, ways_back.EPOCH, LONG)
COURSES = {  # those tried with so many steps
    ways_back.STEPS: tuple(ways_back.COURSES),
    LONG: ("one-shot", "three rounds, cubic", "while training, cubic"),
}


def name_of(seed: int) -> str:
    """The checkpoint that this seed made."""
    return f"digits-cnn-{seed}" if seed else "digits-cnn"


def recoveries(seeds: Sequence[int] = SEEDS) -> Iterator[Run]:
    """Notebook 09: five networks, nine ways back on one budget of steps, controls among them."""
    data = zoo.load("digits")
    for seed in seeds:
        past = ways_back.past(seed, data)
        first = {"network": name_of(seed), "sparsity": 0.0, "steps": ways_back.FIRST}
        yield {**first, "way": "dense", "accuracy": evaluate(past.dense, data, "test").accuracy}
        for sparsity in SPARSITIES:
            for way in (*ways_back.WAYS, *ways_back.CONTROLS):
                found = ways_back.recovered(way, past, sparsity, data)
                yield {
                    "network": name_of(seed),
                    "sparsity": sparsity,
                    "way": way,
                    "steps": found.steps,
                    "accuracy": evaluate(found.model, data, "test").accuracy,
                }


def rounds(seeds: Sequence[int] = SEEDS) -> Iterator[Run]:
    """Notebook 09: five networks, pruned at once, in rounds or while training, on two budgets of steps."""
    data = zoo.load("digits")
    for seed in seeds:
        for sparsity in SPARSITIES:
            for steps, courses in COURSES.items():
                for course in courses:
                    walk = ways_back.COURSES[course]
                    model = walk(zoo.checkpoint(name_of(seed)), sparsity, data, seed, steps)
                    yield {
                        "network": name_of(seed),
                        "sparsity": sparsity,
                        "steps": steps,
                        "course": course,
                        "accuracy": evaluate(model, data, "test").accuracy,
                    }


def returns(seeds: Sequence[int] = SEEDS) -> Iterator[Run]:
    """Notebook 09: five networks, pruned at once and retrained not at all, briefly, and for long."""
    data = zoo.load("digits")
    for seed in seeds:
        dense = zoo.checkpoint(name_of(seed))
        for sparsity in (0.0, *STAGES):
            pruned = contests.pruned(dense, "global", sparsity) if sparsity else dense
            for steps in BUDGETS:  # the dense network too: to train on may help it as well
                model = ways_back.retrained(copy.deepcopy(pruned), data, steps, seed)
                accuracy = evaluate(model, data, "test").accuracy
                yield {"network": name_of(seed), "sparsity": sparsity, "steps": steps, "accuracy": accuracy}


GRIDS: dict[str, Callable[[], Iterator[Run]]] = {"recoveries": recoveries, "rounds": rounds, "returns": returns}
