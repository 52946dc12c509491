"""What is removed as one: (model, example) -> groups of coupled structures."""

from .channels import coupled, filters, neurons
from .heads import heads
from .registry import GRANULARITIES, Granularity, by_name
from .single import Blocks, blocks, weights

__all__ = [
    "GRANULARITIES",
    "Blocks",
    "Granularity",
    "blocks",
    "by_name",
    "coupled",
    "filters",
    "heads",
    "neurons",
    "weights",
]
