"""Criteria that compare a network with what it was before fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from ..calibration import Calibration
from ..core import PruneError, Scores, shape
from .registry import finite_weights


@dataclass(frozen=True, eq=False, repr=False)
class Mama:
    """|w (w - w0)|: magnitude times movement since the weights w0 that fine-tuning started from. Needs no data.

    Make it with `Mama.of(pretrained)`. The idea, to weigh magnitude and movement together, is that of MAMA (Jiang,
    Fu and Zhang, arXiv 2505.14052). This formula is ours: the paper gives none that we could find.
    """

    w0: Mapping[str, Tensor]

    @classmethod
    def of(cls, pretrained: nn.Module) -> Mama:
        """The criterion that measures movement from the present weights of a model, which are copied."""
        return cls({name: w.clone() for name, w in finite_weights(pretrained).items()})

    def __call__(self, model: nn.Module, calib: Calibration | None = None) -> Scores:
        weights = finite_weights(model)
        for name, w in weights.items():
            self._check(model, name, w)
        return {name: (w * (w - self.w0[name].to(w))).abs() for name, w in weights.items()}

    def _check(self, model: nn.Module, name: str, weight: Tensor) -> None:
        before = self.w0.get(name)
        if before is None or before.shape != weight.shape:
            given = "nothing" if before is None else shape(before)
            raise PruneError(
                f"w0 is of another model: for {name} {shape(weight)} of this {type(model).__name__} it has {given}. "
                "Take the same network before its fine-tuning: Mama.of(pretrained)"
            )

    def __repr__(self) -> str:
        return f"Mama(w0 of {sum(w.numel() for w in self.w0.values()):,} weights in {len(self.w0)} tensors)"
