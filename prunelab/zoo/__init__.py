"""Data sets, the course's networks, and trained checkpoints of them; nothing here knows of pruning."""

from .catalog import load
from .data import Data, ZooError
from .digits import more_views, scans
from .downloads import cache_dir
from .llama import Llama, llama, llama_folder, reference_text
from .networks import cnn, mlp
from .residual import resnet
from .trained import ARCHITECTURES, cards, checkpoint, checkpoints, data_dir, save_checkpoint
from .transformer import VisionTransformer, vit

__all__ = [
    "ARCHITECTURES",
    "Data",
    "Llama",
    "VisionTransformer",
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
    "more_views",
    "reference_text",
    "resnet",
    "save_checkpoint",
    "scans",
    "vit",
]
