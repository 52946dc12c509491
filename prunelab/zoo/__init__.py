"""Data sets, the course's networks, and trained checkpoints of them; nothing here knows of pruning."""

from .data import Data, ZooError, scans
from .downloads import load
from .llama import Llama, llama, reference_text
from .networks import cnn, mlp, resnet, vit
from .trained import checkpoint, checkpoints

__all__ = [
    "Data", "Llama", "ZooError", "checkpoint", "checkpoints", "cnn", "llama", "load", "mlp", "reference_text",
    "resnet", "scans", "vit",
]  # fmt: skip
