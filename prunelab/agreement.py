"""Do two criteria agree, and with the truth? Overlap of what they keep, rank correlation, leaving units out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from . import units
from .calibration.samples import Loss, scalar_loss
from .core import Group, Keep, Masks, PruneError, check_loaded, device_of, named, shape
from .data import EMPTY, batches, to
from .masking import expand
from .running import attempt, pair
from .sensitivity.scanning import steady, under
from .text import Lines, Tabular


@dataclass(frozen=True)
class Overlap:
    """How many of `units` units two choices keep: one, the other, and both."""

    name: str
    units: int
    a: int
    b: int
    both: int

    @property
    def jaccard(self) -> float:
        """Kept by both, of what either keeps: 1 if they agree, 0 if they share nothing (1 if both keep nothing)."""
        return self._jaccard(self.both)

    @property
    def chance(self) -> float:
        """The Jaccard index of two choices of so many units that know nothing of each other: both = a * b / units."""
        return self._jaccard(self.a * self.b / max(self.units, 1))

    @property
    def beyond_chance(self) -> float:
        """1 if they agree as far as their counts allow, 0 at chance, below 0 if they avoid each other."""
        expected, most = self.a * self.b / max(self.units, 1), min(self.a, self.b)
        return (self.both - expected) / (most - expected) if most > expected else 1.0

    def _jaccard(self, both: float) -> float:
        kept = self.a + self.b
        return both / (kept - both) if kept else 1.0


@dataclass(frozen=True, repr=False)
class Overlaps(Tabular):
    """The overlap in each group, and `total`, all groups as one. `print` it."""

    layers: tuple[Overlap, ...]

    @property
    def total(self) -> Overlap:
        """All groups as one: also agreeing on *which layers* to spare is agreement here."""
        counts = ((o.units, o.a, o.b, o.both) for o in self.layers)
        return Overlap("total", *(sum(column) for column in zip(*counts, strict=True)))

    def _lines(self) -> Lines:
        rows = [
            [o.name, f"{o.both:,}", f"{o.a:,}, {o.b:,}", f"{o.jaccard:.2f}", f"{o.chance:.2f}"]
            for o in (*self.layers, self.total)
        ]
        return "What two choices keep", ["", "in common", "kept", "Jaccard", "by chance"], rows


def overlap(keep_a: Keep, keep_b: Keep) -> Overlaps:
    """What two results of `allocate` on the same groups keep in common, beside what chance would give.

    >>> one, other = torch.tensor([True, True, False, False]), torch.tensor([True, False, True, False])
    >>> found = overlap({"fc": one}, {"fc": other}).total
    >>> found.both, round(found.jaccard, 2)  # 1 kept by both, of the 3 that either keeps
    (1, 0.33)
    """
    _check_alike(keep_a, keep_b)
    layers = []
    for name, a in keep_a.items():
        b = keep_b[name].to(a.device)
        if a.dtype != torch.bool or b.dtype != torch.bool:
            raise PruneError(f"{name} is {a.dtype} and {b.dtype}: overlap compares choices, results of `allocate`")
        layers.append(Overlap(name, a.numel(), int(a.sum()), int(b.sum()), int((a & b).sum())))
    return Overlaps(tuple(layers))


@dataclass(frozen=True, repr=False)
class Ranks(Tabular):
    """Spearman's correlation within each layer, and over all of them at once. NaN where all scores are equal."""

    layers: dict[str, float]
    overall: float

    def _lines(self) -> Lines:
        ranks = {**self.layers, "overall": self.overall}
        return "Rank correlation", None, [[name, f"{r:+.2f}"] for name, r in ranks.items()]


def rank_correlation(scores_a: Mapping[str, Tensor], scores_b: Mapping[str, Tensor]) -> Ranks:
    """Whether two scores put the same things in the same order: 1 the same, 0 unrelated, -1 the reverse. Spearman's.

    Scores of weights, or of units: those that `allocation.unit_scores` or `leave_one_out` give. Only the order
    counts, so a criterion may be compared with a loss. A layer of one unit, or of equal scores, has no order: NaN.

    >>> rank_correlation({"fc": torch.tensor([1.0, 2.0, 3.0])}, {"fc": torch.tensor([9.0, 5.0, 1.0])}).overall
    -1.0
    """
    _check_alike(scores_a, scores_b)
    if not scores_a:
        raise PruneError("there are no scores to correlate")
    pairs = {name: (a.detach().flatten(), scores_b[name].detach().flatten()) for name, a in scores_a.items()}
    layers = {name: _spearman([a], [b]) for name, (a, b) in pairs.items()}
    return Ranks(layers, _spearman([a for a, _ in pairs.values()], [b for _, b in pairs.values()]))


def _spearman(a: list[Tensor], b: list[Tensor]) -> float:
    from scipy.stats import spearmanr  # half a second to import

    one, other = (torch.cat([t.double().cpu() for t in tensors]) for tensors in (a, b))
    if any(len(x) < 2 or not float(x.max()) > float(x.min()) for x in (one, other)):
        return math.nan
    return float(spearmanr(one.numpy(), other.numpy()).statistic)


def _check_alike(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> None:
    if a.keys() != b.keys():
        alone = next(iter(a.keys() ^ b.keys()))
        raise PruneError(f"only one of the two has {alone!r}: compare what was made from the same model and groups")
    for name, one in a.items():
        if one.shape != b[name].shape:
            raise PruneError(
                f"{name} has shapes {shape(one)} and {shape(b[name])}: compare what was made from the same model and "
                "groups (weights with weights, or unit_scores with leave_one_out)"
            )


def leave_one_out(
    model: nn.Module,
    data: Any,
    groups: Sequence[Group],
    *,
    split: str = "valid",
    batch_size: int = 256,
    loss: Loss = F.cross_entropy,
    progress: bool = True,
) -> dict[str, Tensor]:
    """The truth that criteria estimate: how much the loss rises if one unit is really left out; (units,) by group.

    One unit at a time, zeroed with all that belongs to it, and no retraining: it says nothing of two units that can
    replace each other, of which either may go, but not both. Below 0: the loss is lower without it. The model is
    not touched: a copy runs. One pass over the data a group; what lies below a group's first layer is computed once
    for all its units, where the model can be run in parts.
    """
    check_loaded(model)
    result = {g.name: torch.zeros(g.units, dtype=torch.float64) for g in groups}
    with tqdm(total=sum(g.units for g in groups), desc="leaving out", unit="unit", disable=not progress) as bar:
        dense = _mean_loss(model, data, split, batch_size, loss)
        for group in groups:
            names, sums, n = units.tensors_of(group, named(model)), result[group.name], 0
            with steady(model), torch.no_grad():
                held = batches(data, split, size=batch_size)
                for targets, _, each in under(model, names, partial(_without, model, group), range(group.units), held):
                    n += len(targets)
                    for unit, outputs in each:
                        sums[unit] += float(scalar_loss(loss, outputs, targets)) * len(targets)
            sums.div_(n).sub_(dense)
            bar.update(group.units)
    return result


def _without(model: nn.Module, group: Group, unit: int) -> Masks:
    return expand(model, [group], {group.name: torch.arange(group.units) != unit})


def _mean_loss(model: nn.Module, data: Any, split: str, batch_size: int, loss: Loss) -> float:
    total, n = 0.0, 0
    with steady(model), torch.no_grad():
        for batch in batches(data, split, size=batch_size):
            inputs, targets = to(pair(batch), device_of(model))
            total += float(scalar_loss(loss, attempt(model, inputs), targets)) * len(targets)
            n += len(targets)
    if not n:
        raise PruneError(EMPTY.format(split))
    if not math.isfinite(total):
        raise PruneError(f"the loss of the whole model is {total / n}: nothing can be compared with that")
    return total / n
