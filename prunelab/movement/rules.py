"""From learned scores to who stays: the best v of all (hard), or all above a threshold that a penalty pulls under."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..allocation import check_sparsity, choose, least_of
from ..checks import check_number
from ..core import Group, Keep, PruneError
from ..selection import lowest

Values = Mapping[str, Tensor]  # group name -> (units,) scores


class Rule(Protocol):
    """Who stays, and what the loss pays for those who do, when so much of the way (0 to 1) is behind."""

    def keep(self, scores: Values, groups: Sequence[Group], progress: float, /) -> Keep: ...

    def cost(self, scores: Values, progress: float, /) -> Tensor | float: ...


@dataclass(frozen=True)
class TopV:
    """Hard movement: exactly round(sparsity * progress * n) units go, the lowest of each layer, or of all ("global").

    Structures keep their best unit. Sanh et al. 2020, arXiv 2005.07683, section 4.

    >>> from prunelab.core import Member
    >>> groups = [Group("a", 4, (Member("w"),))]
    >>> TopV(0.5).keep({"a": torch.tensor([0.1, -2.0, 0.3, -0.4])}, groups, progress=1.0)
    {'a': tensor([ True, False,  True, False])}
    """

    sparsity: float
    scope: str = "layer"

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)
        if self.scope not in ("layer", "global"):
            raise PruneError(f'scope {self.scope!r}: movement compares within a "layer", or "global"')

    def keep(self, scores: Values, groups: Sequence[Group], progress: float) -> Keep:
        """PruneError for scores that nothing has trained: all tie, and the first rows of each layer would go."""
        if progress * self.sparsity > 0 and not any(bool(s.any()) for s in scores.values()):
            raise PruneError(
                "all movement scores are 0: no training step has moved them, and the best of equals are simply the "
                "last. Fine-tune first, with movement.finetune, on a schedule that starts at 0"
            )
        return choose(scores, groups, self.sparsity * progress, self.scope)

    def cost(self, scores: Values, progress: float) -> float:
        """Nothing: the count is given."""
        return 0.0


@dataclass(frozen=True)
class Threshold:
    """Soft movement: a unit stays while sigmoid(S) > tau, and the loss pays penalty * mean(sigmoid(S)).

    Both grow from 0 with the schedule. How many stay is learned, a layer as it likes: a larger penalty prunes more.
    Structures keep their best unit. Sanh et al. 2020, arXiv 2005.07683, section 4 (the sigmoid on both sides of the
    comparison, and the common growth, are their code's).

    >>> from prunelab.core import Member
    >>> groups = [Group("a", 3, (Member("w"),))]
    >>> Threshold(penalty=10, tau=0.1).keep({"a": torch.tensor([0.0, -3.0, 1.0])}, groups, 1.0)  # sigmoid(-3) = 0.05
    {'a': tensor([ True, False,  True])}
    """

    penalty: float
    tau: float = 0.1

    def __post_init__(self) -> None:
        wanted = "give a threshold between 0 and 0.5, what sigmoid(0) is, such as 0.1"
        check_number("tau", self.tau, wanted, above=0, below=0.5)
        check_number("penalty", self.penalty, "give a number of at least 0, such as 10", least=0)

    def keep(self, scores: Values, groups: Sequence[Group], progress: float) -> Keep:
        """All above tau * progress; of a structure at least one (of experts, as many as a token goes to)."""
        found = {g.name: torch.sigmoid(scores[g.name]) > self.tau * progress for g in groups}
        for group in groups:
            if int(found[group.name].sum()) < least_of(group):
                found[group.name] = ~lowest([scores[group.name]], group.units - least_of(group))[0]
        return found

    def cost(self, scores: Values, progress: float) -> Tensor:
        """Penalty * progress * the mean of sigmoid(S) over all units."""
        return self.penalty * progress * torch.sigmoid(torch.cat(list(scores.values()))).mean()
