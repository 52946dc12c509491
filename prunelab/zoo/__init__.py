"""Data sets, the course's two networks, and trained checkpoints of them; nothing here knows of pruning."""

from .catalog import load
from .data import Data, ZooError
from .digits import scans
from .downloads import cache_dir
from .llama import Llama, llama, llama_folder, reference_text
from .networks import ARCHITECTURES, cnn, mlp
from .trained import cards, checkpoint, checkpoints, data_dir, save_checkpoint

__all__ = [
    "ARCHITECTURES",
    "Data",
    "Llama",
    "ZooError",
    "cache_dir",
    "cards",
    "checkpoint",
    "checkpoints",
    "cnn",
    "data_dir",
    "llama",
    "llama_folder",
    "load",
    "mlp",
    "reference_text",
    "save_checkpoint",
    "scans",
]
