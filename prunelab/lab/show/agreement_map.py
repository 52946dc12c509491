"""Who agrees with whom: tables of every criterion against every other, as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from ...agreement import overlap
from ...core import Keep


def overlaps(choices: Mapping[str, Keep]) -> np.ndarray:
    """(choices, choices): of what the row's choice keeps, the share that the column's keeps too."""
    totals = [[overlap(a, b).total for b in choices.values()] for a in choices.values()]
    return np.array([[found.both / max(found.a, 1) for found in row] for row in totals])


def agreement_map(ax: Axes, names: Sequence[str], shares: np.ndarray, chance: float) -> None:
    """A square for each pair, darker the more they share, with the share written in it; white is chance or below."""
    ax.imshow(shares, cmap="Blues", vmin=chance, vmax=1)
    for (row, column), share in np.ndenumerate(shares):
        colour = "white" if share > chance + 0.65 * (1 - chance) else "black"  # legible on its square
        ax.text(column, row, f"{share:.0%}", ha="center", va="center", fontsize=9, color=colour)
    ax.set_xticks(range(len(names)), names, rotation=30, ha="right")
    ax.set_yticks(range(len(names)), names)
    ax.grid(False)
