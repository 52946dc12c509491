"""Data sets, the course's networks, and trained checkpoints of them; nothing here knows of pruning."""

from ..registry import moved, renamed
from .data import Data, ZooError, scans
from .downloads import load
from .llama import Llama, llama, reference_text
from .networks import cnn, mlp, resnet, vit
from .trained import checkpoint, checkpoints

__all__ = [
    "Data", "Llama", "ZooError", "checkpoint", "checkpoints", "cnn", "llama", "load", "mlp", "reference_text",
    "resnet", "scans", "vit",
]  # fmt: skip

__getattr__ = renamed(
    __name__,
    moved("prunelab.zoo.trained", "ARCHITECTURES cards data_dir save_checkpoint")
    | {"VisionTransformer": "prunelab.zoo.networks.VisionTransformer", "cache_dir": "prunelab.zoo.downloads.cache_dir"}
    | {"llama_folder": "prunelab.zoo.llama.llama_folder", "more_views": "prunelab.zoo.data.more_views"},
)
