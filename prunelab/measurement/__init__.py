"""What a model is worth and what it costs: accuracy, stored bytes, MACs, memory and latency, with intervals."""

from . import pitfalls
from .accuracy import Evaluation, evaluate, wilson
from .generation import Rates, rates
from .kernels import Crossover, Product, Products, crossover, products, two_of_four
from .machines import Floor, Machine, floor, machine
from .memory import peak_memory
from .operations import macs
from .perplexity import Perplexity, perplexity
from .report import Measurement, measure
from .roofline import Layer, Roofline, roofline
from .storage import FORMATS, count, stored_bytes
from .timing import Comparison, Latency, Speedup, compare, latency
from .verdicts import Verdict, verdict

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
    "pitfalls",
    "products",
    "rates",
    "roofline",
    "stored_bytes",
    "two_of_four",
    "verdict",
    "wilson",
]
