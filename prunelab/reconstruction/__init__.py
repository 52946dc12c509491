"""Repair the weights that stay, without training."""

from .redistribution import as_published, redistribute, redistributed

__all__ = ["as_published", "redistribute", "redistributed"]
