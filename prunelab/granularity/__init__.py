"""What is removed as one: (model, example) -> groups of coupled structures."""

from .channels import coupled, filters, neurons
from .heads import heads
from .registry import GRANULARITIES, Granularity, by_name
from .single import Blocks, blocks, weights
from .together import Together

__all__ = [
    "GRANULARITIES",
    "Blocks",
    "Granularity",
    "Together",
    "blocks",
    "by_name",
    "coupled",
    "filters",
    "heads",
    "neurons",
    "weights",
]
