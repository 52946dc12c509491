"""Is a group exact? Try it: zero half of its units in one copy, remove them from another, and compare."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..core import Group, Keep
from ..surgery.difference import difference

TOLERANCE = 1e-4  # float32 rounding stays below 1e-5, what is not exact is above 1e-3
WHY = "without some of their channels the model no longer runs (a size fixed in its forward, or an order of channels"


def proven(twin: nn.Module, groups: Sequence[Group], example: Any) -> list[Group]:
    """The groups, `exact` set by experiment; those without which the model fails are left out, with a warning."""
    if not groups:
        return []
    shaken = _shaken(twin)
    keep = _half(groups)
    plain = [g for g in groups if not _under_layer_norm(shaken, g)]
    if _runs(shaken, groups, keep, example) is not None and _agree(_runs(shaken, plain, keep, example)):
        return [replace(g, exact=g in plain) for g in groups]
    alone = {g.name: _runs(shaken, [g], keep, example) for g in groups}
    lost = [name for name, gap in alone.items() if gap is None]
    if lost:
        warnings.warn(f"left out, {WHY} that could not be followed): {', '.join(lost)}", stacklevel=4)
    return [replace(g, exact=_agree(alone[g.name])) for g in groups if g.name not in lost]


def _agree(gap: float | None) -> bool:
    return gap is not None and gap <= TOLERANCE


def _runs(model: nn.Module, groups: Sequence[Group], keep: Keep, example: Any) -> float | None:
    """How far masked and shrunk are apart; None if the shrunk model fails."""
    try:
        return difference(model, groups, keep, example)
    except Exception:  # whatever a forward raises on sizes it does not expect
        return None


def _half(groups: Sequence[Group]) -> Keep:
    dice = torch.Generator().manual_seed(0)
    return {g.name: torch.randperm(g.units, generator=dice) < (g.units + 1) // 2 for g in groups}


def _under_layer_norm(model: nn.Module, group: Group) -> bool:
    """Known beforehand to be inexact: not worth a run of its own."""
    norms = {f"{path}.weight" for path, m in model.named_modules() if isinstance(m, nn.LayerNorm)}
    return any(m.tensor in norms for m in group.members)


def _shaken(twin: nn.Module) -> nn.Module:
    """A copy with its numbers disturbed: a fresh network's zeros and ones (biases, norms, layer scales) hide errors."""
    shaken = copy.deepcopy(twin)
    dice = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (*shaken.parameters(), *shaken.buffers()):
            if not tensor.is_floating_point():
                continue
            tensor.mul_((torch.rand(tensor.shape, generator=dice) + 0.5).to(tensor))
            if max(tensor.shape, default=0) == tensor.numel() and float(tensor.abs().mean()) < 0.01:  # a vector
                tensor.add_((torch.randn(tensor.shape, generator=dice) / 10).to(tensor))
    return shaken
