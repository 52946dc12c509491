"""The whole process in one call: score, allocate, mask, recover, as often as a schedule says."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from . import criteria, granularity, schedules
from .allocation import (
    NM,
    Report,
    Scope,
    Share,
    allocate,
    check_share,
    check_target,
    contract,
    expand,
    of_model,
    report,
)
from .calibration import Calibration
from .core import Group, Keep, Masks, PruneError, Schedule, Scores, shape
from .criteria import Criterion
from .criteria.registry import PartialScores
from .granularity import Granularity
from .layers import prunable
from .masking import apply, current_masks, restore
from .recovery.run import Described
from .units import tensors_of


@dataclass(frozen=True)
class Recipe:
    """What to prune and how, as plain values that can be printed, compared and shared.

    criterion, granularity and schedule are registered names or functions of one's own; sparsity is the final
    share of units removed, by default half of them or what an N:M scope implies, or the share of each group by its
    name; `rounds` is in how many steps the schedule gets there.
    """

    criterion: str | Criterion = "magnitude"
    granularity: str | Granularity = "weights"
    sparsity: float | Mapping[str, float] | None = None
    scope: Scope = "global"
    schedule: str | Schedule = "one_shot"
    rounds: int = 1

    def __post_init__(self) -> None:
        asked = 0.5 if self.sparsity is None and not isinstance(self.scope, NM) else self.sparsity
        checked = _shares(asked, self.scope) if isinstance(asked, Mapping) else check_target(asked, self.scope)
        object.__setattr__(self, "sparsity", checked)  # so that a printed recipe says it
        criteria.by_name(self.criterion)
        granularity.by_name(self.granularity)
        schedules.by_name(self.schedule)
        if not isinstance(self.rounds, int) or self.rounds < 1:
            raise PruneError(f"rounds={self.rounds!r}: prune in a whole number of them, at least 1")


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
    A model that wears masks already keeps them: what is gone stays gone and counts towards the sparsity,
    and a sparsity below what is gone raises PruneError. If anything fails, the model is as it was.
    """
    _check_recipe(recipe)
    score = criteria.by_name(recipe.criterion)
    schedule = schedules.by_name(recipe.schedule)
    if example is None and calib is not None:
        example = calib.example
    groups = granularity.by_name(recipe.granularity)(model, example)
    _warn_of_frozen(model)
    worn = current_masks(model)
    keep = contract(groups, worn) if worn else None
    with _undone_on_failure(model, worn, trained=recover is not None):
        for done in range(1, recipe.rounds + 1):
            keep = _round(model, recipe, groups, schedule(done / recipe.rounds), score(model, calib), keep, worn)
            if recover:
                recover(model)
    assert keep is not None
    counted = of_model(report(groups, keep), groups, model, {})  # the masks are on
    return Pruned(tuple(groups), keep, _within(worn, expand(model, groups, keep)), counted)


def _check_recipe(recipe: Any) -> None:
    if not isinstance(recipe, Recipe):
        raise PruneError(f"the recipe is {recipe!r}: give a pl.Recipe, such as pl.Recipe('magnitude', sparsity=0.5)")


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
    """
    _check_recipe(recipe)
    score, schedule = criteria.by_name(recipe.criterion), schedules.by_name(recipe.schedule)
    if not 0 < until <= 1:
        raise PruneError(f"until={until!r}: the last round comes at a share of the run, above 0 and at most 1")
    if example is None and calib is not None:
        example = calib.example
    groups = granularity.by_name(recipe.granularity)(model, example)
    _warn_of_frozen(model)

    def on_step(done: int, total: int) -> None:
        moments = {round(until * total * n / recipe.rounds): n / recipe.rounds for n in range(1, recipe.rounds + 1)}
        if len(moments) < recipe.rounds or 0 in moments:
            raise PruneError(
                f"{recipe.rounds} rounds do not fit into {until:.0%} of {total} steps: train longer, or prune in fewer"
            )
        if done in moments:
            worn = current_masks(model)
            keep = contract(groups, worn) if worn else None
            _round(model, recipe, groups, schedule(moments[done]), score(model, calib), keep, worn)

    return Described(on_step, f"gradually({recipe}, until={until:g})")


def _round(
    model: nn.Module,
    recipe: Recipe,
    groups: list[Group],
    progress: float,
    scores: Scores,
    keep: Keep | None,
    worn: Masks,
) -> Keep:
    """One pruning within what earlier ones kept; the masks are then on the model."""
    share, scope = _target(recipe, progress)
    scored = _scored(groups, scores, share)
    found = allocate(scores, scored, share, scope, within=keep)
    keep = {g.name: found.get(g.name, _as_it_is(g, keep)) for g in groups}
    del scores  # as large as the model, and of no more use
    apply(model, _within(worn, expand(model, groups, keep)))
    return keep


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


def _within(worn: Masks, masks: Masks) -> Masks:
    """The masks without what was gone before: a filter that stays may have lost single weights earlier."""
    return {name: mask & worn[name] if name in worn else mask for name, mask in masks.items()}


def _shares(shares: Mapping[str, float], scope: Scope) -> dict[str, float]:
    """A copy of the shares by group, checked; which groups there are only a model can tell."""
    if isinstance(scope, NM) or scope not in ("global", "layer"):
        check_target(0.5, scope)  # an unknown scope is named first
        raise PruneError(
            f"scope {scope} with a share for each group: give the scope 'layer', in which each is compared"
        )
    return {name: check_share(share) for name, share in shares.items()}


def _target(recipe: Recipe, progress: float) -> tuple[Share | None, Scope]:
    """What to ask of `allocate` at a share of the way: N:M grows in its own steps, 2:4 by way of 3:4."""
    if isinstance(recipe.scope, NM):
        return None, recipe.scope.after(progress)
    assert recipe.sparsity is not None  # Recipe resolved it
    if isinstance(recipe.sparsity, Mapping):
        return {name: share * progress for name, share in recipe.sparsity.items()}, recipe.scope
    return recipe.sparsity * progress, recipe.scope


@contextmanager
def _undone_on_failure(model: nn.Module, worn: Masks, *, trained: bool) -> Iterator[None]:
    """Put the masks back if the block raises; and where it trains: weights, buffers, gradients and modes."""
    saved = copy.deepcopy(model.state_dict()) if trained else {}
    grads = [(p, None if p.grad is None else p.grad.clone()) for p in model.parameters()] if trained else []
    modes = [(m, m.training) for m in model.modules()]
    try:
        yield
    except BaseException:
        for module, training in modes:
            module.training = training
        restore(model, worn)
        if trained:
            model.load_state_dict(saved)
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
            stacklevel=3,
        )
