"""What a model is worth and what it costs: accuracy, stored bytes, MACs, memory and latency, with intervals."""

from ..registry import renamed
from .costs import FORMATS, count, macs, peak_memory, stored_bytes
from .evaluation import Evaluation, Perplexity, evaluate, mean_interval, perplexity, wilson
from .report import Measurement, measure
from .timing import Comparison, Conditions, Latency, Rates, Speedup, compare, latency, rates

__all__ = [
    "FORMATS", "Comparison", "Conditions", "Evaluation", "Latency", "Measurement", "Perplexity", "Rates", "Speedup",
    "compare", "count", "evaluate", "latency", "macs", "mean_interval", "measure", "peak_memory", "perplexity", "rates",
    "stored_bytes", "wilson",
]  # fmt: skip

__getattr__ = renamed(
    __name__,
    {"pitfalls": "prunelab.lab.lessons.physics"}
    | {
        name: f"prunelab.lab.lessons.physics.{name}"
        for name in ("Machine", "Roofline", "machine", "products", "roofline", "two_of_four")
    },
)
