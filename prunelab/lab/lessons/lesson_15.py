"""Lesson 15, "Thin or short?": its experiments, grid, drawings and exercises' checks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW

from ... import zoo
from ...allocation import allocate, unit_scores
from ...calibration import Calibration, input_norms
from ...core import Group, Keep, Scores
from ...criteria import BlockInfluence, magnitude, random, taylor, wanda
from ...granularity import by_name as granularity_named
from ...layers import prunable
from ...measurement import perplexity
from ...recovery import train
from ...surgery import shrink
from ...text import percent
from ..learn.claim import plain
from ..learn.exercise import call
from ..learn.stored_grid import Grid, Resumable, Run, grid
from ..show.figure import COLOURS
from ..show.vector import INK
from .llamas import Text, answer, heard, judged, said, text_for

__all__ = ["Text", "answer", "heard", "said", "text_for"]  # what the notebook finds here as well

# Ways to lose as many parameters as some blocks have


def loudness(model: nn.Module, calib: Calibration) -> Scores:
    """The norm of what each weight is multiplied with, over all tokens, whatever the weight is."""
    weights = prunable(model)
    return {name: x.expand(weights[name].shape) for name, x in input_norms(model, calib).items()}


RULES: dict[str, Any] = {
    "influence": BlockInfluence(), "magnitude": magnitude, "Wanda": wanda, "Taylor": taylor, "loudness": loudness,
    "random": random,
}  # fmt: skip
BEST = {"blocks": ("influence", "global"), "neurons": ("Taylor", "global"), "width": ("loudness", "layer")}
CONTROLS = {
    "Taylor, all blocks compared": ("Taylor", "global"), "Taylor, within each block": ("Taylor", "layer"),
    "Wanda": ("Wanda", "layer"), "the quietest, no weights asked": ("loudness", "layer"),
    "at random": ("random", "layer"), "magnitude": ("magnitude", "layer"),
    "magnitude, all blocks compared": ("magnitude", "global"),
    "magnitude, but the loudest 1 % stay": ("magnitude", "layer, loud stay"),
    "Taylor, but the loudest 1 % go": ("Taylor", "layer, loud go"),
    "the loudest 1 % and no others": ("Taylor", "loud alone"),
}  # fmt: skip
LOUD = 15  # neurons of a block's 1,536: the loudest hundredth
PACK = 8  # channels: widths are multiples of it


def groups_of(model: nn.Module, way: str) -> Sequence[Group]:
    """The groups of "blocks", "neurons", "heads" (a key-value head and its three query heads) or "width"."""
    example = torch.arange(PACK)[None] if way == "width" else None
    return granularity_named("layers" if way == "blocks" else way)(model, example)


def share_of(model: Any, way: str, like: int) -> float:
    """The share of a way's units that has as many parameters as `like` blocks have."""
    blocks, hidden = model.model.layers, model.config.hidden_size
    block, mlp, attention = (
        sum(p.numel() for p in m.parameters()) for m in (blocks[0], blocks[0].mlp, blocks[0].self_attn)
    )
    if way == "width":
        left = hidden - like * block / (sum(p.numel() for p in model.parameters()) / hidden)
        return 1 - round(left / PACK) * PACK / hidden
    return like / len(blocks) * block / {"blocks": block, "neurons": mlp, "heads": attention}[way]


def keep_of(groups: Sequence[Group], scores: Scores, share: float, scope: str, loud: Scores) -> Keep:
    """What stays of a way's groups, the lowest scores gone.

    Of "layer, loud stay" the loudest hundredth of a block's neurons stays whatever it scores, of "layer, loud go" it
    goes; as many leave as of "layer". Of "loud alone" nothing else goes.
    """
    if "loud" not in scope:
        return allocate(scores, groups, share, scope)
    values = unit_scores(scores, groups)
    for name, value in values.items():
        share = LOUD / len(value) if scope == "loud alone" else share
        value[loud[f"{name}.down_proj.weight"][0].topk(LOUD).indices] = math.inf if "stay" in scope else -math.inf
    return {n: v >= v.topk(len(v) - round(share * len(v))).values[-1] for n, v in values.items()}


def smaller(model: nn.Module, groups: Sequence[Group], keep: Keep, *, scaled: bool = True) -> nn.Module:
    """The model without what `keep` leaves out: really gone.

    An RMSNorm whose input has lost channels divides by a mean over fewer, louder ones: it gives less. Its weight is
    scaled to make up for it, as if the channels that left had been silent.
    """
    small = shrink(model, groups, keep)
    sizes = {name: m.weight for name, m in model.named_modules() if "RMSNorm" in type(m).__name__}
    for name, module in small.named_modules():
        if scaled and name in sizes and "RMSNorm" in type(module).__name__:
            module.weight.data *= (len(sizes[name]) / len(module.weight)) ** 0.5
    return small


# The same small distillation for all


STEPS = 8  # a page each, 255 tokens
RATE = 3e-4


def distil(student: nn.Module, head: nn.Module, ids: Tensor, heard: Tensor) -> list[float]:
    """Train all of a student to say what the teacher says: KL(teacher || student), nats a token. The losses, in order.

    `heard` (pages, tokens, hidden) is what the teacher's head hears on these pages; each is a step, in another order.
    """

    def apart(logits: Tensor, hidden: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = head(hidden).log_softmax(-1)
        return F.kl_div(logits.log_softmax(-1), wanted, reduction="sum", log_target=True) / hidden.shape[:2].numel()

    adam = AdamW(student.parameters(), lr=RATE, weight_decay=0.0, fused=True)
    settings: dict[str, Any] = {"steps": len(ids), "lr": RATE, "batch_size": 1, "progress": False}
    return train(student, (ids, heard), loss=apart, optimizer=lambda _: adam, **settings).losses


# The stored grid: the Llama made smaller by several ways, before and after the distillation


POINT = ("way", "rule", "scope", "like", "steps")
SIZES = (8, 15)  # blocks' worth of parameters: 21 and 39 % of the Llama
HEADS = 3  # blocks' worth where heads are compared: all attentions together have less than eight blocks have
SOME = 4  # pages to calibrate on, and to test on


def shapes_grid() -> Resumable:
    """Notebook 15: as many parameters out of the Llama by blocks, neurons, heads and width, then distilled."""
    llama = zoo.llama()
    text, code = text_for(llama), text_for(llama, "code")
    calib = text.some(SOME)
    loud = loudness(llama.model, calib)
    ids = text.train[::24][:STEPS, :-1]
    taught: list[Tensor] = []
    scores: dict[str, Scores] = {}

    def cut(way: str, rule: str, scope: str, like: int) -> nn.Module:
        if rule not in scores:
            scores[rule] = RULES[rule](llama.model, calib)
        groups = groups_of(llama.model, way)
        keep = keep_of(groups, scores[rule], share_of(llama.model, way, like), scope.removesuffix(", unscaled"), loud)
        return smaller(llama.model, groups, keep, scaled="unscaled" not in scope)

    def run(point: Run) -> Run:
        *how, steps = (point[key] for key in POINT)
        model = cut(*how) if point["like"] else llama.model
        if steps and not taught:
            with torch.no_grad():
                taught.append(torch.cat([llama.model.model(one).last_hidden_state for one in ids.split(1)]))
        losses = distil(model, llama.model.lm_head, ids, taught[0]) if steps else []
        main = point["like"] != HEADS and BEST.get(point["way"], ("", "")) == (point["rule"], point["scope"])
        found = judged(model, llama, text.test[:SOME], writes=main or not point["like"])
        if "text" in found:
            found["code"] = perplexity(model, code.test[:SOME]).value
        return found | {"kl": [round(x, 4) for x in losses]}

    return _points(), run


def _points() -> list[Run]:
    """The mains at both sizes, before and after; then heads, other rules, and what the loudest neurons alone do."""
    points: list[tuple[Any, ...]] = [("whole", "", "", 0, 0)]
    points += [(way, *rule, 8, 0) for way, rule in BEST.items()]
    points += [(way, *rule, 8, STEPS) for way, rule in BEST.items()]
    points += [(way, *rule, 15, 0) for way, rule in BEST.items()]
    points += [("neurons", "Taylor", scope, 8, 0) for scope in ("layer", "layer, loud go", "loud alone")]
    points += [("neurons", "magnitude", scope, 8, 0) for scope in ("layer", "global", "layer, loud stay")]
    points += [("neurons", rule, "layer", 8, 0) for rule in ("Wanda", "loudness", "random")]
    points += [("width", "loudness", "layer, unscaled", 8, 0)]
    points += [("heads", "Taylor", "global", HEADS, 0)]
    points += [(way, *BEST[way], HEADS, 0) for way in ("neurons", "blocks")]
    points += [(way, *rule, 15, STEPS) for way, rule in BEST.items()]
    return [dict(zip(POINT, p, strict=True)) for p in points]


GRIDS: dict[str, Grid] = {"llama-shapes": shapes_grid}


def stored() -> dict[tuple[str, str, str, int, bool], Run]:
    """The runs of the grid by way, rule, scope, blocks' worth, and whether they are distilled."""
    return {(r["way"], r["rule"], r["scope"], r["like"], r["steps"] > 0): r for r in grid("llama-shapes")}


def mains(like: int) -> dict[str, list[Run]]:
    """Of each way, at a size, the run before and the run after the distillation."""
    return {way: [stored()[way, *rule, like, after] for after in (False, True)] for way, rule in BEST.items()}


# Drawings


def slopes(axes: Sequence[Axes], whole: float, parameters: int) -> None:
    """Perplexity before and after the distillation, a line a way, and a panel a size."""
    for ax, like in zip(axes, SIZES, strict=True):
        for (way, pair), colour, marker in zip(mains(like).items(), COLOURS, "os^", strict=False):
            values = [r["perplexity"] for r in pair]
            ax.plot([0, 1], values, color=colour, marker=marker, markersize=9, lw=2.5, label=way)
            left = 1 - pair[0]["parameters"] / parameters
        ax.axhline(whole, color=INK, lw=1, ls="--", marker="", label="the whole Llama")
        ax.set(yscale="log", xlim=(-0.2, 1.2), title=f"{percent(left, digits=0)} of the parameters gone")
        ax.set_xticks([0, 1], ["cut", "and distilled"])
    axes[0].set_ylabel("perplexity")
    axes[1].legend(loc="upper right")


def neurons_seen(ax: Axes, size: Tensor, loud: Tensor, gone: Tensor) -> None:
    """The neurons of one MLP, a mark each: the size of their weights, how loud they are, and which ones would go."""
    for chosen, label, colour, marker in ((~gone, "stay", COLOURS[0], "o"), (gone, "go by magnitude", COLOURS[1], "x")):
        ax.plot(size[chosen], loud[chosen], ls="none", marker=marker, color=colour, markersize=4, label=label)
    ax.set(yscale="log", xlabel="sum of the sizes of its weights", ylabel="its norm over all tokens")
    ax.legend(loc="upper right")


# The checks of the exercises, whose texts stand in 15.toml


CONFIGS = ((576, 1536, 192, 8, 30), (64, 172, 64, 3, 7), (256, 1000, 128, 1, 12), (128, 320, 32, 5, 10))


def _neurons(hidden: int, inner: int, kv: int, gone: int, blocks: int, matrices: int = 3) -> float:
    block = 2 * hidden * hidden + 2 * kv * hidden + 3 * inner * hidden
    return gone / blocks * block / (matrices * hidden)


WRONG: dict[str, Callable[..., float]] = {
    "only the MLPs of the blocks were counted. Their attentions leave with them, and neurons must pay for those too.":
        lambda h, m, kv, g, b: g / b * m,
    "that is for all MLPs together: each of them pays its part.": lambda h, m, kv, g, b: b * _neurons(h, m, kv, g, b),
    "a neuron is a row of the gate, a row of the up projection *and* a column of the down projection.":
        lambda h, m, kv, g, b: _neurons(h, m, kv, g, b, 1),
    "a neuron has three vectors of weights, not two: gate, up and down.":
        lambda h, m, kv, g, b: _neurons(h, m, kv, g, b, 2),
    "keys and values are narrower than the stream: `kv` rows each, not `hidden`.":
        lambda h, m, kv, g, b: _neurons(h, m, h, g, b),
}  # fmt: skip


def check_neurons(answer: Any) -> str | None:
    """The neurons of each MLP that have as many parameters as some blocks; rounded, and with norms or without."""
    found = [plain(call(answer, *config)) for config in CONFIGS]
    if any(isinstance(x, bool) or not isinstance(x, (int, float)) for x in found):
        return "return one number: how many neurons leave from each MLP."
    if _near(found, _neurons):
        return None
    for message, wrong in WRONG.items():
        if _near(found, wrong):
            return message
    return "parameters that leave with the blocks, over the MLPs, over the parameters of a neuron."


def _near(found: Sequence[float], wanted: Callable[..., float]) -> bool:
    return all(abs(x - wanted(*config)) <= 1 for x, config in zip(found, CONFIGS, strict=True))


ROOM, CONTEXT = 1.45e9, 24_000  # bytes, tokens


def check_ship(answer: Any) -> str | None:
    """Of ways and sizes: the lowest perplexity after distillation among those whose weights and cache fit."""
    given = plain(answer)
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        return 'give a way and how many blocks\' worth leave, such as `("width", 15)`.'
    way, like = str(given[0]).strip().lower(), plain(given[1])
    if way not in BEST or like not in SIZES:
        return f"the ways are {', '.join(BEST)}, the sizes {SIZES[0]} and {SIZES[1]}."
    needs = {(w, k): _bytes(w, k, pair[1]) for k in SIZES for w, pair in mains(k).items()}
    if needs[way, like] > ROOM:
        return (
            f"{way} at {like} needs {needs[way, like] / 1e9:.2f} GB: the cache counts *blocks*, and no neuron and no "
            "channel that leaves makes it smaller."
        )
    fits = {key: mains(key[1])[key[0]][1]["perplexity"] for key, need in needs.items() if need <= ROOM}
    if fits[way, like] > min(fits.values()):
        return f"it fits, with a perplexity of {fits[way, like]:.0f}; another one that fits has a lower one."
    return None


def _bytes(way: str, like: int, run: Run) -> float:
    """Weights, and keys and values of 3 heads of 64 numbers for each token in each block that is left: float32."""
    return 4 * run["parameters"] + CONTEXT * (30 - like * (way == "blocks")) * 2 * 3 * 64 * 4
