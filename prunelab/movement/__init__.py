"""Movement pruning: scores that are learned while fine-tuning, and keep what grows rather than what is large."""

from ..registry import moved, renamed
from .gates import attach, by_group, detach
from .rules import Threshold, TopV
from .training import finetune, gradual

__getattr__ = renamed(
    __name__,
    {"Rule": "prunelab.movement.rules.Rule"}
    | moved("prunelab.movement.training", "GRADUAL Learned")
    | moved("prunelab.movement.gates", "gated scores"),
)
__all__ = ["Threshold", "TopV", "attach", "by_group", "detach", "finetune", "gradual"]
