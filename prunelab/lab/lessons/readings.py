"""What a pruned network reads, without changing the network."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from ...allocation import allocate, expand, report
from ...calibration import Calibration
from ...core import Keep, mode
from ...criteria import by_name as criterion_named
from ...criteria import magnitude
from ...data import batches
from ...granularity import by_name as granularity_named
from ...granularity import weights
from ...masking import masked
from ...measurement import evaluate
from ...pipeline import Recipe
from ...running import call


@dataclass(frozen=True)
class Reading:
    """The class read for each picture, and the share that is right."""

    labels: list[int]
    accuracy: float


def reading(model: nn.Module, recipe: Recipe, pictures: Any, calib: Calibration | None = None) -> Reading:
    """What the model would read of some pictures if it were pruned as the recipe says, in one shot."""
    groups = granularity_named(recipe.granularity)(model)
    scores = criterion_named(recipe.criterion)(model, calib)
    return reading_of(model, allocate(scores, groups, recipe.sparsity, recipe.scope), pictures)


def reading_of(model: nn.Module, keep: Keep, pictures: Any) -> Reading:
    """What the model would read of some pictures if only these of its single weights were kept."""
    masks = expand(model, [g for g in weights(model) if g.name in keep], keep)
    with masked(model, masks):
        return read(model, pictures)


def read(model: nn.Module, pictures: Any) -> Reading:
    """What the model reads of some pictures as it is."""
    with mode(model, training=False), torch.no_grad():
        found = [(call(model, x).argmax(1), y) for x, y in batches(pictures)]
    labels, truth = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Reading(labels.tolist(), float((labels == truth).double().mean()))


def sweep(
    models: Sequence[nn.Module], recipes: Mapping[str, Recipe], sparsities: Sequence[float], pictures: Any
) -> dict[str, list[list[float]]]:
    """Accuracy without retraining: for each recipe a table (networks, sparsities). A bar shows how far it is."""
    bar = tqdm(total=len(models) * len(recipes) * len(sparsities), desc="pruning", leave=False)
    with bar:
        return {
            name: [_accuracies(model, recipe, sparsities, pictures, bar) for model in models]
            for name, recipe in recipes.items()
        }


def _accuracies(model: nn.Module, recipe: Recipe, sparsities: Sequence[float], pictures: Any, bar: tqdm) -> list[float]:
    found = []
    for sparsity in sparsities:
        found.append(reading(model, replace(recipe, sparsity=sparsity), pictures).accuracy)
        bar.update()
    return found


def by_hand(
    model: nn.Module, layers: Sequence[str], steps: Sequence[float], pictures: Any
) -> dict[tuple[float, ...], tuple[float, float]]:
    """For every combination of layer shares, by magnitude, without retraining: (accuracy, sparsity of all weights)."""
    groups, scores = weights(model), magnitude(model)
    kept = {g.name: {s: allocate(scores, [g], s, "layer")[g.name] for s in (0.0, *steps)} for g in groups}
    seen = {}
    points = list(itertools.product(steps, repeat=len(layers)))
    for point in tqdm(points, desc="pruning by hand", leave=False):
        share = dict(zip((f"{layer}.weight" for layer in layers), point, strict=True))
        keep = {name: of[share.get(name, 0.0)] for name, of in kept.items()}
        with masked(model, expand(model, groups, keep)):
            seen[point] = (evaluate(model, pictures).accuracy, report(groups, keep).sparsity)
    return seen
