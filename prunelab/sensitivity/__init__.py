"""Which layer would you touch last? Accuracy and loss against sparsity, a layer at a time."""

from ..registry import renamed
from .result import Curve, Scan, ScanStopped
from .scanning import scan

__all__ = ["Curve", "Scan", "ScanStopped", "scan"]

__getattr__ = renamed(__name__, {"SPARSITIES": "prunelab.sensitivity.scanning.SPARSITIES"})
