"""Lesson 13, "Can a Llama lose entire layers?": its experiments, grids, drawings and exercises' checks."""

from __future__ import annotations

import copy
import math
import random
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor, nn
from torch.nn import functional as F

from ... import zoo
from ...allocation import NM, allocate, expand
from ...calibration import Calibration
from ...core import Group, Keep
from ...criteria import AngularDistance, BlockInfluence, magnitude
from ...granularity import by_name as granularity_named
from ...granularity import weights
from ...language import next_token_loss, next_tokens, tokens, windows, write
from ...masking import apply, bake
from ...measurement import perplexity
from ...reconstruction import Method, SparseGPT, Wanda, blockwise
from ...surgery import shrink
from ...units import tensors_of
from ..learn.claim import plain
from ..learn.exercise import call
from ..learn.stored_grid import Grid, Resumable, Run
from ..show import display
from ..show.figure import COLOURS
from ..show.measuring import measured
from ..show.vector import INK, PAPER

# The text cut in three, depth cuts by a rule, and what is left


LENGTH = 256
TESTED = CALIBRATED = 16  # windows
QUESTION = "Why does a gardener prune a tree?"
WRITTEN = 32  # tokens


@dataclass(frozen=True)
class Text:
    """The Python reference as windows of 256 tokens: 16 to test, the last 16 to calibrate, those between to heal."""

    test: Tensor
    train: Tensor
    calib: Calibration

    def some(self, count: int) -> Calibration:
        """The first windows of the calibration."""
        (inputs, targets), *_ = self.calib.batches
        return Calibration(((inputs[:count], targets[:count]),), self.calib.loss)


def text_for(llama: zoo.Llama) -> Text:
    """The three pieces in the Llama's own tokens."""
    rows = windows(tokens(llama.tokenizer, zoo.reference_text(), llama.model), LENGTH)
    calib = Calibration((next_tokens(rows[-CALIBRATED:]),), next_token_loss)
    return Text(rows[:TESTED], rows[TESTED:-CALIBRATED], calib)


def answer(llama: zoo.Llama, model: nn.Module | None = None, count: int = WRITTEN) -> str:
    """What the Llama, or a pruned one, says when asked why a gardener prunes a tree: always its likeliest words."""
    return write(llama.model if model is None else model, llama.tokenizer, llama.prompt(QUESTION), count).strip()


def inputs_of(model: nn.Module, layer: nn.Module, calib: Calibration) -> Tensor:
    """All that flows into a linear layer on the calibration text: (tokens, in)."""
    seen: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda module, args: seen.append(args[0].flatten(0, 1)))
    try:
        with torch.no_grad():
            for ids in calib.batches[0][0].split(1):
                model(input_ids=ids, use_cache=False)
    finally:
        hook.remove()
    return torch.cat(seen)


def conversation(answers: Mapping[str, str]) -> None:
    """The question, and what each Llama answers."""
    lines = {"the question": QUESTION, **answers}
    text = "\n".join(f"{name}: {said}" for name, said in lines.items())
    rows = (
        f"<dt><strong>{escape(n)}</strong></dt><dd style='margin: 0 0 0.5em 1.5em'>{escape(s)}</dd>"
        for n, s in lines.items()
    )
    display.show(text, html=f'<dl style="max-width: {display.WIDTH}">{"".join(rows)}</dl>')


def order(
    model: nn.Module, what: str, rule: str, calib: Calibration | None = None, *, seed: int = 0, n: int = 1
) -> list[int]:
    """Units of "layers", "mlps" or "attentions" in the order in which a rule takes them.

    "influence": the part's own Block Influence, lowest first; "block influence": that of the whole block; "run": the
    run of n blocks of least angular distance first; "last": from the end, but the very last stays to the end;
    "random": by the seed.
    """
    (group,) = granularity_named(what)(model)
    if rule == "random":
        return random.Random(seed).sample(range(group.units), group.units)
    if rule == "last":
        return [*reversed(range(group.units - 1)), group.units - 1]
    criterion: Any = AngularDistance(n) if rule == "run" else BlockInfluence("layers" if rule[:5] == "block" else what)
    scores = criterion(model, calib)
    by_unit = [sum(float(scores[t].sum()) for t in _of_unit(group, unit, scores)) for unit in range(group.units)]
    return sorted(range(group.units), key=by_unit.__getitem__)


def _of_unit(group: Group, unit: int, names: Any) -> set[str]:
    mine = tuple(p for p in group.parts if p.unit == unit)
    return tensors_of(Group(group.name, group.units, (), parts=mine), names)


def keep_without(what: str, units: int, out: Sequence[int]) -> Keep:
    """A keep of one group of whole modules, all but some."""
    kept = torch.ones(units, dtype=torch.bool)
    kept[list(out)] = False
    return {what: kept}


def without(model: nn.Module, what: str, out: Sequence[int]) -> nn.Module:
    """A copy of the model that really lacks some of its layers, MLPs or attentions."""
    groups = granularity_named(what)(model)
    return shrink(model, groups, keep_without(what, groups[0].units, out))


Curves = dict[str, dict[str, dict[int, list[float]]]]  # what leaves -> rule -> how many are gone -> perplexities


def curves(runs: Iterable[dict[str, Any]], whats: Sequence[str], rules: Sequence[str]) -> Curves:
    """The depth grid's perplexities as curves, several values where there are several seeds."""
    found: Curves = {what: {rule: {} for rule in rules} for what in whats}
    for run in runs:
        if run["what"] in whats and run["rule"] in rules and run["removed"]:
            found[run["what"]][run["rule"]].setdefault(run["removed"], []).append(run["perplexity"])
    return found


def middle(values: Sequence[float]) -> float:
    """The geometric mean: of perplexities, the exponential of the mean loss."""
    return math.exp(sum(map(math.log, values)) / len(values))


def rows(found: Curves) -> list[list[Any]]:
    """The same as the rows of a table."""
    return [
        [what, rule, str(count), middle(points[count])]
        for what, by_rule in found.items()
        for rule, points in by_rule.items()
        for count in sorted(points)
    ]


def pattern_of(sparsity: str) -> float | NM:
    """NM(2, 4) of "2:4", and 0.5 of "50 %"."""
    if ":" in sparsity:
        n, m = map(int, sparsity.split(":"))
        return NM(n, m)
    return float(sparsity.removesuffix(" %")) / 100


def by_magnitude(model: nn.Module, sparsity: float | NM) -> nn.Module:
    """The smallest weights of each row at zero, in place."""
    groups, nm = weights(model), isinstance(sparsity, NM)
    keep = allocate(magnitude(model), groups, None if nm else sparsity, sparsity if nm else "row")  # type: ignore[arg-type]
    return bake(apply(model, expand(model, groups, keep)))


def pruned_llama(llama: zoo.Llama, method: Method | None, sparsity: float | NM, calib: Calibration) -> nn.Module:
    """A pruned copy: by Wanda or SparseGPT, block by block, or by magnitude without a method."""
    model = copy.deepcopy(llama.model)
    if method is None:
        return by_magnitude(model, sparsity)
    blockwise(model, calib, method, sparsity)
    return model


# The stored grids: a real Llama pruned in every way the notebook names; half an hour


SPARSITIES = ("50 %", "4:8", "2:4")
METHODS = {"magnitude": None, "Wanda": Wanda(), "SparseGPT": SparseGPT()}
REMOVED = (1, 2, 3, 5, 8)
COMPARED = (1, 3, 5)  # with the last ones, and with chance, five times
SEEDS = (0, 1, 2, 3, 4)
POINT = ("what", "rule", "seed", "removed")  # of the depth grid
SOME = 4  # windows to test a depth cut on, and to measure influence on


def weights_grid() -> Resumable:
    """Notebook 13: single weights of the Llama to zero, three methods and patterns: perplexity and what it writes."""
    llama = zoo.llama()
    text = text_for(llama)

    def run(point: Run) -> Run:
        if point["method"] == "dense":
            return _judged(llama.model, llama, text.test)
        pruned = pruned_llama(llama, METHODS[point["method"]], pattern_of(point["pattern"]), text.calib)
        return _judged(pruned, llama, text.test)

    points = [{"method": "dense", "pattern": "0 %"}]
    points += [{"method": m, "pattern": p} for p in SPARSITIES for m in METHODS]
    return points, run


def depth_grid() -> Resumable:
    """Notebook 13: layers, MLPs and attentions out of the Llama, by several rules: perplexity and what it writes."""
    llama = zoo.llama()
    text = text_for(llama)
    calib, test = text.some(SOME), text.test[:SOME]
    orders: dict[tuple[Any, ...], list[int]] = {}

    def run(point: Run) -> Run:
        what, rule, seed, removed = (point[key] for key in POINT)
        key = (what, rule, seed, removed if rule == "run" else 0)
        if key not in orders:
            orders[key] = order(llama.model, what, rule, calib, seed=seed, n=max(removed, 1))
        out = orders[key][:removed]
        small = without(llama.model, what, out) if removed else llama.model
        return {"out": sorted(out), **_judged(small, llama, test, writes=rule == "influence")}

    return _depth_points(), run


def _depth_points() -> list[Run]:
    """The curves by influence first, then what they are compared with."""
    points = [("layers", "influence", 0, 0)]
    points += [(what, "influence", 0, k) for what in ("layers", "mlps") for k in REMOVED]
    points += [(what, "last", 0, k) for what in ("layers", "mlps") for k in COMPARED]
    points += [(what, "random", seed, k) for seed in SEEDS for what in ("layers", "mlps") for k in COMPARED[1:]]
    points += [("attentions", "influence", 0, k) for k in REMOVED]
    points += [("layers", "run", 0, k) for k in COMPARED[1:]]
    points += [("mlps", "block influence", 0, k) for k in COMPARED[1:]]
    return [dict(zip(POINT, p, strict=True)) for p in points]


def _judged(model: Any, llama: zoo.Llama, test: Any, *, writes: bool = True) -> Run:
    found = perplexity(model, test)
    low, high = found.interval or (found.value, found.value)
    parameters = sum(p.numel() for p in model.parameters())
    written = {"text": answer(llama, model)} if writes else {}
    return {
        "perplexity": found.value,
        "low": low,
        "high": high,
        "accuracy": found.accuracy,
        "parameters": parameters,
        **written,
    }


GRIDS: dict[str, Grid] = {"llama-weights": weights_grid, "llama-depth": depth_grid}


# Drawings: perplexities, influence, and what a pruned Llama says


HATCHES = ("", "////", "....")
HIGHEST = 400  # times the dense perplexity: beyond it a model is noise, and curves may leave the picture


def by_pattern(ax: Axes, runs: Sequence[Run], dense: float) -> None:
    """Perplexity, a group of bars for each pattern of zeros, a bar for each method; logarithmic."""
    patterns, methods = (list(dict.fromkeys(r[k] for r in runs)) for k in ("pattern", "method"))
    value = {(r["method"], r["pattern"]): r["perplexity"] for r in runs}
    width = 0.8 / len(methods)
    for i, method in enumerate(methods):
        x = np.arange(len(patterns)) + (i - (len(methods) - 1) / 2) * width
        heights = [value[method, p] for p in patterns]
        bars = ax.bar(x, heights, width, label=method, color=COLOURS[i], hatch=HATCHES[i % 3], edgecolor=PAPER)
        ax.bar_label(bars, [f"{h:,.0f}" if h >= 100 else f"{h:.3g}" for h in heights], fontsize=9)
    ax.axhline(dense, color=INK, lw=1, ls="--", marker="", label="dense")
    ax.set(
        yscale="log", ylabel="perplexity (logarithmic)", xlabel="which weights are zero", xticks=range(len(patterns))
    )
    ax.set_xticklabels(patterns)
    ax.set_ylim(dense / 2, max(value.values()) * 3)
    ax.legend(ncols=2)


def influence(ax: Axes, values: Sequence[float], out: Sequence[int]) -> None:
    """A bar for each block: how far it turns the stream; those to leave are hatched."""
    for unit, value in enumerate(values):
        leaves = unit in out
        ax.bar(unit, value, color=COLOURS[1] if leaves else COLOURS[0], hatch="////" if leaves else "", edgecolor=PAPER)
    ax.set(xlabel="block, from the first to the last", ylabel="block influence (logarithmic)", yscale="log")
    ax.set_title("orange and hatched: the lowest, which leave first")


def depth(axes: Sequence[Axes], curves: Curves, dense: float) -> None:
    """For each kind of part an axis; for each rule a curve of perplexity against how many parts left, and its range."""
    for ax, (what, rules) in zip(axes, curves.items(), strict=True):
        for rule, points in rules.items():
            counts = sorted(points)
            (line,) = ax.plot([0, *counts], [dense, *(middle(points[k]) for k in counts)], label=rule)
            if max(len(points[k]) for k in counts) > 1:
                low, high = ([f(points[k]) for k in counts] for f in (min, max))
                ax.fill_between(counts, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        ax.set(title=what, xlabel="how many of 30 are gone", yscale="log", ylim=(dense / 1.5, dense * HIGHEST))
    axes[0].set_ylabel("perplexity (logarithmic)")
    axes[0].legend()


def said(ax: Axes, title: str, run: Run) -> None:
    """What a Llama of a stored run says, as a page of text, under its name and its perplexity."""
    ax.axis("off")
    ax.set_title(f"{title}: perplexity {run['perplexity']:.3g}", loc="left", fontweight="bold")
    shown = " ".join(run["text"].split()).replace("$", r"\$") or "(nothing)"
    lines = "\n".join(textwrap.wrap(shown, 78, break_long_words=True)[:7])
    ax.text(0, 0.95, f"“{lines}”", va="top", ha="left", fontsize=11, family="serif", transform=ax.transAxes)


def heard(run: Run) -> dict[str, str]:
    """`said` as text: the perplexity, and the beginning of what the Llama says."""
    shown = " ".join(run["text"].split()) or "(nothing)"
    return {"perplexity": measured(run["perplexity"]), "it says": textwrap.shorten(shown, 90, placeholder=" ...")}


# The checks of the exercises, whose texts stand in 13.toml


def check_read(answer: Any) -> str | None:
    """Of six blocks with their influence, the two to remove."""
    given = plain(answer)
    if not isinstance(given, (tuple, list)) or len(given) != 2 or not all(isinstance(i, int) for i in given):
        return "give two numbers of blocks, such as `(0, 1)`."
    known = {
        (2, 4): None,
        (0, 5): "those two turn the stream most: they are the ones to keep.",
        (4, 5): "you took the last two. The last block turns the stream a lot: it prepares the answer.",
        (2, 3): "you took two in a row. Block Influence judges each block alone, and they need not be neighbours.",
        (3, 5): "you counted from one: the first block has the number 0.",
    }
    return known.get(tuple(sorted(given)), "not these two: find the two that change least what passes through them.")


def check_modify(answer: Any) -> str | None:
    """|W_ij| * norm(X_j)."""
    source = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 3, generator=source)
    inputs = torch.randn(10, 3, generator=source) * torch.tensor([0.1, 1.0, 5.0])
    found = call(answer, weight.clone(), inputs.clone())
    if not torch.is_tensor(found) or found.shape != weight.shape:
        return "return a tensor of the weight's shape, (out, in): one score a weight."
    norms = inputs.norm(dim=0)
    if torch.allclose(found, weight.abs() * norms):
        return None
    wrong = (
        (weight.abs(), "that is still magnitude: the inputs are not asked."),
        (weight * norms, "you kept the signs: a large negative weight would go first. Take `abs()` of the weight."),
        (weight.abs() * inputs.norm(), "one norm for all inputs ranks as magnitude does: each input needs its own."),
        (weight.abs() * inputs.sum(0).abs(), "a sum lets positive and negative inputs cancel. Wanda takes the norm."),
        (weight.abs() * inputs.mean(0).abs(), "a mean lets positive and negative inputs cancel. Wanda takes the norm."),
        (weight.abs() + norms, "a sum lets a weight of zero on a loud input survive: multiply."),
        (weight.abs() * norms.square(), "you squared the norm: it ranks otherwise. Wanda takes the norm itself."),
    )
    near = [message for value, message in wrong if torch.allclose(found, value)]
    return near[0] if near else "a weight's score is |w| times the norm of *its own* input over all tokens."


def _streams() -> list[Tensor]:
    """What enters six blocks and leaves the last: 5 tokens, 4 numbers each. The middle ones hardly turn it."""
    source = torch.Generator().manual_seed(3)
    steps = (1.0, 0.6, 0.3, 0.05, 0.35, 0.9)
    streams = [torch.randn(5, 4, generator=source)]
    for size in steps:
        streams.append(streams[-1] + size * torch.randn(5, 4, generator=source))
    return streams


def _angles(streams: Sequence[Tensor], n: int) -> list[float]:
    pairs = zip(streams, streams[n:], strict=False)
    return [float((F.cosine_similarity(a, b, dim=-1).clamp(-1, 1).arccos() / math.pi).mean()) for a, b in pairs]


def check_make(answer: Any) -> str | None:
    """The start of the run of n blocks that turns the stream least."""
    streams = _streams()
    best = {n: min(range(7 - n), key=_angles(streams, n).__getitem__) for n in (1, 2, 3)}
    found = {n: plain(call(answer, [s.clone() for s in streams], n)) for n in (1, 2, 3)}
    if not all(isinstance(x, int) and not isinstance(x, bool) for x in found.values()):
        return "return the number of the block where the run starts, a whole number."
    if found == best:
        return None
    most = {n: max(range(7 - n), key=_angles(streams, n).__getitem__) for n in (1, 2, 3)}
    single = _angles(streams, 1)
    alone = {n: min(range(7 - n), key=single.__getitem__) for n in (1, 2, 3)}
    if found == most:
        return "you found the run that turns the stream *most*: that one does the work. Take the smallest angle."
    if found == alone:
        return "you compared each block with the next one only. A run goes from `streams[i]` to `streams[i + n]`."
    if found == {n: i + 1 for n, i in best.items()}:
        return "one too many: `streams[i]` is what *enters* block i, so a run from `streams[i]` starts at block i."
    return (
        "for each start i compare `streams[i]` with `streams[i + n]`, token by token, and take the smallest mean angle."
    )
