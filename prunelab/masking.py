"""Masks: hold weights at zero while a model trains (`apply`), for a moment (`masked`), or for good (`bake`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from . import units
from .core import Group, Keep, Mask, Masks, Place, PruneError, all_masks, in_order, lookup_all, masks_on, named, shape
from .layers import check_made_by_none, follow


def apply(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """Hold weights at exactly zero wherever their mask is False, through any training that follows.

    A mask is put on as a parametrization, w -> where(mask, w, 0): the masked entries get no gradient,
    and an optimizer made earlier keeps working. Naming a tensor that has a mask already *replaces* that
    mask; tensors not named keep theirs. Tied weights share one mask. Changes the model, and returns it.

    Raises PruneError, before anything is changed, for an unknown name, a wrong shape, or a mask not of bools.

    >>> layer = nn.Linear(2, 1)
    >>> layer.weight.data = torch.tensor([[3.0, -0.5]])
    >>> apply(layer, {"weight": torch.tensor([[True, False]])}).weight.tolist()
    [[3.0, 0.0]]
    """
    for sharing, mask in _checked(model, masks):
        for place in sharing:
            _put(place, mask.to(place.tensor.device, copy=True))
    return model


def expand(model: nn.Module, groups: Sequence[Group], keep: Keep) -> Masks:
    """Masks for every tensor that loses a unit's entries: (units,) bools laid out in the tensors' own shapes.

    A tensor in several groups keeps an entry only if all of them do. Raises PruneError if keep and groups differ.

    >>> from prunelab.core import Member
    >>> row = Group("row", 3, (Member("weight", 0), Member("bias", 0)))
    >>> masks = expand(nn.Linear(2, 3), [row], {"row": torch.tensor([True, False, True])})
    >>> masks["weight"].tolist()
    [[True, True], [False, False], [True, True]]
    """
    return units.masks(named(model), groups, keep)


def bake(model: nn.Module) -> nn.Module:
    """Write the zeros into the weights and take the masks off: the same outputs, a plain model again.

    From here on nothing holds the zeros: training would regrow them. A model without masks is left alone.

    >>> layer = apply(nn.Linear(2, 1), {"weight": torch.tensor([[True, False]])})
    >>> bake(layer).weight.detach()[0, 1] == 0, type(layer.weight) is nn.Parameter
    (tensor(True), True)
    """
    for place, mask in all_masks(model):
        with torch.no_grad():
            place.tensor.masked_fill_(~mask.mask, 0)
        _remove(place, mask)
    return model


@contextmanager
def masked(model: nn.Module, masks: Mapping[str, Tensor]) -> Iterator[nn.Module]:
    """Mask a model for the length of a `with` block, then put all back as it was.

    >>> layer = nn.Linear(2, 1)
    >>> layer.weight.data = torch.tensor([[3.0, -0.5]])
    >>> with masked(layer, {"weight": torch.tensor([[True, False]])}):
    ...     layer.weight.tolist()
    [[3.0, 0.0]]
    >>> layer.weight.tolist()
    [[3.0, -0.5]]
    """
    before = current_masks(model)
    try:
        yield apply(model, masks)
    finally:
        restore(model, before)


def restore(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """Put on exactly these masks and no others, the weights under any removed mask coming back bit for bit.

    >>> layer = nn.Linear(2, 1)
    >>> layer.weight.data = torch.tensor([[3.0, -0.5]])
    >>> layer = apply(layer, {"weight": torch.tensor([[True, False]])})
    >>> restore(layer, {}).weight.tolist()
    [[3.0, -0.5]]
    """
    _checked(model, masks)  # before any mask is taken off
    for place, mask in all_masks(model):
        if place.name not in masks:
            _remove(place, mask)
    return apply(model, masks)


def current_masks(model: nn.Module) -> Masks:
    """A copy of the masks a model holds now, by tensor name; empty for a plain or baked model.

    >>> current_masks(nn.Linear(2, 1))
    {}
    """
    return {place.name: mask.mask.clone() for place, mask in all_masks(model)}


def _checked(model: nn.Module, masks: Mapping[str, Tensor]) -> list[tuple[list[Place], Tensor]]:
    """Where each mask goes; PruneError if one of them cannot."""
    check_made_by_none(model, masks)
    everywhere = lookup_all(model, masks)
    return [(_check(name, mask, everywhere[name]), mask) for name, mask in masks.items()]


def _check(name: str, mask: Tensor, sharing: list[Place]) -> list[Place]:
    weight = sharing[0].tensor
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        given = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise PruneError(f"the mask of {name} {shape(weight)} is {given}: give torch.bool, True = keep")
    if mask.shape != weight.shape:
        raise PruneError(f"the mask of {name} has shape {shape(mask)}, the weight {shape(weight)}: they must match")
    if not isinstance(weight, nn.Parameter):
        raise PruneError(f"{name} {shape(weight)} is a buffer, which nothing trains: only parameters take a mask")
    return sharing


def _put(place: Place, mask: Tensor) -> None:
    on = masks_on(place.module)
    if place.attribute in on:
        on[place.attribute].mask = mask
        return
    order = next((m.order for m in on.values()), tuple(place.module._parameters))
    _unshare_class(place.module)
    parametrize.register_parametrization(place.module, place.attribute, Mask(mask, order), unsafe=True)
    follow(place.module)


def _remove(place: Place, mask: Mask) -> None:
    _unshare_class(place.module)
    # In place, not by `leave_parametrized`: that gives the weight a new storage, in another memory layout.
    parametrize.remove_parametrizations(place.module, place.attribute, leave_parametrized=False)
    follow(place.module)
    own = place.module._parameters
    # Back in their first order: `model.parameters()`, and so a saved optimizer, goes by position.
    for name in in_order(own, mask.order):
        own[name] = own.pop(name)


def _unshare_class(module: nn.Module) -> None:
    """Parametrizing edits a module's class, which a deepcopy shares: without its own, baking one would break both."""
    if parametrize.is_parametrized(module):
        shared = type(module)
        module.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))
