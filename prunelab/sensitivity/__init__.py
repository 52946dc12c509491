"""Which layer would you touch last? Accuracy and loss against sparsity, a layer at a time."""

from .result import Curve, Scan, ScanStopped
from .scanning import SPARSITIES, scan

__all__ = ["SPARSITIES", "Curve", "Scan", "ScanStopped", "scan"]
