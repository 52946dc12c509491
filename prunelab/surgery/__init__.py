"""Physical removal: a smaller model instead of a zeroed one, and files to rebuild it from."""

from .difference import difference
from .plans import load_plan, save_plan
from .shrinking import shrink

__all__ = ["difference", "load_plan", "save_plan", "shrink"]
