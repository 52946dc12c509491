"""The old name and signatures of `layerwise`, for one release."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from torch import nn

from .core import Group
from .layerwise import BySensitivity, LayerSparsities, erk
from .layerwise import uniform as _uniform
from .sensitivity import Scan

__all__ = ["by_sensitivity", "erk", "uniform"]

warnings.warn("prunelab.shares is now prunelab.layerwise", DeprecationWarning, stacklevel=2)


def uniform(groups: Sequence[Group], sparsity: float, **options: Any) -> LayerSparsities:
    """`layerwise.uniform`, which takes a model first, as all layer rules do."""
    return _uniform(nn.Module(), groups, sparsity, **options)


def by_sensitivity(scan: Scan, groups: Sequence[Group], sparsity: float, **options: Any) -> LayerSparsities:
    """`layerwise.BySensitivity(scan)`."""
    return BySensitivity(scan, **options)(nn.Module(), groups, sparsity)
