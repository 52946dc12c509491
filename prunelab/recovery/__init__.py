"""What brings a pruned network's accuracy back: training on with the zeros held."""

from .checkpoints import Checkpoint
from .history import History
from .rates import Tail
from .training import Objective, finetune, train

__all__ = ["Checkpoint", "History", "Objective", "Tail", "finetune", "train"]
