"""The names that granularities are known by."""

from __future__ import annotations

from ..core import Granularity
from ..registry import Registry

GRANULARITIES: Registry[Granularity] = Registry("granularity")
by_name, register = GRANULARITIES.by_name, GRANULARITIES.register
