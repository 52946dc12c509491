"""Lesson 13, "Can a Llama lose entire layers?": its experiments, grid, drawings and exercises' checks."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from torch import Tensor, nn
from torch.nn import functional as F

from ... import zoo
from ...allocation import unit_scores
from ...calibration import Calibration
from ...criteria import AngularDistance, BlockInfluence
from ...granularity import by_name as granularity_named
from ...language import next_token_loss, next_tokens
from ...recovery import train
from ...surgery import shrink
from ..learn.claim import plain
from ..learn.exercise import call
from ..learn.stored_grid import Grid, Resumable, Run, grid
from ..show.figure import COLOURS
from ..show.vector import INK
from .llamas import Text, judged, streams, text_for

# Cuts by a rule, and what is left


ENDS = 3  # blocks at each end that a draw from the middle spares


def order(
    model: nn.Module, what: str, rule: str, calib: Calibration | None = None, *, seed: int = 0, n: int = 1
) -> list[int]:
    """Units of "layers", "mlps" or "attentions" in the order in which a rule takes them.

    "influence": the part's own Block Influence, lowest first; "angle": the run of n blocks of least angular distance
    first; "last": from the end; "random": by the seed; "middle": by the seed, but
    the first three and the last three stay to the end.
    """
    (group,) = granularity_named(what)(model)
    units = list(range(group.units))
    if rule in ("random", "middle"):
        ends = [u for u in units if not ENDS <= u < len(units) - ENDS] if rule == "middle" else []
        free = [unit for unit in units if unit not in ends]
        return random.Random(seed).sample(free, len(free)) + ends
    if rule == "last":
        return units[::-1]
    criterion: Any = AngularDistance(n) if rule == "angle" else BlockInfluence(what)
    worth = unit_scores(criterion(model, calib), [group], "sum")[group.name]
    return sorted(range(group.units), key=worth.tolist().__getitem__)


def without(model: nn.Module, what: str, out: Sequence[int]) -> nn.Module:
    """A copy of the model that really lacks some of its layers, MLPs or attentions."""
    (group,) = granularity_named(what)(model)
    return shrink(model, [group], {group.name: torch.tensor([unit not in out for unit in range(group.units)])})


# The stored grid: the Llama without its parts


REMOVED = (1, 2, 3, 5, 8)
DRAWN = (3, 5)
SEEDS = (0, 1, 2, 3, 4)
POINT = ("what", "rule", "seed", "removed")
SOME = 4  # windows to test a cut on, and to measure influence on
HEALING = {"epochs": 1, "lr": 5e-3, "weight_decay": 0.0, "batch_size": 2, "progress": False}  # eight steps


def heal(model: nn.Module, text: Text) -> nn.Module:
    """The model, its norms trained on 16 pieces of 129 tokens that neither the test nor the criteria have seen."""
    for name, p in model.named_parameters():
        p.requires_grad_("norm" in name)
    train(model, next_tokens(text.train[::24][:16, :129]), loss=next_token_loss, **HEALING)  # type: ignore[arg-type]
    return model


def without_run(model: Any, entering: Sequence[Tensor], test: Tensor, start: int, n: int) -> Run:
    """Perplexity without n blocks from one on: what enters the first of them enters the one behind the last."""
    inner, losses = model.model, []
    at = inner.rotary_emb(entering[0], position_ids=torch.arange(test.shape[1] - 1)[None])
    with torch.no_grad():
        for x, targets in zip(entering[start].split(1), test[:, 1:], strict=True):
            for block in inner.layers[start + n :]:
                x = block(x, position_embeddings=at)
            losses.append(float(F.cross_entropy(model.lm_head(inner.norm(x))[0], targets)))
    found = {"out": list(range(start, start + n)), "perplexity": math.exp(sum(losses) / len(losses))}
    return found | {"losses": [round(x, 5) for x in losses]}


def depth_grid() -> Resumable:
    """Notebook 13: layers, MLPs and attentions out of the Llama, by rule and one by one: perplexity, answers."""
    llama = zoo.llama()
    text = text_for(llama)
    calib, test = text.some(SOME), text.test[:SOME]
    orders: dict[tuple[Any, ...], list[int]] = {}
    entering: list[Tensor] = []

    def run(point: Run) -> Run:
        what, rule, seed, removed = (point[key] for key in POINT)
        if rule == "run":
            if not entering:
                entering.extend(streams(llama.model, test[:, :-1]))
            return without_run(llama.model, entering, test, seed, removed)
        by = rule.removesuffix(", healed")
        key = (what, by, seed, removed if by == "angle" else 0)
        if key not in orders:
            orders[key] = order(llama.model, what, by, calib, seed=seed, n=max(removed, 1))
        out = orders[key][:removed]
        small = without(llama.model, what, out) if removed else llama.model
        small = heal(copy.deepcopy(small), text) if by != rule else small
        return {"out": sorted(out), **judged(small, llama, test, writes=rule == "influence")}

    return _depth_points(), run


def _depth_points() -> list[Run]:
    """The curves by influence first, then what they are compared with, then each block, and each three in a row."""
    points = [("layers", "influence", 0, 0)]
    points += [(what, "influence", 0, k) for what in ("layers", "mlps", "attentions") for k in REMOVED]
    points += [("attentions", "influence", 0, 3 * k) for k in REMOVED if k > 2]  # as many parameters as k MLPs
    points += [("layers", "last", 0, k) for k in (1, *DRAWN)]
    points += [("layers", "angle", 0, k) for k in DRAWN]
    points += [("layers", "run", start, k) for k in (3, 1) for start in range(31 - k)]
    points += [("layers", "middle", seed, k) for seed in SEEDS for k in DRAWN]
    points += [("layers", "influence, healed", 0, k) for k in (0, 5)]
    points += [(what, "middle", seed, k) for seed in SEEDS for what, k in (("mlps", 3), ("attentions", 9))]
    return [dict(zip(POINT, p, strict=True)) for p in points]


GRIDS: dict[str, Grid] = {"llama-depth": depth_grid}


# Drawings: influence, damage, and what a smaller Llama says


Dots = Mapping[str, tuple[Sequence[float], Sequence[float]]]  # kind of cut -> influences, perplexities
NAMED = 12  # points between a mark and its name


def damage(ax: Axes, found: Dots, names: Mapping[str, tuple[float, float]], dense: float) -> None:
    """Each cut a mark: how far it turns the stream, and the perplexity without it; some carry their names."""
    for (kind, (turned, after)), colour, marker in zip(found.items(), COLOURS, "o^*", strict=False):
        size = 14 if marker == "*" else 7
        ax.plot(turned, after, ls="none", marker=marker, color=colour, markersize=size, alpha=0.85, label=kind)
    marks = [mark for turned, after in found.values() for mark in zip(turned, after, strict=True)]
    for name, (x, y) in names.items():
        beside = any(1 < a / x < 2 and abs(math.log(b / y)) < 0.2 for a, b in marks)
        place = (NAMED, -NAMED if beside else 0)
        ax.annotate(name, (x, y), xytext=place, textcoords="offset points", va="center", fontsize=10)
    ax.axhline(dense, color=INK, lw=1, ls="--", marker="", label="the whole Llama")
    ax.set(xscale="log", yscale="log", xlabel="how far it turns the stream: (summed) block influence")
    ax.set_ylabel("perplexity without it")
    ax.legend(loc="upper left")


# The checks of the exercises, whose texts stand in 13.toml


GOOD = 1.25  # times the best run's perplexity


def check_three(answer: Any) -> str | None:
    """The start of three neighbours whose loss costs at most a quarter more than that of the best three."""
    start, after = (
        whole(answer),
        [r["perplexity"] for r in grid("llama-depth") if (r["rule"], r["removed"]) == ("run", 3)],
    )
    if start is None:
        return "give one whole number, the first of the three: they are neighbours, so the start says it all."
    if not 0 <= start < len(after):
        return f"three blocks from {start} on do not exist: the starts are 0 to 27."
    cost = f"without blocks {start} to {start + 2} the perplexity is {after[start]:,.0f}, the best three cost"
    cost += f" {min(after):.0f}: "
    if after[start] <= GOOD * min(after):
        return None
    if start == 0:
        return cost + "the first two blocks are the dearest of all: look at what each costs *alone*."
    if start == 27:
        return cost + "alone, the last block costs more than all but the first two; it is no polish."
    if start in (25, 26):
        return cost + "influence is low there, and it is not damage. Look at what each costs *alone*, and at its side."
    return cost + "look for three neighbours that are all among the cheapest alone, and where `turn` is low, too."


def whole(answer: Any) -> int | None:
    """A whole number, also as a float, a tensor or an array of one; None for anything else."""
    value = plain(answer)
    if isinstance(value, list) and len(value) == 1:
        (value,) = value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value // 1:
        return None
    return int(value)


SHAPES = ((6, 5, 4, 0), (8, 3, 6, 1), (5, 7, 3, 2), (9, 4, 5, 3))  # blocks, tokens, hidden numbers, seed


def _streams(count: int, tokens: int, hidden: int, seed: int) -> list[Tensor]:
    """What enters each block and leaves the last. Blocks also stretch it, so that distance is not angle."""
    source = torch.Generator().manual_seed(seed)
    dtype = torch.float64 if seed % 2 else torch.float32
    found = [torch.randn(tokens, hidden, generator=source, dtype=dtype)]
    for i in range(count):
        turn = 0.1 if i == count - 1 and seed % 2 else float(torch.rand((), generator=source))
        stretch = 3.0 if turn < 0.3 else 1.0
        found.append(stretch * found[-1] + turn * torch.randn(tokens, hidden, generator=source, dtype=dtype))
    return found


def _angles(streams: Sequence[Tensor], n: int, dim: int = -1) -> list[float]:
    pairs = zip(streams, streams[n:], strict=False)
    return [float(F.cosine_similarity(a, b, dim=dim).clamp(-1, 1).arccos().mean()) for a, b in pairs]


def _lowest(values: Sequence[float]) -> int:
    return min(range(len(values)), key=values.__getitem__)


RUNS: dict[str, Callable[[list[Tensor], int], int]] = {
    "you found the run that turns the stream *most*: that one does the work. Take the smallest angle.":
        lambda s, n: _lowest([-x for x in _angles(s, n)]),
    "you compared each block with the next one only. A run goes from `streams[i]` to `streams[i + n]`.":
        lambda s, n: _lowest(_angles(s, 1)[: len(s) - n]),
    "one too many: `streams[i]` is what *enters* block i, so a run from `streams[i]` starts at block i.":
        lambda s, n: _lowest(_angles(s, n)) + 1,
    "that is a *distance*. A block may stretch the stream and turn it by nothing: take the angle.":
        lambda s, n: _lowest([float((a - b).norm(dim=-1).mean()) for a, b in zip(s, s[n:], strict=False)]),
    "you compared along the tokens: each *token's* stream is one vector, so the cosine needs `dim=-1`.":
        lambda s, n: _lowest(_angles(s, n, 0)),
    "you never look at the last run: it ends with the last block, and begins at `len(streams) - n - 1`.":
        lambda s, n: _lowest(_angles(s, n)[:-1]),
}  # fmt: skip


def check_run(answer: Any) -> str | None:
    """The start of the run of n blocks that turns the stream least."""
    cases = [(_streams(*shape), n) for shape in SHAPES for n in (1, 2, 3)]
    found = [whole(call(answer, [s.clone() for s in streams], n)) for streams, n in cases]
    if None in found:
        return "return the number of the block where the run starts, a whole number."
    if found == [_lowest(_angles(streams, n)) for streams, n in cases]:
        return None
    for message, wrong in RUNS.items():
        if found == [wrong(streams, n) for streams, n in cases]:
            return message
    return "for each i compare `streams[i]` with `streams[i + n]`, token by token, and take the smallest mean angle."
