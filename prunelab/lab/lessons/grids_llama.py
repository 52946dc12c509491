"""The grids of notebook 13: a real Llama pruned in every way the notebook names. Half an hour, resumable."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ... import zoo
from ...measurement import perplexity
from ...reconstruction import SparseGPT, Wanda
from . import llamas

Run = dict[str, Any]
SPARSITIES = ("50 %", "4:8", "2:4")
METHODS = {"magnitude": None, "Wanda": Wanda(), "SparseGPT": SparseGPT()}
REMOVED = (1, 2, 3, 5, 8)
COMPARED = (1, 3, 5)  # with the last ones, and with chance, five times
SEEDS = (0, 1, 2, 3, 4)
SOME = 4  # windows to test a depth cut on, and to measure influence on


def weights_grid() -> Iterator[Run]:
    """Notebook 13: single weights of the Llama to zero, three methods and patterns: perplexity and what it writes."""
    llama = zoo.llama()
    text = llamas.text_for(llama)

    def run(method: str, pattern: str) -> Run:
        if method == "dense":
            return _judged(llama.model, llama, text.test)
        pruned = llamas.pruned_llama(llama, METHODS[method], llamas.pattern_of(pattern), text.calib)
        return _judged(pruned, llama, text.test)

    points = [{"method": "dense", "pattern": "0 %"}]
    points += [{"method": m, "pattern": p} for p in SPARSITIES for m in METHODS]
    yield from resumable("llama-weights", points, run)


def depth_grid() -> Iterator[Run]:
    """Notebook 13: layers, MLPs and attentions out of the Llama, by several rules: perplexity and what it writes."""
    llama = zoo.llama()
    text = llamas.text_for(llama)
    calib, test = text.some(SOME), text.test[:SOME]
    orders: dict[tuple[Any, ...], list[int]] = {}

    def run(what: str, rule: str, seed: int, removed: int) -> Run:
        key = (what, rule, seed, removed if rule == "run" else 0)
        if key not in orders:
            orders[key] = llamas.order(llama.model, what, rule, calib, seed=seed, n=max(removed, 1))
        out = orders[key][:removed]
        small = llamas.without(llama.model, what, out) if removed else llama.model
        return {"out": sorted(out), **_judged(small, llama, test, writes=rule == "influence")}

    yield from resumable("llama-depth", _depth_points(), run)


def _depth_points() -> list[Run]:
    """The curves by influence first, then what they are compared with."""
    points = [("layers", "influence", 0, 0)]
    points += [(what, "influence", 0, k) for what in ("layers", "mlps") for k in REMOVED]
    points += [(what, "last", 0, k) for what in ("layers", "mlps") for k in COMPARED]
    points += [(what, "random", seed, k) for seed in SEEDS for what in ("layers", "mlps") for k in COMPARED[1:]]
    points += [("attentions", "influence", 0, k) for k in REMOVED]
    points += [("layers", "run", 0, k) for k in COMPARED[1:]]
    points += [("mlps", "block influence", 0, k) for k in COMPARED[1:]]
    return [dict(zip(("what", "rule", "seed", "removed"), p, strict=True)) for p in points]


def _judged(model: Any, llama: zoo.Llama, test: Any, *, writes: bool = True) -> Run:
    found = perplexity(model, test)
    low, high = found.interval or (found.value, found.value)
    parameters = sum(p.numel() for p in model.parameters())
    written = {"text": llamas.answer(llama, model)} if writes else {}
    return {
        "perplexity": found.value,
        "low": low,
        "high": high,
        "accuracy": found.accuracy,
        "parameters": parameters,
        **written,
    }


def resumable(name: str, points: Sequence[Run], run: Callable[..., Run]) -> Iterator[Run]:
    """Each point and what its run gives. Runs are kept as they come: an interrupted grid goes on where it was."""
    path = zoo.cache_dir() / f"grid-{name}.jsonl"
    done = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    known = {json.dumps(point): found for point, found in done}
    for point in points:
        key = json.dumps(point)
        if key not in known:
            known[key] = run(**point)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([point, known[key]]) + "\n")
        yield point | known[key]
    path.unlink(missing_ok=True)
