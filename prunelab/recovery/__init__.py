"""What brings a pruned network's accuracy back: training on with the zeros held, and what else has been tried."""

from ..registry import moved, renamed
from .checkpoints import Checkpoint
from .methods import Distillation, Early, distil, recalibrate_batchnorm, rewind, rewind_rates, rewind_weights, state_of
from .run import History
from .training import finetune, train

__all__ = [
    "Checkpoint", "Distillation", "Early", "History", "distil", "finetune", "recalibrate_batchnorm", "rewind",
    "rewind_rates", "rewind_weights", "state_of", "train",
]  # fmt: skip

__getattr__ = renamed(
    __name__,
    {"reestimate": "prunelab.recovery.recalibrate_batchnorm"} | moved("prunelab.recovery.run", "Objective Tail"),
)
