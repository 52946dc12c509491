"""Data sets, the course's networks, and trained checkpoints of them; nothing here knows of pruning."""

from .data import Data, ZooError, more_views, scans
from .downloads import cache_dir, load
from .llama import Llama, llama, llama_folder, reference_text
from .networks import VisionTransformer, cnn, mlp, resnet, vit
from .trained import ARCHITECTURES, cards, checkpoint, checkpoints, data_dir, save_checkpoint

__all__ = [
    "ARCHITECTURES", "Data", "Llama", "VisionTransformer", "ZooError", "cache_dir", "cards", "checkpoint",
    "checkpoints", "cnn", "data_dir", "llama", "llama_folder", "load", "mlp", "more_views", "reference_text", "resnet",
    "save_checkpoint", "scans", "vit",
]  # fmt: skip
