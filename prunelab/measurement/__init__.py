"""What a model is worth and what it costs: accuracy, stored bytes, MACs, memory and latency, with intervals."""

from ..registry import moved, renamed
from .costs import count, macs, peak_memory, stored_bytes
from .evaluation import Evaluation, Perplexity, evaluate, perplexity
from .report import Measurement, measure
from .timing import Comparison, Conditions, Latency, Rates, compare, latency, rates

__all__ = [
    "Comparison", "Conditions", "Evaluation", "Latency", "Measurement", "Perplexity", "Rates", "compare", "count",
    "evaluate", "latency", "macs", "measure", "peak_memory", "perplexity", "rates", "stored_bytes",
]  # fmt: skip

__getattr__ = renamed(
    __name__,
    {"pitfalls": "prunelab.lab.lessons.physics", "FORMATS": "prunelab.measurement.costs.FORMATS"}
    | {"Speedup": "prunelab.measurement.timing.Speedup"}
    | moved("prunelab.measurement.evaluation", "mean_interval wilson")
    | moved("prunelab.lab.lessons.physics", "Machine Roofline machine products roofline two_of_four"),
)
