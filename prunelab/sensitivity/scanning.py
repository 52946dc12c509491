"""The scan: prune one group, look, put it back, prune the next; with as little run twice as can be."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from math import isclose
from pathlib import Path
from typing import Any
from warnings import warn

import joblib
import numpy as np
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from .. import criteria, units
from .. import granularity as granularities
from ..allocation import check_sparsity
from ..batches import split_of
from ..calibration import Calibration
from ..core import Criterion, Granularity, Group, PruneError, Scores
from ..measurement.accuracy import evaluate
from ..measurement.conditions import check_count, check_numbers, check_plain, first_inputs, undisturbed
from .result import Curve, Scan, ScanStopped
from .task import Job, Loss, measured, packed, steady

SPARSITIES = (0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


def scan(
    model: nn.Module,
    data: Any,
    sparsities: Sequence[float] = SPARSITIES,
    granularity: str | Granularity = "weights",
    criterion: str | Criterion = "magnitude",
    *,
    split: str = "valid",
    only: Collection[str] | None = None,
    calib: Calibration | None = None,
    example: Any = None,
    batch_size: int = 64,
    loss: Loss = F.cross_entropy,
    n_jobs: int | None = None,
    resume: Scan | str | Path | None = None,
    progress: bool = True,
) -> Scan:
    """Accuracy and loss of the model when one group alone loses its lowest-scored units, for every group and sparsity.

    The figures are those of the plain loop over `allocate`, `masked` and `evaluate` (up to float rounding, which can
    turn a tie between two classes), but what lies before the pruned layer is computed once for all sparsities, what
    lies after it is run for several at once where that pays, and convolutions run channels-last. `Curve.how` says what
    was possible. The model is left as it is: a copy is pruned.

    only: the names of the groups to scan; by default all that the granularity finds.
    calib, example: for criteria that look at data, and granularities that trace (default: the data's first batch).
    n_jobs: groups scanned at the same time, as joblib counts them; with None, `joblib.parallel_config` decides, so
    that `with joblib.parallel_config(backend="dask")` carries this very call to a cluster. Default: one.
    resume: an earlier, partial result to go on from; or a path, read if it is there and written after every group.

    Dask gives a dead worker's tasks to others; of a task that kills them all joblib never hears: interrupt the wait.
    Interrupted (KeyboardInterrupt), it warns and returns what it has. Anything else that stops it, a worker that dies
    included, raises ScanStopped, a PruneError with the result so far as `.partial`. Raises PruneError for empty data,
    sparsities outside [0, 1), unknown groups, a model that wears masks, and a `resume` of something else.
    """
    check_plain(model)
    check_numbers(model)
    check_count("batch_size", batch_size)
    shares = _checked(sparsities)
    data = split_of(data, split)
    if example is None:
        with undisturbed(model):  # a loader that shuffles throws dice
            example = first_inputs(data, split, batch_size)
    groups = _groups(model, granularity, only, example)
    scores = criteria.by_name(criterion)(model, calib)
    with steady(model):
        dense = evaluate(model, data, split, batch_size=batch_size, loss=loss)
    job = Job(model, data, split, shares, batch_size, loss, dense)
    empty = Scan(shares, (), dense, _called(granularity), _called(criterion), split, tuple(g.name for g in groups))
    done = _resumed(resume, empty, groups)
    todo = [(g, _scores_of(g, scores)) for g in groups if g.name not in done]
    with undisturbed(model), tqdm(
        total=len(groups), initial=len(done), desc="sensitivity", unit="group", disable=not progress, leave=False
    ) as bar:  # fmt: skip
        try:
            for curve in _curves(job, todo, n_jobs):
                done[curve.name] = curve
                bar.update()
                if isinstance(resume, str | Path):
                    _collected(empty, done).save(resume)
        except KeyboardInterrupt:
            partial = _collected(empty, done)
            warn(f"interrupted: {len(done)} of {len(groups)} groups are scanned. {_how_to_go_on(resume)}", stacklevel=2)
            return partial
        except Exception as error:
            raise ScanStopped.by(error, _collected(empty, done)) from error
    return _collected(empty, done)


def _checked(sparsities: Sequence[float]) -> tuple[float, ...]:
    if isinstance(sparsities, str) or not isinstance(sparsities, Sequence | np.ndarray) or not len(sparsities):
        raise PruneError(f"sparsities={sparsities!r}: give a list of fractions, such as (0.5, 0.7, 0.9)")
    shares = tuple(check_sparsity(s) for s in sparsities)
    if list(shares) != sorted(set(shares)):
        raise PruneError(f"sparsities={shares}: give each once, from low to high")
    return shares


def _groups(model: nn.Module, how: str | Granularity, only: Collection[str] | None, example: Any) -> list[Group]:
    found = granularities.by_name(how)(model, example)
    names = [g.name for g in found]
    if only is None:
        return found
    unknown = [n for n in only if n not in names]
    if unknown or isinstance(only, str) or not only:
        raise PruneError(f"only={only!r}: give a list of names among the groups {', '.join(names)}")
    return [g for g in found if g.name in only]


def _called(thing: Any) -> str:
    return thing if isinstance(thing, str) else getattr(thing, "__name__", None) or repr(thing)


def _scores_of(group: Group, scores: Scores) -> Scores:
    return {name: scores[name] for name in units.tensors_of(group, scores)}


def _resumed(resume: Any, empty: Scan, groups: list[Group]) -> dict[str, Curve]:
    """The curves an earlier scan left, by name; PruneError if it was a scan of something else."""
    if resume is None or (isinstance(resume, str | Path) and not Path(resume).exists()):
        return {}
    earlier = Scan.load(resume) if isinstance(resume, str | Path) else resume
    if not isinstance(earlier, Scan):
        raise PruneError(f"resume is a {type(resume).__name__}: give a Scan, or the path of a saved one")
    here, there = empty.dense, earlier.dense
    differing = [n for n in ("sparsities", "granularity", "criterion", "split") if _differ(n, earlier, empty)]
    if (here.n, here.correct) != (there.n, there.correct) or not isclose(here.loss, there.loss, rel_tol=1e-5):
        differing.append("the dense model's accuracy and loss, so that model, loss or data are others,")
    units_of = {g.name: g.units for g in groups}
    if any(units_of.get(c.name, c.units) != c.units for c in earlier.curves):
        differing.append("the groups")
    if differing:
        raise PruneError(f"the scan to resume differs in {', '.join(differing)}: it cannot be gone on with")
    return {c.name: c for c in earlier.curves if c.name in units_of}


def _differ(name: str, one: Scan, other: Scan) -> bool:
    return getattr(one, name) != getattr(other, name)


def _collected(empty: Scan, done: Mapping[str, Curve]) -> Scan:
    names = empty.missing
    curves = tuple(done[n] for n in names if n in done)
    return replace(empty, curves=curves, missing=tuple(n for n in names if n not in done))


def _how_to_go_on(resume: Any) -> str:
    where = f"resume={str(resume)!r}" if isinstance(resume, str | Path) else "resume= and the result"
    return f"To go on, call it again with {where}"


def _curves(job: Job, todo: list[tuple[Group, Scores]], n_jobs: int | None) -> Iterator[Curve]:
    """The curves as they come in, from wherever joblib sends the tasks."""
    if not todo:
        return
    backend, _ = joblib.parallel.get_active_backend()
    here = joblib.effective_n_jobs(n_jobs) == 1 or getattr(backend, "supports_sharedmem", False)
    sent = job if here else packed(job)
    tasks = [joblib.delayed(measured)(sent, group, scores) for group, scores in todo]
    if backend.supports_return_generator:
        yield from joblib.Parallel(n_jobs=n_jobs, return_as="generator_unordered")(tasks)
        return
    rounds = joblib.effective_n_jobs(n_jobs)  # Ray's gives a list, at the end: so that there are several ends
    for i in range(0, len(tasks), rounds):
        yield from joblib.Parallel(n_jobs=n_jobs)(tasks[i : i + rounds])
