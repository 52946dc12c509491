"""Single weights, and blocks of them: what can be zeroed, but leaves no hole that could be closed."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .. import units
from ..checks import check_count
from ..core import Group, Member, PruneError, lookup_all, shape
from ..layers import layout_of, prunable, unreachable
from .registry import register


@register("weights")
def weights(model: nn.Module, example: Any = None, *, exclude: Collection[str] = ()) -> list[Group]:
    """Every weight on its own: one group a prunable tensor, one unit an entry. `exclude` leaves tensors alone.

    >>> [(group.name, group.units) for group in weights(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)))]
    [('0.weight', 6), ('1.weight', 3)]
    """
    chosen = _chosen(model, exclude)
    at = lookup_all(model, chosen)
    return [Group(n, p.numel(), (Member(n, layout=layout_of(at[n][0])),)) for n, p in chosen.items()]


@register("blocks")
@dataclass(frozen=True)
class Blocks:
    """Blocks of r rows by c columns of every weight matrix: the pattern that block-sparse (BSR) kernels can skip.

    A row is all that feeds one output (in a transposed convolution or a Conv1D, all that one input feeds); a
    convolution's row is laid out (in, kh, kw), as in memory and in `weight.flatten(1)`, so that c = kh*kw takes whole
    kernels. `exclude` leaves tensors alone.

    >>> Blocks(2, 2)(nn.Linear(8, 4))[0].units  # (4, 8) in blocks of (2, 2)
    8
    """

    r: int
    c: int
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_count("blocks of r", self.r)
        check_count("blocks of c", self.c)

    def __call__(self, model: nn.Module, example: Any = None) -> list[Group]:
        """One group a prunable tensor, one unit a block; PruneError names the tensors that are no multiple."""
        chosen = _chosen(model, self.exclude)
        sizes = {name: units.matrix(p) for name, p in chosen.items()}
        stacked = [name for name, place in lookup_all(model, chosen).items() if layout_of(place[0]) < 0]
        if stacked:
            raise PruneError(
                f"{', '.join(stacked)} hold a matrix for each expert, and a block of {self.r} rows would reach across "
                f"several: leave them out with blocks({self.r}, {self.c}, exclude={[*self.exclude, *stacked]})"
            )
        unfit = [name for name, (rows, columns) in sizes.items() if rows % self.r or columns % self.c]
        if unfit:
            seen = ", ".join(f"{n} {shape(chosen[n])}, a matrix of {sizes[n][0]} x {sizes[n][1]}" for n in unfit)
            raise PruneError(
                f"blocks of {self.r} x {self.c} do not divide {seen}. Leave them dense: "
                f"blocks({self.r}, {self.c}, exclude={[*self.exclude, *unfit]})"
            )
        tile = (self.r, self.c)
        return [Group(n, p.numel() // (self.r * self.c), (Member(n, tile=tile),)) for n, p in chosen.items()]


def blocks(r: int, c: int, *, exclude: Collection[str] = ()) -> Blocks:
    """A granularity: r x c blocks of every weight matrix, as in `Recipe(granularity=blocks(4, 4))`.

    >>> blocks(4, 4)
    Blocks(r=4, c=4, exclude=())
    """
    return Blocks(r, c, tuple(exclude))


def _chosen(model: nn.Module, exclude: Collection[str]) -> dict[str, Tensor]:
    """The prunable tensors but the excluded ones; PruneError if one isn't there, or none is left."""
    found = prunable(model)
    unknown = [n for n in exclude if n not in found]
    if unknown:
        raise PruneError(f"cannot exclude {unknown[0]!r}: not among the prunable tensors {', '.join(found)}")
    left: dict[str, Tensor] = {n: p for n, p in found.items() if n not in exclude}
    if not left:
        raise PruneError(f"nothing is left to prune: all of {', '.join(found)} are excluded")
    away = unreachable(model)
    if away:
        name, reason = next(iter(away.items()))
        more = f", and {len(away) - 1} more like it," if len(away) > 1 else ""
        warnings.warn(f"not among what can go: {name}{more} {reason}", stacklevel=3)
    return left
