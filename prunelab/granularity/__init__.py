"""What is removed as one: (model, example) -> groups of coupled structures."""

from ..registry import renamed
from .channels import coupled, filters, neurons, width
from .depth import attentions, glu_neurons, layers, mlps
from .experts import experts
from .heads import heads
from .registry import GRANULARITIES, by_name, register
from .single import Blocks, blocks, weights
from .together import Together

__getattr__ = renamed(__name__, {"Granularity": "prunelab.core.Granularity"})
__all__ = [
    "GRANULARITIES",
    "Blocks",
    "Together",
    "attentions",
    "blocks",
    "by_name",
    "coupled",
    "experts",
    "filters",
    "glu_neurons",
    "heads",
    "layers",
    "mlps",
    "neurons",
    "register",
    "weights",
    "width",
]
