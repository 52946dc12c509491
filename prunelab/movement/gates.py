"""Scores that learn: a mask the weights obey, and a gradient for the scores as if the mask were not there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .. import units
from ..core import (
    Group,
    Mask,
    Member,
    Place,
    PruneError,
    check_loaded,
    lookup_all,
    mask_of,
    masks_on,
    named,
    network,
    shape,
)
from ..layers import input_dim
from ..masking import apply


class _Through(torch.autograd.Function):
    """W' = W where the mask is True, 0 elsewhere; dL/dW = dL/dW' there; dL/dS = dL/dW' * W everywhere."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, mask: Tensor, members: Sequence[Member], *scores: Tensor) -> Tensor:
        ctx.save_for_backward(weight, mask)
        ctx.owners = [(m, len(s)) for m, s in zip(members, scores, strict=True)]
        return torch.where(mask, weight, torch.zeros((), dtype=weight.dtype, device=weight.device))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, mask = ctx.saved_tensors
        moved = grad * weight  # of every entry, kept or not
        each = [units.entries(member, moved, count).sum(1) for member, count in ctx.owners]  # (units,)
        return torch.where(mask, grad, torch.zeros_like(grad)), None, None, *each


class Gate(nn.Module):
    """What `attach` adds to a mask: the scores of the units that own the weight, one parameter a group."""

    def __init__(self, names: Sequence[str], members: Sequence[Member], scores: Sequence[nn.Parameter]):
        super().__init__()
        self.names, self.members = tuple(names), tuple(members)
        self.scores = nn.ParameterList(scores)

    def forward(self, weight: Tensor, mask: Tensor) -> Tensor:
        return _Through.apply(weight, mask, self.members, *self.scores)


def attach(model: nn.Module, groups: Sequence[Group]) -> nn.Module:
    """Give every unit a trainable score, 0 at first, and its weights a mask, all True at first. Changes the model.

    The scores become parameters of the model, so that an optimizer trains them and a checkpoint holds them. With
    W' the masked weight, the straight-through estimator gives dL/dS = dL/dW' * W for every entry, kept or not; a unit
    of several entries gets their sum. Sanh et al. 2020, arXiv 2005.07683; a score a block or unit: Lagunas et al.
    2021, arXiv 2109.04838.

    A structure is gated where it is *read* (see `gated`), until `settle` masks all of it.

    Raises PruneError, before anything is changed, for masks already on, frozen weights, foreign groups, or groups of
    whole modules.

    >>> from prunelab.granularity import weights
    >>> layer = nn.Linear(2, 1)
    >>> layer.weight.data = torch.tensor([[3.0, -0.5]])
    >>> attach(layer, weights(layer))(torch.tensor([[1.0, 2.0]])).sum().backward()
    >>> by_group(layer)["weight"].grad  # of the output y by the score of w: x w
    tensor([ 3., -1.])
    """
    check_loaded(model)
    _check_sliced(groups)
    check_whole(model, groups)
    learning = gated(model, groups)
    everywhere = lookup_all(model, _tensors(learning))
    weights = {name: sharing[0].tensor for name, sharing in everywhere.items()}
    _check_learns(weights)
    scores = {}
    for group in learning:
        for member in group.members:
            units.check(member, weights[member.tensor], group.units)
        like = weights[group.members[0].tensor]
        wide = torch.promote_types(like.dtype, torch.float32)  # of half precision small steps would be lost
        scores[group.name] = nn.Parameter(torch.zeros(group.units, dtype=wide, device=like.device))
    apply(model, {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()})
    for sharing in everywhere.values():
        owners = [(g.name, m, scores[g.name]) for g in learning for m in g.members if everywhere[m.tensor] is sharing]
        gate = Gate(*zip(*owners, strict=True))
        for place in sharing:
            masks_on(place.module)[place.attribute].gate = gate
    return model


def gated(model: nn.Module, groups: Sequence[Group]) -> list[Group]:
    """The groups with only those members that read a unit's output, where there are any: the next layers' columns.

    Masked on both sides, a unit that left would send nothing to weights that pass nothing on: a product of zeros,
    whose derivative is 0, and its score could never rise again. Of an exact group the output is the same.

    >>> from prunelab.granularity import neurons
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> [member.tensor for member in gated(model, neurons(model, torch.zeros(1, 2)))[0].members]
    ['2.weight']
    """
    at = {name: sharing[0] for name, sharing in lookup_all(model, _tensors(groups)).items()}
    found = []
    for group in groups:
        learned = tuple(m for m in group.members if m.learned)
        readers = tuple(m for m in learned if _reads(at[m.tensor], m))
        found.append(replace(group, members=readers or learned))
    return found


def scores(model: nn.Module) -> dict[str, Tensor]:
    """The learned scores by group, (units,) each: higher = keep. PruneError if nothing has attached any.

    >>> from prunelab.granularity import weights
    >>> layer = nn.Linear(2, 1)
    >>> scores(attach(layer, weights(layer)))
    {'weight': tensor([0., 0.])}
    """
    found = by_group(model)
    if not found:
        raise PruneError(
            f"this {type(model).__name__} has no movement scores: movement is learned while fine-tuning, and cannot be "
            "read off a network at rest. Call movement.finetune(model, data, groups, movement.TopV(0.9))"
        )
    return {name: s.detach() for name, s in found.items()}


def detach(model: nn.Module) -> nn.Module:
    """Take the scores off; the masks stay, as `masking.apply` puts them on. A model without scores is left alone.

    >>> from prunelab.granularity import weights
    >>> layer = nn.Linear(2, 1)
    >>> by_group(detach(attach(layer, weights(layer))))
    {}
    """
    for module in network(model).modules():
        if isinstance(module, Mask):
            module.gate = None
    return model


def by_group(model: nn.Module) -> dict[str, nn.Parameter]:
    """The scores as the parameters that an optimizer trains; none without `attach`.

    >>> from prunelab.granularity import weights
    >>> layer = nn.Linear(2, 1)
    >>> by_group(attach(layer, weights(layer)))["weight"].requires_grad
    True
    """
    gates = [m.gate for m in network(model).modules() if isinstance(m, Mask) and isinstance(m.gate, Gate)]
    return {name: s for gate in gates for name, s in zip(gate.names, gate.scores, strict=True)}


def _tensors(groups: Sequence[Group]) -> list[str]:
    return list(dict.fromkeys(m.tensor for g in groups for m in g.members))


def _reads(place: Place, member: Member) -> bool:
    if member.dim is None or place.tensor.dim() < 2:
        return False
    return member.dim % place.tensor.dim() == input_dim(place)


def check_whole(model: nn.Module, groups: Sequence[Group]) -> None:
    """PruneError if a tensor of the groups, or of their modules, wears a mask, or there are no groups to learn of."""
    if not groups:
        raise PruneError("no groups: give those of a granularity, such as granularity.weights(model)")
    if len({g.name for g in groups}) < len(groups):
        raise PruneError("two groups have the same name: give every group its own")
    known, inside = named(model), []
    for group in groups:
        units.check_parts(group, known)
        inside += [name for _, own in units.inside_parts(group.parts, known) for name in own]
    for name, sharing in lookup_all(model, [*_tensors(groups), *inside]).items():
        if any(mask_of(p.module, p.attribute) is not None for p in sharing):
            raise PruneError(
                f"{name} {shape(sharing[0].tensor)} wears a mask already, and gradual pruning starts with all weights "
                "there: call pl.bake(model) first, or load a network that is whole"
            )


def _check_sliced(groups: Sequence[Group]) -> None:
    whole = next((g for g in groups if g.parts), None)
    if whole is not None:
        raise PruneError(
            f"{whole.name} holds whole modules, such as {whole.parts[0].path}, and movement learns scores of slices of "
            "tensors only: give the groups of weights, heads or glu_neurons, or use movement.gradual or pl.prune"
        )


def _check_learns(weights: Mapping[str, Tensor]) -> None:
    for name, weight in weights.items():
        if not weight.requires_grad:
            raise PruneError(
                f"{name} {shape(weight)} is frozen (requires_grad=False): no gradient reaches its scores. Call "
                ".requires_grad_(True) on it, or leave it out with exclude=[...]"
            )
