"""What brings a pruned network's accuracy back: training on with the zeros held."""

from .training import History, finetune, train

__all__ = ["History", "finetune", "train"]
