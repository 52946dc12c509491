"""What a model is worth and what it costs: accuracy, stored bytes, MACs, memory and latency, with intervals."""

from . import physics
from .costs import FORMATS, count, macs, peak_memory, stored_bytes
from .evaluation import Evaluation, Perplexity, evaluate, perplexity, wilson
from .physics import (
    Crossover,
    Floor,
    Layer,
    Machine,
    Product,
    Products,
    Roofline,
    Verdict,
    crossover,
    floor,
    machine,
    products,
    roofline,
    two_of_four,
    verdict,
)
from .report import Measurement, measure
from .timing import Comparison, Latency, Rates, Speedup, compare, latency, rates

__all__ = [
    "FORMATS",
    "Comparison",
    "Crossover",
    "Evaluation",
    "Floor",
    "Latency",
    "Layer",
    "Machine",
    "Measurement",
    "Perplexity",
    "Product",
    "Products",
    "Rates",
    "Roofline",
    "Speedup",
    "Verdict",
    "compare",
    "count",
    "crossover",
    "evaluate",
    "floor",
    "latency",
    "machine",
    "macs",
    "measure",
    "peak_memory",
    "perplexity",
    "physics",
    "products",
    "rates",
    "roofline",
    "stored_bytes",
    "two_of_four",
    "verdict",
    "wilson",
]
