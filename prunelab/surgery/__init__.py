"""Physical removal: a smaller model instead of a zeroed one, and files to rebuild it from."""

from ..registry import renamed
from .plans import load_plan, save_plan
from .shrinking import difference, shrink

__all__ = ["difference", "load_plan", "save_plan", "shrink"]

__getattr__ = renamed(__name__, {"Absent": "prunelab.surgery.removal.Absent"})
