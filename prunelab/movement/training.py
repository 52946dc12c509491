"""Prune while fine-tuning: by scores that learn, or, as the control, by any criterion asked anew at every step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW, Optimizer

from .. import criteria, schedules
from ..allocation import unit_scores
from ..calibration import Calibration
from ..calibration.samples import Loss
from ..checks import check_number
from ..core import Criterion, Group, Keep, PruneError, Schedule
from ..masking import apply, current_masks, expand, restore
from ..pipeline import Pruned, report
from ..recovery import History, train
from ..recovery.run import Objective
from . import gates
from .rules import Rule, TopV

GRADUAL = schedules.Between(0.1, 0.7)  # a warm-up, in which scores find their order, and a cool-down


@dataclass(frozen=True)
class Learned:
    """What pruning while fine-tuning came to: what `prune` gives, the scores at the end, and how training went."""

    pruned: Pruned
    scores: dict[str, Tensor]  # group name -> (units,)
    history: History

    def __repr__(self) -> str:
        return f"{self.pruned}\n{self.history}"


def finetune(
    model: nn.Module,
    data: Any,
    groups: Sequence[Group],
    rule: Rule,
    *,
    schedule: str | Schedule = GRADUAL,
    lr: float = 1e-4,
    scores_lr: float = 1e-1,
    weight_decay: float = 0.0,
    loss: Loss = F.cross_entropy,
    optimizer: Callable[[nn.Module], Optimizer] | None = None,
    **options: Any,
) -> Learned:
    """Movement pruning: fine-tune with a trainable score a unit, and keep what the rule keeps. Changes the model.

    After each step the masks are those of `rule`, TopV (hard) or Threshold (soft), at the schedule's share of the
    way; at the end they are ordinary masks of all that leaves, to be baked or shrunk. AdamW at `lr` for the weights
    and `scores_lr` for the scores, whose size does not matter to TopV: it only ranks, and Adam's steps scale. With an
    `optimizer` of your own, the scores are among the model's parameters: `by_group(model)`.
    `options` go to `recovery.train`: epochs or steps, lr_schedule, checkpoint, seed, ... Sanh et al. 2020, 2005.07683.

    Raises PruneError, with the model as it was, as `attach` and `train` do, and for a schedule that does not go from
    0 to 1. An interrupt leaves a model that wears the masks of the moment; a run with a checkpoint goes on from there.

    >>> from prunelab.granularity import weights
    >>> layer, data = nn.Linear(4, 2), (torch.eye(4), torch.tensor([0, 1, 0, 1]))
    >>> learned = finetune(layer, data, weights(layer), TopV(0.5), steps=10, progress=False)
    >>> learned.pruned.report.sparsity, int((layer.weight == 0).sum())
    (0.5, 4)
    """
    share = schedules.by_name(schedule)
    for name, rate in (("lr", lr), ("scores_lr", scores_lr)):
        check_number(name, rate, "give a positive learning rate, such as 0.001", above=0)
    check_number("weight_decay", weight_decay, "give a number of at least 0, such as 0.01", least=0)
    _check_rule(rule, "keep", "cost")
    gates.attach(model, groups)
    learned, learning, now = gates.by_group(model), gates.gated(model, groups), 0.0

    def after(done: int, total: int) -> None:
        nonlocal now
        now = share(done / total)
        apply(model, expand(model, learning, rule.keep(gates.scores(model), groups, now)))

    objective = Objective(lambda _, outputs, targets: loss(outputs, targets) + rule.cost(learned, now), loss)
    made = optimizer or (lambda _: _two_rates(model, lr, scores_lr, weight_decay))
    after.__qualname__ = f"movement.finetune({rule}, {share})"  # what a checkpoint knows it by
    with _sound(model):
        history = train(model, data, loss=objective, optimizer=made, on_step=after, **options)
        found = gates.scores(model)
        keep = rule.keep(found, groups, 1.0)
    gates.detach(model)
    return Learned(_settled(model, groups, keep), found, history)


def gradual(
    model: nn.Module,
    data: Any,
    groups: Sequence[Group],
    rule: TopV,
    criterion: str | Criterion,
    *,
    calib: Calibration | None = None,
    schedule: str | Schedule = GRADUAL,
    **options: Any,
) -> Learned:
    """The control of movement: the same training, rule and schedule, by the scores of a criterion at every step.

    With magnitude this is gradual magnitude pruning: Zhu and Gupta 2017, arXiv 1710.01878. As under movement, and
    unlike in `pipeline.prune`, what left may return: a weight under the mask stands still, and is scored as it is.
    Raises PruneError as `finetune`.

    >>> from prunelab.granularity import weights
    >>> layer, data = nn.Linear(4, 2), (torch.eye(4), torch.tensor([0, 1, 0, 1]))
    >>> learned = gradual(layer, data, weights(layer), TopV(0.5), "magnitude", steps=10, progress=False)
    >>> learned.pruned.report.sparsity
    0.5
    """
    share = schedules.by_name(schedule)
    judge = criteria.by_name(criterion)
    _check_rule(rule, "keep")
    gates.check_whole(model, groups)
    keep: Keep = {g.name: torch.ones(g.units, dtype=torch.bool) for g in groups}
    others = current_masks(model)  # on what is in no group

    def scores() -> dict[str, Tensor]:
        return unit_scores(judge(model, calib), groups)

    def after(done: int, total: int) -> None:
        nonlocal keep
        now = share(done / total)
        keep = rule.keep(scores(), groups, now) if now else keep
        restore(model, others | expand(model, groups, keep))  # a module that is back wears no mask, so `apply` won't do

    scores()  # a criterion that can't score this model says so before anything is changed
    units = {g.name: g.units for g in groups}
    after.__qualname__ = f"movement.gradual({rule}, {judge}, {share}, {units})"  # what a checkpoint knows it by
    with _sound(model):
        history = train(model, data, on_step=after, **options)
        return Learned(_settled(model, groups, keep), scores(), history)


def _check_rule(rule: Any, *methods: str) -> None:
    if not all(callable(getattr(rule, method, None)) for method in methods):
        raise PruneError(f"the rule is {rule!r}: give movement.TopV(0.9), or for finetune movement.Threshold(1.0)")


def _two_rates(model: nn.Module, lr: float, scores_lr: float, weight_decay: float) -> Optimizer:
    scores = list(gates.by_group(model).values())
    weights = [p for p in model.parameters() if p.requires_grad and not any(p is s for s in scores)]
    return AdamW(
        [{"params": weights, "lr": lr, "weight_decay": weight_decay}, {"params": scores, "lr": scores_lr}],
        weight_decay=0.0,  # of scores it would pull all to a tie
    )


def _settled(model: nn.Module, groups: Sequence[Group], keep: Keep) -> Pruned:
    """Mask all that leaves: of a structure so far only what reads it."""
    masks = expand(model, groups, keep)
    apply(model, masks)
    return Pruned(tuple(groups), keep, masks, report(groups, keep, model))


@contextmanager
def _sound(model: nn.Module) -> Iterator[None]:
    """If the block raises: no scores stay, and no mask that hides nothing."""
    try:
        yield
    except BaseException:  # a KeyboardInterrupt too
        gates.detach(model)
        restore(model, {name: mask for name, mask in current_masks(model).items() if not mask.all()})
        raise
