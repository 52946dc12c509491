"""What a scan found: one curve a group, to look at, to save, and to go on from."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..core import PruneError
from ..files import made, read_json, write_whole
from ..measurement.evaluation import Evaluation, wilson
from ..text import Lines, Tabular, percent


@dataclass(frozen=True)
class Curve:
    """One group pruned alone: for each sparsity the units removed, the labels still right, the mean loss.

    `how`: "suffix" if only what follows the group's first layer was run again, "stacked" if that was done for
    several sparsities in one pass, "whole" if the model had to be run from its input for every one.
    """

    name: str
    units: int
    removed: tuple[int, ...]
    correct: tuple[int, ...]
    loss: tuple[float, ...]
    how: str = "suffix"


@dataclass(frozen=True, repr=False)
class Scan(Tabular):
    """Accuracy and loss of a model when one group at a time loses a share of its units; `dense` is the model as it was.

    The arrays have a row a group and a column a sparsity, in the order of `names` and `sparsities`.
    """

    sparsities: tuple[float, ...]
    curves: tuple[Curve, ...]
    dense: Evaluation
    granularity: str = "weights"
    criterion: str = "magnitude"
    split: str = "valid"
    missing: tuple[str, ...] = ()  # the groups that an interrupted scan did not come to

    @property
    def names(self) -> tuple[str, ...]:
        """The groups, in the order of the model."""
        return tuple(c.name for c in self.curves)

    @property
    def complete(self) -> bool:
        """Whether every group asked for was scanned."""
        return not self.missing

    @property
    def removed(self) -> np.ndarray:
        """How many units went: the counts nearest to the sparsities that the group can reach."""
        return self._array("removed")

    @property
    def correct(self) -> np.ndarray:
        """How many of `dense.n` labels were predicted right."""
        return self._array("correct")

    @property
    def accuracy(self) -> np.ndarray:
        """The share of labels predicted right."""
        return self.correct / self.dense.n

    @property
    def loss(self) -> np.ndarray:
        """The mean loss."""
        return self._array("loss")

    @property
    def rise(self) -> np.ndarray:
        """By how much the loss rose above the dense model's; below zero where pruning helped."""
        return self.loss - self.dense.loss

    def curve(self, name: str) -> Curve:
        """One group's curve; PruneError for a group that was not scanned."""
        if name in self.names:
            return self.curves[self.names.index(name)]
        if name in self.missing:
            raise PruneError(f"{name!r} was not reached before the scan was interrupted: go on with scan(..., resume=)")
        raise PruneError(f"{name!r} is not among the groups scanned: {', '.join(self.names) or 'none'}")

    def most_sensitive(self, n: int | None = None, at: float | None = None) -> tuple[str, ...]:
        """The groups from most to least sensitive: by the rise of the loss at one sparsity, or its mean over all.

        This is sensitivity as a measurement. Two other things go by the name: SNIP's gradient score, and a threshold
        of so many standard deviations of a layer's weights.
        """
        if at is not None and at not in self.sparsities:
            raise PruneError(f"sparsity {at!r} was not scanned: there is {', '.join(map(str, self.sparsities))}")
        rise = self.rise.mean(1) if at is None else self.rise[:, self.sparsities.index(at)]
        return tuple(self.names[i] for i in np.argsort(-rise, kind="stable"))[:n]

    def _lines(self) -> Lines:
        title = (
            f"accuracy ({self.split}), one group at a time without its {self.granularity} of lowest {self.criterion}"
        )
        rows = [[c.name, *map(self._accuracy, c.correct)] for c in self.curves]
        dense = ["dense", self._accuracy(self.dense.correct), *[""] * (len(self.sparsities) - 1)]
        return title, ["", *(f"{s:.3g}" for s in self.sparsities)], [*rows, dense]

    def _accuracy(self, correct: int) -> str:
        return percent(correct / self.dense.n, *wilson(correct, self.dense.n)).replace(" %", "")

    def _notes(self) -> list[str]:
        notes = [f"per cent of {self.dense.n:,} labels, 95 % Wilson intervals (samples taken as independent)"]
        whole = [c.name for c in self.curves if c.how == "whole"]
        if whole:
            notes.append(f"run from the model's input every time, because its forward could not be split: {whole}")
        if self.missing:
            notes.append(f"interrupted; not scanned: {', '.join(self.missing)}")
        return notes

    def _array(self, column: str) -> np.ndarray:
        values = [getattr(c, column) for c in self.curves]
        return np.array(values, float if column == "loss" else int).reshape(len(values), len(self.sparsities))

    def save(self, path: str | Path) -> None:
        """Write it as JSON. The file is replaced whole: at no moment is it half written."""
        write_whole(Path(path), json.dumps({"prunelab": "sensitivity", **asdict(self)}, indent=1).encode())

    @classmethod
    def load(cls, path: str | Path) -> Scan:
        """Read what `save` wrote; PruneError for anything else."""
        try:
            found = read_json(Path(path))
            if found.pop("prunelab") != "sensitivity":
                raise KeyError("prunelab")
            scan = made(cls, found)
        except OSError as error:
            raise PruneError(f"{path} can't be read ({error.strerror})") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PruneError(f"{path} is not a saved scan ({error!r}): delete it, or give another path") from error
        counts = [(scan.dense.correct, scan.dense.n), *((k, scan.dense.n) for c in scan.curves for k in c.correct)]
        counts += [(k, c.units) for c in scan.curves for k in c.removed]
        lengths = {len(column) for c in scan.curves for column in (c.removed, c.correct, c.loss)}
        fits = all(0 <= k <= most and most for k, most in counts) and 0 <= scan.dense.accuracy <= 1
        shares = bool(scan.sparsities) and all(0 <= s < 1 for s in scan.sparsities)
        if not (fits and shares) or lengths - {len(scan.sparsities)}:  # a loss may be NaN: pruned, it overflowed
            raise PruneError(f"{path} is a damaged scan: its curves do not fit its sparsities or labels. Delete it")
        return scan


class ScanStopped(PruneError):
    """A scan that could not go on; `partial` is what it had: give it as `resume=` to go on from there."""

    def __init__(self, message: str, partial: Scan):
        super().__init__(message)
        self.partial = partial
