"""The old name and signatures of `layerwise`, for one release."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from torch import nn

from . import layerwise
from .core import Group
from .layerwise import LayerSparsities
from .registry import renamed
from .sensitivity import Scan

__getattr__ = renamed(__name__, {name: f"prunelab.layerwise.{name}" for name in ("erk", "cheapest", "Pieces")})


def uniform(groups: Sequence[Group], sparsity: float, **options: Any) -> LayerSparsities:
    """`layerwise.uniform`, which takes a model first, as all layer rules do."""
    warnings.warn("shares.uniform(groups, s) is now layerwise.uniform(model, groups, s)", DeprecationWarning, 2)
    return layerwise.uniform(nn.Module(), groups, sparsity, **options)


def by_sensitivity(scan: Scan, groups: Sequence[Group], sparsity: float, **options: Any) -> LayerSparsities:
    """`layerwise.BySensitivity(scan)`, called with a model first, as all layer rules are."""
    now = "layerwise.BySensitivity(scan)(model, groups, s)"
    warnings.warn(f"shares.by_sensitivity(scan, groups, s) is now {now}", DeprecationWarning, 2)
    return layerwise.BySensitivity(scan, **options)(nn.Module(), groups, sparsity)
