"""What a model is worth and what it costs: accuracy, stored bytes, MACs, memory and latency, with intervals."""

from ..registry import renamed
from . import physics
from .costs import FORMATS, count, macs, peak_memory, stored_bytes
from .evaluation import Evaluation, Perplexity, evaluate, mean_interval, perplexity, wilson
from .physics import Machine, Roofline, crossover, floor, machine, products, roofline, two_of_four
from .report import Measurement, measure
from .timing import Comparison, Conditions, Latency, Rates, Speedup, compare, latency, rates

__all__ = [
    "FORMATS", "Comparison", "Conditions", "Evaluation", "Latency", "Machine", "Measurement", "Perplexity", "Rates",
    "Roofline", "Speedup", "compare", "count", "crossover", "evaluate", "floor", "latency", "machine", "macs",
    "mean_interval", "measure", "peak_memory", "perplexity", "physics", "products", "rates", "roofline",
    "stored_bytes", "two_of_four", "wilson",
]  # fmt: skip

__getattr__ = renamed(
    __name__,
    {
        "pitfalls": "prunelab.measurement.physics",
        "verdict": "prunelab.measurement.physics.verdict",
        "Verdict": "prunelab.measurement.physics.Verdict",
    },
)
