"""Experiments too long for a lesson: run once by `python -m prunelab.lab grids`, stored in `data/`, read by a notebook.

A grid is a JSON file that says how it was made and holds one list of runs. The notebook that reads it repeats a few
of its runs live, and claims that they agree.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator

import torch
from tqdm.auto import tqdm

from ... import zoo
from ...agreement import leave_one_out, rank_correlation
from ...allocation import expand, unit_scores
from ...calibration import Calibration
from ...criteria import by_name as criterion_named
from ...files import write_whole
from ...granularity import filters, weights
from ...layerwise import BySensitivity
from ...masking import apply
from ...measurement import evaluate
from ...recovery import finetune
from ...sensitivity import scan
from ..learn import stored_grid
from ..learn.stored_grid import Run
from ..lessons import contests, grids_budget, grids_heads, grids_llama, grids_movement, grids_recovery

SEEDS = ("digits-cnn", "digits-cnn-1", "digits-cnn-2", "digits-cnn-3", "digits-cnn-4")
SPARSITIES = (0.5, 0.8, 0.9, 0.95, 0.98)
EPOCHS = 1


def scopes() -> Iterator[Run]:
    """Notebook 03: five networks, five ways to share the loss out, before and after one epoch of retraining."""
    data = zoo.load("digits")
    for seed, name in enumerate(SEEDS):
        for rule in contests.RULES:
            for sparsity in SPARSITIES:
                model = contests.pruned(zoo.checkpoint(name), rule, sparsity)
                before = evaluate(model, data, "test").accuracy
                finetune(model, data, epochs=EPOCHS, seed=seed, progress=False)
                after = evaluate(model, data, "test").accuracy
                yield {"network": name, "rule": rule, "sparsity": sparsity, "before": before, "after": after}


LEVELS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)  # of the layer scans


def budgets() -> Iterator[Run]:
    """Notebook 04: five networks, the same budget spent equally, by sensitivity, and by one contest."""
    data = zoo.load("digits")
    for seed, name in enumerate(SEEDS):
        dense = zoo.checkpoint(name)
        groups = weights(dense)
        scanned = scan(dense, data, LEVELS, progress=False)
        for sparsity in (0.5, 0.6, 0.7, 0.8, 0.9):
            choices = {
                "equal shares": contests.kept(dense, "local", sparsity),
                "by sensitivity": contests.spread(dense, BySensitivity(scanned)(dense, groups, sparsity)),
                "one contest": contests.kept(dense, "global", sparsity),
            }
            for rule, keep in choices.items():
                model = zoo.checkpoint(name)
                apply(model, expand(model, groups, keep))
                before = evaluate(model, data, "test").accuracy
                finetune(model, data, epochs=EPOCHS, seed=seed, progress=False)
                after = evaluate(model, data, "test").accuracy
                yield {"network": name, "rule": rule, "sparsity": sparsity, "before": before, "after": after}


JUDGES = ("random", "fpgm", "magnitude", "bn_slimming", "synflow", "gradient", "taylor", "wanda", "fisher")


def truths() -> Iterator[Run]:
    """Notebook 04: five networks, the loss without each filter, and how each criterion had judged it."""
    data = zoo.load("digits")
    for name in SEEDS:
        model = zoo.checkpoint(name)
        groups = filters(model, data.valid[:2][0])
        truth = leave_one_out(model, [data.valid[:400]], groups, progress=False)
        calib = Calibration.of(data, samples=512)
        for judge in JUDGES:
            # The plain sum: what a criterion says of a whole filter, in units that are the same in every layer.
            scores = unit_scores(criterion_named(judge)(model, calib), groups, "sum")
            agreement = rank_correlation(scores, truth)
            yield {"network": name, "criterion": judge, "agreement": agreement.overall, "filters": "all"}
            if name == SEEDS[0]:
                yield from (
                    {"network": name, "criterion": judge, "layer": g.name, "scores": scores[g.name].tolist(),
                     "truth": truth[g.name].tolist()}
                    for g in groups
                )  # fmt: skip


GRIDS: dict[str, Callable[[], Iterator[Run]]] = {
    "scopes": scopes,
    "budgets": budgets,
    "truths": truths,
    **grids_recovery.GRIDS,
    "movement": grids_movement.movement,
    "heads": grids_heads.grid,
    "llama-weights": grids_llama.weights_grid,
    "llama-depth": grids_llama.depth_grid,
    "fronts": grids_budget.fronts,
}


def remake(names: list[str] | None = None) -> None:
    """Run the grids again, all or some, on one thread, and write them."""
    torch.set_num_threads(1)
    for name in names or GRIDS:
        start = time.perf_counter()
        runs = list(tqdm(GRIDS[name](), desc=name, unit="run", file=sys.stderr))
        made = {"made_by": f"python -m prunelab.lab grids {name}", "what": (GRIDS[name].__doc__ or "").splitlines()[0]}
        versions = {"torch": torch.__version__, "seconds": round(time.perf_counter() - start)}
        text = json.dumps({**made, **versions, "runs": runs}, indent=1) + "\n"
        write_whole(stored_grid.path(name), text.encode())
        print(f"{name}: {len(runs)} runs in {time.perf_counter() - start:.0f} s")
