"""Which layer would you touch last? Accuracy and loss against sparsity, a layer at a time."""

from .result import Curve, Scan, ScanStopped
from .scanning import scan

__all__ = ["Curve", "Scan", "ScanStopped", "scan"]
