"""The scan: prune one group, look, put it back, prune the next; with as little run twice as can be."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import lru_cache
from math import isclose
from pathlib import Path
from typing import Any
from warnings import warn

import cloudpickle  # type: ignore[import-untyped]  # joblib needs it, and brings it
import joblib
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from .. import criteria, units
from .. import granularity as granularities
from ..allocation import allocate, check_sparsity, least_of
from ..calibration import Calibration
from ..checks import check_count, known
from ..core import Criterion, Granularity, Group, Masks, PruneError, Scores, device_of, lookup_all
from ..data import batches, split_of, to
from ..masking import bake, expand
from ..measurement.evaluation import Evaluation, evaluate, right
from ..running import check_numbers, check_plain, duplicate, first_inputs, pair, undisturbed
from ..text import describe, listed, plural
from .replay import Replay, Weights
from .result import Curve, Scan, ScanStopped

LANES = {"cpu": 16}  # samples times sparsities in one pass: a CPU gains only where the batches are tiny
LANES_ELSEWHERE = 2048  # a GPU is idle with less
HELD = 1 << 28  # bytes of pruned weights held ready at once; of larger layers they are made for every batch
INLINE = 8_000_000  # bytes sent with every single task; Dask warns at 10 MB

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Job:
    """What the tasks of all groups have in common."""

    model: nn.Module
    data: Any
    split: str
    sparsities: tuple[float, ...]
    batch_size: int
    loss: Loss
    dense: Evaluation


def packed(job: Job) -> bytes | np.ndarray:
    """The job as bytes that go with every task, so that Dask can give a dead worker's tasks to another.

    Where that would be too much, as an array: joblib puts it into shared memory, and Dask on the workers, once each.
    """
    try:
        found = cloudpickle.dumps(job)
    except Exception as error:  # whatever a model's or a data set's own code raises
        raise PruneError(f"model and data cannot be sent to other processes: {error}. Use n_jobs=1") from error
    return found if len(found) <= INLINE else np.frombuffer(found, np.uint8)


def measured(sent: Job | bytes | np.ndarray, group: Group, scores: Scores) -> Curve:
    """One group's curve: the task that joblib runs, here or elsewhere."""
    job: Job = sent if isinstance(sent, Job) else cloudpickle.loads(sent)
    most = group.units - least_of(group)  # which `allocate` leaves
    counts = tuple(min(round(s * group.units), most) for s in job.sparsities)
    masks = {k: _masks(job.model, group, scores, k) for k in sorted(set(counts)) if k}
    names = dict.fromkeys(name for own in masks.values() for name in own)  # of whole modules only those that go
    correct, total, n, how = dict.fromkeys(masks, 0), dict.fromkeys(masks, 0.0), 0, "suffix"
    with steady(job.model), torch.no_grad():
        data = batches(job.data, job.split, size=job.batch_size) if masks else ()
        for targets, way, each in under(job.model, names, masks.__getitem__, list(masks), data):
            how, n = way, n + targets.numel()
            for count, outputs in each:
                correct[count] += right(outputs, targets)
                total[count] += float(job.loss(outputs, targets)) * targets.numel()
    found = {0: (job.dense.correct, job.dense.loss)} | {k: (correct[k], total[k] / n) for k in masks}
    rights, losses = zip(*(found[k] for k in counts), strict=True)
    return Curve(group.name, group.units, counts, rights, losses, how)


def _masks(model: nn.Module, group: Group, scores: Scores, count: int) -> Masks:
    if count == group.units:
        return expand(model, [group], {group.name: torch.zeros(count, dtype=torch.bool)})
    return expand(model, [group], allocate(scores, [group], count / group.units, "layer"))


def steady(model: nn.Module) -> ExitStack:
    """Eval mode, and the same dice for every pass over the data: a loader that shuffles gives the same batches."""
    stack = undisturbed(model)
    torch.default_generator.manual_seed(0)  # not torch.manual_seed, which would reach for GPUs
    return stack


def under(
    model: nn.Module,
    names: Iterable[str],
    masks: Callable[[int], Masks],
    keys: Sequence[int],
    data: Iterable[tuple[Any, Tensor]],
) -> Iterator[tuple[Tensor, str, Iterator[tuple[int, Tensor]]]]:
    """For every batch its targets, the way it is run, and (key, outputs) for each key, with zeros where masks(key) say.

    names: of all tensors that any of the masks is for. The model is copied, and runs each time from the first layer
    that holds one of these tensors, where that can be done: for several keys at once where that pays.
    """
    twin = bake(duplicate(model)).eval()
    if any(p.dim() == 4 for p in twin.parameters()):
        twin = twin.to(memory_format=torch.channels_last)  # on a CPU pooling alone is ten times faster so
    dense = {places[0].name: places[0].tensor.detach() for places in lookup_all(twin, names).values()}
    size, device = sum(w.nbytes for w in dense.values()) * len(keys), device_of(twin)

    @lru_cache(maxsize=None if size <= HELD else 0)
    def weights(key: int) -> Weights:
        # Cloned first: masked_fill alone would give the mask's memory format, and all that follows would be in it.
        own = masks(key)
        return {n: w.clone().masked_fill_(~own[n].to(w.device), 0) if n in own else w for n, w in dense.items()}

    runs, how = Replay(twin, dense), ""
    for batch in data:
        inputs, targets = to(pair(batch), device)
        if not len(targets):
            continue
        lanes = max(1, LANES.get(device.type, LANES_ELSEWHERE) // len(targets))
        how = how or _how(runs, weights(keys[-1]), inputs, stack=min(lanes, len(keys)) > 1)
        at_once = lanes if how == "stacked" else 1
        yield (
            targets,
            how,
            _each(runs, how, [keys[i : i + at_once] for i in range(0, len(keys), at_once)], weights, inputs),
        )


def _each(
    runs: Replay, how: str, chunks: list[Sequence[int]], weights: Callable[[int], Weights], inputs: Any
) -> Iterator[tuple[int, Tensor]]:
    if how != "whole":
        runs.record(inputs)
    run = runs.whole if how == "whole" else runs.run
    for chunk in chunks:
        if len(chunk) == 1:
            yield chunk[0], run(weights(chunk[0]), inputs)
        else:
            yield from zip(chunk, runs.stacked([weights(key) for key in chunk], inputs), strict=True)


def _how(runs: Replay, weights: Weights, inputs: Any, *, stack: bool) -> str:
    if not runs.reusable(weights, inputs):
        return "whole"
    return "stacked" if stack and runs.stackable(weights, inputs) else "suffix"


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

    >>> layer = nn.Linear(2, 2, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[2.0, 0.1], [0.1, 2.0]]))  # the two small ones are not needed
    >>> found = scan(layer, (torch.eye(2), torch.tensor([0, 1])), (0.5,), progress=False)
    >>> found.removed.tolist(), found.correct.tolist()  # 2 of the 4 weights go, and both labels are still right
    ([[2]], [[2]])
    """
    check_plain(model)
    check_numbers(model)
    check_count("batch_size", batch_size)
    shares = _checked(sparsities)
    data = split_of(data, split)
    if example is None:
        with undisturbed(model):  # a loader that shuffles throws dice
            example = first_inputs(data, split, batch_size)
    groups = granularities.by_name(granularity)(model, example)
    if only is not None:
        wanted = known("only", only, [g.name for g in groups])
        if not wanted:
            raise PruneError(f"only={only!r}: give a tuple with some of {tuple(g.name for g in groups)}")
        groups = [g for g in groups if g.name in wanted]
    scores = criteria.by_name(criterion)(model, calib)
    with steady(model):
        dense = evaluate(model, data, split, batch_size=batch_size, loss=loss)
    job = Job(model, data, split, shares, batch_size, loss, dense)
    empty = Scan(shares, (), dense, describe(granularity), describe(criterion), split, tuple(g.name for g in groups))
    done = _resumed(resume, empty, groups)
    todo = [(g, {n: scores[n] for n in units.tensors_of(g, scores)}) for g in groups if g.name not in done]
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
            where = f"resume={str(resume)!r}" if isinstance(resume, str | Path) else "resume= and the result"
            said = f"interrupted: {len(done)} of {len(groups)} groups are scanned. To go on, call it again with {where}"
            warn(said, stacklevel=2)
        except Exception as error:
            partial = _collected(empty, done)
            reason = str(error).strip() or type(error).__name__
            raise ScanStopped(
                f"the scan stopped: {type(error).__name__}: {reason}. Done: {plural(len(done), 'group')} "
                f"({listed(partial.names)}); left: {listed(partial.missing)}. The result so far is this error's "
                ".partial; give it as resume= to go on",
                partial,
            ) from error
    return _collected(empty, done)


def _checked(sparsities: Sequence[float]) -> tuple[float, ...]:
    if isinstance(sparsities, str) or not isinstance(sparsities, Sequence | np.ndarray) or not len(sparsities):
        raise PruneError(f"sparsities={sparsities!r}: give a list of fractions, such as (0.5, 0.7, 0.9)")
    shares = tuple(check_sparsity(s) for s in sparsities)
    if list(shares) != sorted(set(shares)):
        raise PruneError(f"sparsities={shares}: give each once, from low to high")
    return shares


def _resumed(resume: Any, empty: Scan, groups: list[Group]) -> dict[str, Curve]:
    """The curves an earlier scan left, by name; PruneError if it was a scan of something else."""
    if resume is None or (isinstance(resume, str | Path) and not Path(resume).exists()):
        return {}
    earlier = Scan.load(resume) if isinstance(resume, str | Path) else resume
    if not isinstance(earlier, Scan):
        raise PruneError(f"resume is a {type(resume).__name__}: give a Scan, or the path of a saved one")
    here, there = empty.dense, earlier.dense
    differing = [
        n for n in ("sparsities", "granularity", "criterion", "split") if getattr(earlier, n) != getattr(empty, n)
    ]
    if (here.n, here.correct) != (there.n, there.correct) or not isclose(here.loss, there.loss, rel_tol=1e-5):
        differing.append("the dense model's accuracy and loss, so that model, loss or data are others,")
    units_of = {g.name: g.units for g in groups}
    if any(units_of.get(c.name, c.units) != c.units for c in earlier.curves):
        differing.append("the groups")
    if differing:
        raise PruneError(f"the scan to resume differs in {', '.join(differing)}: it cannot be gone on with")
    return {c.name: c for c in earlier.curves if c.name in units_of}


def _collected(empty: Scan, done: Mapping[str, Curve]) -> Scan:
    names = empty.missing
    curves = tuple(done[n] for n in names if n in done)
    return replace(empty, curves=curves, missing=tuple(n for n in names if n not in done))


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
