"""Repair what is kept: prune a layer, and let its other weights make up for it. No gradients, a few batches."""

from .blockwise import blockwise
from .methods import Method, SparseGPT, Wanda
from .sparsegpt import inverse_factor, sparsegpt

__all__ = ["Method", "SparseGPT", "Wanda", "blockwise", "inverse_factor", "sparsegpt"]
