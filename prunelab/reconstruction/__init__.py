"""Repair the weights that stay, without training: what leaves is made up for, or passed on."""

from ..registry import renamed
from .blockwise import Method, SparseGPT, Wanda, blockwise
from .redistribution import as_published, redistribute, redistributed
from .sparsegpt import sparsegpt

__all__ = ["Method", "SparseGPT", "Wanda", "as_published", "blockwise", "redistribute", "redistributed", "sparsegpt"]

__getattr__ = renamed(__name__, {"inverse_factor": "prunelab.reconstruction.sparsegpt.inverse_factor"})
