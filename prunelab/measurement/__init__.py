"""What a model is worth and what it costs: accuracy, stored bytes, MACs, memory and latency, with intervals."""

from .accuracy import Evaluation, evaluate, wilson
from .memory import peak_memory
from .operations import macs
from .report import Measurement, measure
from .storage import FORMATS, count, stored_bytes
from .timing import Comparison, Latency, Speedup, compare, latency

__all__ = [
    "FORMATS",
    "Comparison",
    "Evaluation",
    "Latency",
    "Measurement",
    "Speedup",
    "compare",
    "count",
    "evaluate",
    "latency",
    "macs",
    "measure",
    "peak_memory",
    "stored_bytes",
    "wilson",
]
