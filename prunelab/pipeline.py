"""The whole process in one call: score, allocate, mask, recover, as often as a schedule says."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from . import criteria, granularity, layerwise, schedules
from .allocation import NM, Scope, Share, allocate, check_asked, is_structure
from .calibration import Calibration
from .checks import check_count
from .core import (
    Criterion,
    Granularity,
    Group,
    Keep,
    Masks,
    Place,
    PruneError,
    Schedule,
    Scores,
    at_once,
    count,
    places,
    shape,
)
from .criteria.registry import PartialScores
from .layers import prunable, unreachable
from .layerwise import LayerRule
from .masking import apply, current_masks, expand, restore
from .recovery.run import Snapshot
from .registry import Registry
from .text import percent
from .units import contract, kept_of, tensors_of

STRATEGIES: dict[str, Registry[Any]] = {  # a recipe's fields that are names, or what is registered under them
    "criterion": criteria.CRITERIA,
    "granularity": granularity.GRANULARITIES,
    "schedule": schedules.SCHEDULES,
    "layerwise": layerwise.LAYER_RULES,
}
OPTIONS = ("reduce", "floor", "round_to")  # a recipe's, of `allocate`


@dataclass(frozen=True, repr=False)
class Recipe:
    """What to prune and how, as plain values that can be printed, compared and shared.

    criterion, granularity, schedule, layerwise: registered names, or strategies of one's own.
    sparsity: the final share of units removed, by default half of them or what an N:M scope implies; or that of each
    group by its name.
    rounds: in how many steps the schedule gets there.
    layerwise: with scope "layer", the rule by which the sparsity becomes each group's, such as "erk".
    reduce, floor, round_to: as in `allocate`; None is its default.

    >>> Recipe("taylor", "filters", 0.3).rounds, Recipe(scope=NM(2, 4)).sparsity
    (1, 0.5)
    """

    criterion: str | Criterion = "magnitude"
    granularity: str | Granularity = "weights"
    sparsity: float | Mapping[str, float] | None = None
    scope: Scope = "global"
    schedule: str | Schedule = "one_shot"
    rounds: int = 1
    layerwise: str | LayerRule | None = None
    reduce: str | None = None
    floor: int | None = None
    round_to: int | None = None

    def __post_init__(self) -> None:
        asked = 0.5 if self.sparsity is None and not isinstance(self.scope, NM) else self.sparsity
        round_to = 1 if self.round_to is None else self.round_to
        checked = check_asked(asked, self.scope, self.reduce, self.floor, round_to)
        object.__setattr__(self, "sparsity", checked)  # so that a printed recipe says it
        for name, registry in STRATEGIES.items():
            if name != "layerwise" or self.layerwise is not None:
                registry.by_name(getattr(self, name))
        if self.layerwise is not None and (self.scope != "layer" or isinstance(asked, Mapping)):
            raise PruneError(
                f'layerwise={self.layerwise!r} makes a share for each group of one sparsity: give scope "layer" and a '
                f"number, not scope {str(self.scope)!r} and {asked}"
            )
        check_count("rounds", self.rounds)

    def __repr__(self) -> str:
        given = [(f.name, getattr(self, f.name)) for f in fields(self) if getattr(self, f.name) is not None]
        return f"Recipe({', '.join(f'{name}={value!r}' for name, value in given)})"


@dataclass(frozen=True)
class GroupSparsity:
    """How many of a group's units are kept.

    >>> GroupSparsity("conv1", units=8, kept=6).sparsity
    0.25
    """

    name: str
    units: int
    kept: int
    floored: bool = False  # down to the last unit, which a structure keeps
    exact: bool = True  # masked and removed compute the same

    @property
    def sparsity(self) -> float:
        """The share removed."""
        return 1 - self.kept / self.units if self.units else 0.0


@dataclass(frozen=True, repr=False)
class Report:
    """How much of each group is kept, and of all of them together. `print` it, or let a notebook show it.

    >>> Report((GroupSparsity("a", 4, kept=3), GroupSparsity("b", 4, kept=0))).emptied
    ('b',)
    """

    layers: tuple[GroupSparsity, ...]
    parameters: int | None = None  # of the whole model, where it was given ...
    zeros: int = 0  # ... and how many of them are zero: by the masks on it, by these, and by themselves
    uncovered: Mapping[str, int] = field(default_factory=dict, hash=False)  # in no group: parameters by their kind
    stays: Mapping[str, str] = field(default_factory=dict, hash=False)  # what could not be pruned, and why

    @property
    def total(self) -> GroupSparsity:
        """All groups as one."""
        return GroupSparsity("total", sum(r.units for r in self.layers), sum(r.kept for r in self.layers))

    @property
    def sparsity(self) -> float:
        """The share of all units that was removed: what was achieved, which rounding makes differ from the asked."""
        return self.total.sparsity

    @property
    def emptied(self) -> tuple[str, ...]:
        """The groups that lost every unit: nothing passes through such a layer any more."""
        return tuple(r.name for r in self.layers if r.kept == 0 and r.units)

    @property
    def floored(self) -> tuple[str, ...]:
        """The structures down to their last unit: `allocate` keeps that one, whatever it scores."""
        return tuple(r.name for r in self.layers if r.floored)

    @property
    def inexact(self) -> tuple[str, ...]:
        """The structures that lost units and of which a masked model computes something else than a shrunk one."""
        return tuple(r.name for r in self.layers if not r.exact and r.kept < r.units)

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        wide = max(len(r.name) for r in (*self.layers, self.total))
        lines = [
            f"{r.name:<{wide}}  {r.kept:>10,} of {r.units:>10,} kept  {100 * r.sparsity:6.2f} % removed"
            for r in (*self.layers, self.total)
        ]
        if self.emptied:
            lines.append(f"emptied, nothing passes through: {', '.join(self.emptied)}")
        if self.floored:
            lines.append(f"at the floor, one unit left: {', '.join(self.floored)}")
        if self.inexact:
            lines.append(f"not exact, masked and removed differ: {', '.join(self.inexact)}")
        return "\n".join([*lines, *self._of_the_model()])

    def _of_the_model(self) -> list[str]:
        """What a share of all units does not say: of how much of the model."""
        lines = []
        if self.parameters is not None:
            share = 100 * self.zeros / max(self.parameters, 1)
            lines.append(f"{self.zeros:,} of {self.parameters:,} parameters of the model are zero, {share:.2f} %")
        if self.uncovered:
            kinds = ", ".join(f"{kind} {count:,}" for kind, count in self.uncovered.items())
            lines.append(f"{sum(self.uncovered.values()):,} parameters are in no group and stay: {kinds}")
        return [*lines, *(f"{name} stays: it {reason}" for name, reason in self.stays.items())]


def report(groups: Sequence[Group], keep: Keep, model: nn.Module | None = None) -> Report:
    """Count what a result of `allocate` keeps, group by group; and with the model, what share of all of it is zero.

    Zeros are counted as if these masks were put on, over those that are. With single weights the parameters in no group
    (embeddings, norms, biases) are counted by kind; what could not be pruned is named, with the reason.

    >>> from prunelab.core import Member
    >>> groups = [Group("a", 4, (Member("w"),))]
    >>> print(report(groups, {"a": torch.tensor([True, False, True, True])}))
    a               3 of          4 kept   25.00 % removed
    total           3 of          4 kept   25.00 % removed
    >>> layer = nn.Linear(2, 1)
    >>> layer.weight.data, layer.bias.data = torch.tensor([[0.0, 1.0]]), torch.tensor([1.0])
    >>> counted = report([Group("weight", 2, (Member("weight"),))], {"weight": torch.tensor([True, True])}, layer)
    >>> counted.zeros, counted.parameters, counted.uncovered
    (1, 3, {'biases': 1})
    """
    counts = at_once([torch.count_nonzero(kept_of(g, keep)) for g in groups])
    layers = []
    for g, kept in zip(groups, map(int, counts), strict=True):
        layers.append(GroupSparsity(g.name, g.units, kept, is_structure(g) and kept == 1 < g.units, g.exact))
    stays: dict[str, str] = getattr(groups, "stays", {})
    if model is None:
        return Report(tuple(layers), stays=stays)
    parameters, nonzero = count(model, expand(model, groups, keep))
    uncovered = {} if any(map(is_structure, groups)) else _uncovered(places(model), groups)
    return Report(tuple(layers), parameters, parameters - nonzero, uncovered, unreachable(model) | dict(stays))


def _uncovered(everywhere: Sequence[Place], groups: Sequence[Group]) -> dict[str, int]:
    """The parameters that are in no group, counted by the kind of layer that holds them; biases apart."""
    names = {m.tensor for g in groups for m in g.members}
    covered = {id(place.tensor) for place in everywhere if place.name in names}
    counts: dict[str, int] = {}
    for place in everywhere:
        if isinstance(place.tensor, nn.Parameter) and id(place.tensor) not in covered:
            covered.add(id(place.tensor))
            kind = "biases" if "bias" in place.attribute else type(place.module).__name__.removeprefix("Parametrized")
            counts[kind] = counts.get(kind, 0) + place.tensor.numel()
    return counts


@dataclass(frozen=True)
class Pruned:
    """What `prune` decided: the structures, which of them stay, the masks now on the model, and the counts."""

    groups: tuple[Group, ...]
    keep: Keep
    masks: Masks
    report: Report

    def __repr__(self) -> str:
        return str(self.report)


def prune(
    model: nn.Module,
    recipe: Recipe,
    calib: Calibration | None = None,
    *,
    example: Any = None,
    recover: Callable[[nn.Module], Any] | None = None,
) -> Pruned:
    """Mask a model in place as the recipe says; `bake` or `shrink` it afterwards.

    example: inputs to trace the model with, where structures are removed; by default the calibration's first batch.
    recover: called with the model after every round's masks are on, e.g. `lambda m: finetune(m, data)`.
    A model that is masked already stays so: what is gone stays gone and counts towards the sparsity, and a sparsity
    below what is gone raises PruneError. If anything fails, the model is as it was.

    >>> model = nn.Linear(4, 1)
    >>> model.weight.data = torch.tensor([[3.0, -1.0, 2.0, 0.5]])
    >>> pruned = prune(model, Recipe("magnitude", sparsity=0.5))
    >>> model.weight.tolist(), pruned.report.sparsity
    ([[3.0, 0.0, 2.0, 0.0]], 0.5)
    """
    job = _Job.of(model, recipe, calib, example)
    masked = current_masks(model)
    keep = contract(job.groups, masked) if masked else None
    with _undone_on_failure(model, masked, trained=recover is not None):
        for done in range(1, recipe.rounds + 1):
            keep = job.prune(done / recipe.rounds, keep, masked)
            if recover:
                recover(model)
    assert keep is not None
    masks = _within(masked, expand(model, job.groups, keep))
    return Pruned(tuple(job.groups), keep, masks, report(job.groups, keep, model))


def gradually(
    model: nn.Module,
    recipe: Recipe,
    calib: Calibration | None = None,
    *,
    example: Any = None,
    until: float = 0.75,
) -> Callable[[int, int], None]:
    """Prune within one training run: `train(model, data, on_step=gradually(model, recipe))`.

    At `recipe.rounds` equally spaced steps, the last at `until` of the run, as much is gone as the schedule says there;
    the rest of the run is for recovery. With schedule="cubic": Zhu and Gupta 2017, arXiv 1710.01878. Each round scores
    the weights as they then are, and what is gone stays gone. `example` and `calib` are as in `prune`.
    Raises PruneError, at the run's first step, if it is too short for so many rounds.

    >>> model = nn.Linear(10, 1)
    >>> on_step = gradually(model, Recipe(sparsity=0.8, schedule="linear", rounds=2))
    >>> zeros = []
    >>> for done in range(1, 9):  # as `train` would, after each step
    ...     on_step(done, 8)
    ...     zeros.append(int((model.weight == 0).sum()))
    >>> zeros
    [0, 0, 4, 4, 4, 8, 8, 8]
    """
    if not 0 < until <= 1:
        raise PruneError(f"until={until!r}: the last round comes at a share of the run, above 0 and at most 1")
    job = _Job.of(model, recipe, calib, example)

    def on_step(done: int, total: int) -> None:
        moments = {round(until * total * n / recipe.rounds): n / recipe.rounds for n in range(1, recipe.rounds + 1)}
        if len(moments) < recipe.rounds or 0 in moments:
            raise PruneError(
                f"{recipe.rounds} rounds do not fit into {percent(until, digits=0)} of {total} steps: "
                "train longer, or prune in fewer"
            )
        if done in moments:
            masked = current_masks(model)
            job.prune(moments[done], contract(job.groups, masked) if masked else None, masked)

    on_step.__qualname__ = f"gradually({recipe}, until={until:g})"  # what a checkpoint knows it by
    return on_step


@dataclass(frozen=True)
class _Job:
    """A recipe on a model: what may go, and how much of each."""

    model: nn.Module
    recipe: Recipe
    calib: Calibration | None
    groups: list[Group]
    sparsity: Share

    @classmethod
    def of(cls, model: nn.Module, recipe: Any, calib: Calibration | None, example: Any) -> _Job:
        """Find the groups and their sparsities; PruneError for anything but a recipe."""
        if not isinstance(recipe, Recipe):
            raise PruneError(
                f"the recipe is {recipe!r}: give a pl.Recipe, such as pl.Recipe('magnitude', sparsity=0.5)"
            )
        if example is None and calib is not None:
            example = calib.example
        groups = granularity.by_name(recipe.granularity)(model, example)
        _warn_of_frozen(model)
        sparsity = recipe.sparsity
        assert sparsity is not None  # Recipe resolved it
        if recipe.layerwise is not None:
            assert not isinstance(sparsity, Mapping)  # Recipe checked it
            sparsity = layerwise.by_name(recipe.layerwise)(model, groups, sparsity)
        return cls(model, recipe, calib, groups, sparsity)

    def prune(self, way: float, keep: Keep | None, masked: Masks) -> Keep:
        """One pruning, so much of the way to the recipe's end by its schedule, within what earlier ones kept."""
        scores = criteria.by_name(self.recipe.criterion)(self.model, self.calib)
        share, scope = self._asked(schedules.by_name(self.recipe.schedule)(way))
        how = {name: value for name in OPTIONS if (value := getattr(self.recipe, name)) is not None}
        found = allocate(scores, _scored(self.groups, scores, share), share, scope, within=keep, **how)
        del scores  # as large as the model, and of no more use
        keep = {g.name: found.get(g.name, _as_it_is(g, keep)) for g in self.groups}
        apply(self.model, _within(masked, expand(self.model, self.groups, keep)))
        return keep

    def _asked(self, progress: float) -> tuple[Share | None, Scope]:
        """What to ask of `allocate` at a share of the way: N:M grows in its own steps, 2:4 by way of 3:4."""
        if isinstance(self.recipe.scope, NM):
            return None, self.recipe.scope.after(progress)
        if isinstance(self.sparsity, Mapping):
            return {name: share * progress for name, share in self.sparsity.items()}, self.recipe.scope
        return self.sparsity * progress, self.recipe.scope


def _scored(groups: list[Group], scores: Scores, share: Share | None) -> list[Group]:
    """The groups without those that a criterion could not see, which are named; a share of its own is asked of each."""
    if not isinstance(scores, PartialScores) or isinstance(share, Mapping):
        return groups
    scored = [g for g in groups if tensors_of(g, scores)]
    whole = [g.name for g in groups if not tensors_of(g, scores)]
    if not whole or not scored:
        return groups
    warnings.warn(f"not pruned, since the criterion has no scores for it: {', '.join(whole)}", stacklevel=4)
    return scored


def _as_it_is(group: Group, keep: Keep | None) -> Tensor:
    return torch.ones(group.units, dtype=torch.bool) if keep is None else keep[group.name]


def _within(before: Masks, masks: Masks) -> Masks:
    """The masks without what was gone before: a filter that stays may have lost single weights earlier."""
    return {name: mask & before[name].to(mask.device) if name in before else mask for name, mask in masks.items()}


@contextmanager
def _undone_on_failure(model: nn.Module, masks: Masks, *, trained: bool) -> Iterator[None]:
    """Put the masks back if the block raises; and where it trains: weights, buffers, gradients and modes."""
    saved = Snapshot.of(model) if trained else None
    grads = [(p, None if p.grad is None else p.grad.clone()) for p in model.parameters()] if trained else []
    modes = [(m, m.training) for m in model.modules()]
    try:
        yield
    except BaseException:
        for module, training in modes:
            module.training = training
        if saved is None:
            restore(model, masks)
        else:
            saved.put_back(model)
        for parameter, grad in grads:
            parameter.grad = grad
        raise


def _warn_of_frozen(model: nn.Module) -> None:
    """Say once which weights cannot recover; a model frozen all over is for inference, where that is meant."""
    weights = prunable(model)
    frozen = [f"{name} {shape(w)}" for name, w in weights.items() if not w.requires_grad]
    if 0 < len(frozen) < len(weights):
        warnings.warn(
            f"frozen (requires_grad=False): {', '.join(frozen)}. Pruned like the others, but fine-tuning cannot "
            "repair them; to leave them alone use a granularity such as partial(granularity.weights, exclude=[...])",
            stacklevel=4,
        )
