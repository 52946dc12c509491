"""Ways to prune one linear layer, given what flows into it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from ..allocation import NM, check_target
from .sparsegpt import cheapest_gone, kept_before, sparsegpt


class Method(Protocol):
    """Gathers a statistic of a layer's inputs, and prunes the layer's weight by it."""

    def gather(self, inputs: Tensor) -> Tensor:
        """Inputs (n, in) as a statistic that adds up over batches."""
        ...

    def __call__(
        self, weight: Tensor, gathered: Tensor, sparsity: float | NM, name: str, within: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The weight (out, in) pruned, and what it keeps (out, in) bool: no more than `within` does, if given."""
        ...


@dataclass(frozen=True)
class Wanda:
    """|W_ij| * norm(X_j), the lowest of each row go, or of each m with NM(n, m); what stays is not changed.

    Sun et al. 2023, arXiv 2306.11695. The same score as `criteria.wanda`, on inputs from blocks already pruned. In
    float64: two weights that rounding swaps in an early block change what all later ones see, and after 26 blocks one
    weight in twenty is another.
    """

    def gather(self, inputs: Tensor) -> Tensor:
        """(n, in) -> (in,): the sum of squares of each input."""
        return inputs.double().square().sum(0)

    def __call__(
        self, weight: Tensor, gathered: Tensor, sparsity: float | NM, name: str, within: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The weight with the lowest of each row at 0; a row (or m) that has lost more before loses no more."""
        scope: str | NM = sparsity if isinstance(sparsity, NM) else "row"
        share = check_target(None if isinstance(sparsity, NM) else sparsity, scope)
        before = kept_before(weight, within, name)
        keep = cheapest_gone(weight.abs() * gathered.sqrt(), before, share, scope)
        return weight * keep, keep


@dataclass(frozen=True)
class SparseGPT:
    """`sparsegpt` as a method: what goes is chosen by its cost, and what stays is changed to make up for it."""

    damping: float = 0.01
    columns: int = 128

    def gather(self, inputs: Tensor) -> Tensor:
        """(n, in) -> (in, in): the Gram matrix, in float64 as what is computed of it."""
        wide = inputs.double()
        return wide.T @ wide

    def __call__(
        self, weight: Tensor, gathered: Tensor, sparsity: float | NM, name: str, within: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The weight pruned and repaired."""
        how: dict[str, Any] = {"damping": self.damping, "columns": self.columns, "name": name, "within": within}
        return sparsegpt(weight, gathered, sparsity, **how)
