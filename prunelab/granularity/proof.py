"""Is a group exact? Try it: zero half of its units, remove them from a copy, and compare."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..batches import mapped
from ..core import Group, Keep, PruneError
from ..surgery.difference import outputs, worn

TOLERANCE = 1e-4  # float32 rounding stays below 1e-5, what is not exact is above 1e-3


def proven(twin: nn.Module, groups: Sequence[Group], example: Any) -> list[Group]:
    """The groups, `exact` set by experiment; those without which the model fails are left out, with a warning.

    The twin's numbers are changed.
    """
    if not groups:
        return []
    shaken, example = _precise(_shake(twin), example)
    keep = _half(groups)
    normed = {g.name for g in groups if _under_norm(shaken, g)}  # known beforehand to be inexact
    plain = [g for g in groups if g.name not in normed]
    gap = _gap(shaken, groups, keep, example)
    if gap is not None and normed:
        gap = _gap(shaken, plain, keep, example)
    if _agree(gap):
        return [replace(g, exact=g.name not in normed) for g in groups]
    alone = {g.name: _gap(shaken, [g], keep, example) for g in groups}
    _warn_of(
        [name for name, gap in alone.items() if gap is None],
        "left out, because without some of their channels the model fails (a size is fixed in its forward, or they "
        "meet its inputs)",
    )
    _warn_of(
        [name for name, gap in alone.items() if not (gap is None or _agree(gap) or name in normed)],
        "not exact, and no norm explains it: either the forward mixes channels (a softmax or mean over them), or a "
        "reshape changes their order and the trace lost it. Compare the shrunk model's accuracy with the masked one's",
    )
    return [replace(g, exact=_agree(alone[g.name])) for g in groups if alone[g.name] is not None]


def _precise(model: nn.Module, example: Any) -> tuple[nn.Module, Any]:
    """Both in float32 if they are in half precision, whose rounding looks like a difference; if the model runs so."""
    if not any(p.is_floating_point() and p.itemsize < 4 for p in model.parameters()):
        return model, example
    wider = mapped(lambda t: t.float() if t.is_floating_point() else t, example)
    kinds = [t.dtype for t in (*model.parameters(), *model.buffers())]
    try:
        outputs(model.float(), wider)
    except PruneError:  # its forward asks for half precision
        for tensor, kind in zip((*model.parameters(), *model.buffers()), kinds, strict=True):
            tensor.data = tensor.data.to(kind)
        return model, example
    return model, wider


def _warn_of(names: list[str], what: str) -> None:
    if names:
        warnings.warn(f"{what}: {', '.join(names)}", stacklevel=5)


def _agree(gap: float | None) -> bool:
    return gap is not None and gap <= TOLERANCE


def _gap(model: nn.Module, groups: Sequence[Group], keep: Keep, example: Any) -> float | None:
    """How far masked and shrunk are apart; None if the shrunk model fails."""
    try:
        return worn(model, groups, keep, example)
    except Exception:  # whatever a forward raises on sizes it does not expect
        return None


def _half(groups: Sequence[Group]) -> Keep:
    dice = torch.Generator().manual_seed(0)
    return {g.name: torch.randperm(g.units, generator=dice) < (g.units + 1) // 2 for g in groups}


def _under_norm(model: nn.Module, group: Group) -> bool:
    """Whether a norm averages over the group's channels."""
    paths = [path for path, m in model.named_modules() if isinstance(m, (nn.LayerNorm, nn.RMSNorm))]
    norms = {*paths, *(f"{path}.weight" for path in paths)}
    return any(m.tensor in norms for m in (*group.members, *group.norms))


def _shake(twin: nn.Module) -> nn.Module:
    """Disturb its numbers: a fresh network's zeros and ones (biases, norms, layer scales) hide errors."""
    dice = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (*twin.parameters(), *twin.buffers()):
            if not tensor.is_floating_point():
                continue
            tensor.mul_((torch.rand(tensor.shape, generator=dice) + 0.5).to(tensor))
            if max(tensor.shape, default=0) == tensor.numel() and float(tensor.abs().mean()) < 0.01:  # a vector
                tensor.add_((torch.randn(tensor.shape, generator=dice) / 10).to(tensor))
    return twin
