"""Data sets, the course's networks, and trained checkpoints of them; nothing here knows of pruning."""

from .catalog import load
from .data import Data, ZooError
from .digits import more_views, scans
from .downloads import cache_dir
from .networks import cnn, mlp
from .residual import resnet
from .trained import ARCHITECTURES, cards, checkpoint, checkpoints, data_dir, save_checkpoint
from .transformer import VisionTransformer, vit

__all__ = [
    "ARCHITECTURES",
    "Data",
    "VisionTransformer",
    "ZooError",
    "cache_dir",
    "cards",
    "checkpoint",
    "checkpoints",
    "cnn",
    "data_dir",
    "load",
    "mlp",
    "more_views",
    "resnet",
    "save_checkpoint",
    "scans",
    "vit",
]
