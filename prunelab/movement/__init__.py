"""Movement pruning: scores that are learned while fine-tuning, and keep what grows rather than what is large."""

from ..registry import renamed
from .gates import attach, by_group, detach
from .rules import Threshold, TopV
from .training import finetune, gradual

__getattr__ = renamed(
    __name__, {"GRADUAL": "prunelab.movement.training.GRADUAL", "Rule": "prunelab.movement.rules.Rule"}
)
__all__ = ["Threshold", "TopV", "attach", "by_group", "detach", "finetune", "gradual"]
