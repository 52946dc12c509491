"""What a training run leaves behind besides the weights."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..measurement import Evaluation


@dataclass
class History:
    """What a training run did: the loss of every step, the validation result of every epoch, its cost.

    `start` is the validation result before the first step, where the data has a validation split.
    """

    losses: list[float] = field(default_factory=list)
    valid: list[Evaluation] = field(default_factory=list)
    seconds: float = 0.0
    start: Evaluation | None = None

    @property
    def steps(self) -> int:
        """How many optimizer steps were made."""
        return len(self.losses)

    def __repr__(self) -> str:
        if not self.losses:
            return "History(no steps)"
        last = f", validation accuracy {self.valid[-1].accuracy:.1%}" if self.valid else ""
        return f"History({self.steps} steps in {self.seconds:.1f} s, last loss {self.losses[-1]:.3f}{last})"
