"""What brings a pruned network's accuracy back: training on with the zeros held, and what else has been tried."""

from .checkpoints import Checkpoint
from .distillation import Distillation, distil
from .history import History
from .rates import Tail
from .rewinding import Early, rewind, rewind_rates, rewind_weights, state_of
from .statistics import reestimate
from .training import Objective, finetune, train

__all__ = [
    "Checkpoint",
    "Distillation",
    "Early",
    "History",
    "Objective",
    "Tail",
    "distil",
    "finetune",
    "reestimate",
    "rewind",
    "rewind_rates",
    "rewind_weights",
    "state_of",
    "train",
]
