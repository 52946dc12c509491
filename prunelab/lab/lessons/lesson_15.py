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
from ...measurement.evaluation import mean_interval
from ...recovery import train
from ...surgery import shrink
from ..learn.claim import plain
from ..learn.exercise import call
from ..learn.stored_grid import Grid, Resumable, Run, grid
from ..show.figure import COLOURS
from ..show.vector import INK
from .llamas import judged, text_for
from .questions import answered, questions

# Ways to lose as many parameters as some blocks have


def loudness(model: nn.Module, calib: Calibration) -> Scores:
    """The norm of what each weight is multiplied with, over all tokens, whatever the weight is."""
    weights = prunable(model)
    return {name: x.expand(weights[name].shape) for name, x in input_norms(model, calib).items()}


RULES: dict[str, Any] = {
    "influence": BlockInfluence(), "magnitude": magnitude, "Wanda": wanda, "Taylor": taylor, "loudness": loudness,
    "random": random,
}  # fmt: skip
AT_HEADS = {"heads": "Taylor", "neurons": "Taylor", "blocks": "influence"}
BEST = {"neurons": ("loudness", "layer"), "blocks": ("influence", "global"), "width": ("loudness", "layer")}
CONTROLS = {
    "the quietest, no weights asked": ("loudness", "layer"), "Taylor, within each block": ("Taylor", "layer"),
    "Taylor, all blocks compared": ("Taylor", "global"), "Wanda": ("Wanda", "layer"),
    "the loudest 1 % and no others": ("Taylor", "1 % alone"),
    "Taylor, but the loudest 1 % go": ("Taylor", "layer, 1 % go"),
    "at random": ("random", "layer"), "at random, but the loudest 1 % stay": ("random", "layer, 1 % stay"),
    "at random, but the loudest 20 % stay": ("random", "layer, 20 % stay"), "magnitude": ("magnitude", "layer"),
    "magnitude, but the loudest 1 % stay": ("magnitude", "layer, 1 % stay"),
    "magnitude, but the loudest 20 % stay": ("magnitude", "layer, 20 % stay"),
    "magnitude, all blocks compared": ("magnitude", "global"),
}  # fmt: skip
PACK = 8  # channels: widths are multiples of it


def groups_of(model: nn.Module, way: str) -> Sequence[Group]:
    """The groups of "blocks", "neurons", "heads" (a key-value head and its three query heads) or "width"."""
    example = torch.arange(PACK)[None] if way == "width" else None
    return granularity_named("layers" if way == "blocks" else way)(model, example)


def share_of(model: Any, way: str, like: int) -> float:
    """The share of a way's units that has as many parameters as `like` blocks have."""
    blocks, hidden = model.model.layers, model.config.hidden_size
    parts = (model, blocks[0], blocks[0].mlp, blocks[0].self_attn)
    whole, block, mlp, attention = (sum(p.numel() for p in part.parameters()) for part in parts)
    if way == "width":
        left = hidden - like * block / (whole / hidden)
        return 1 - round(left / PACK) * PACK / hidden
    return like / len(blocks) * block / {"blocks": block, "neurons": mlp, "heads": attention}[way]


def keep_of(groups: Sequence[Group], scores: Scores, share: float, scope: str, loud: Scores) -> Keep:
    """What stays of a way's groups, the lowest scores gone.

    Of "layer, 20 % stay" the loudest fifth of a block's neurons stays whatever it scores, of "layer, 1 % go" the
    loudest hundredth goes; as many leave as of "layer". Of "1 % alone" nothing else goes.
    """
    if "%" not in scope:
        return allocate(scores, groups, share, scope)
    values, some = unit_scores(scores, groups), int(scope.removeprefix("layer, ").split()[0]) / 100
    for name, value in values.items():
        count = max(round(some * len(value)), 1)
        share = count / len(value) if "alone" in scope else share
        value[loud[f"{name}.down_proj.weight"][0].topk(count).indices] = math.inf if "stay" in scope else -math.inf
    return {n: v >= v.topk(len(v) - round(share * len(v))).values[-1] for n, v in values.items()}


def cut(
    model: nn.Module, way: str, like: int, scores: Scores, scope: str = "", loud: Scores | None = None
) -> nn.Module:
    """The model without as many parameters as `like` blocks have, by a way; really gone.

    Without a scope it is the plan of the stored students: the same scores give the same network.
    """
    groups, (scope, unscaled, _) = groups_of(model, way), (scope or BEST[way][1]).partition(", unscaled")
    keep = keep_of(groups, scores, share_of(model, way, like), scope, loud or {})
    return smaller(model, groups, keep, scaled=not unscaled)


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


STEPS = 64  # with a piece of a page each
TOKENS = 128  # of a page
COURSE = (8, 16, 32)  # steps after which it is looked at
RATE = 3e-4  # at its highest
Look = Callable[[int, int], None]


def distil(
    student: nn.Module, head: nn.Module, ids: Tensor, heard: Tensor, look: Look | None = None, seed: int = 0
) -> list[float]:
    """Train all of a student to say what the teacher says: KL(teacher || student), nats a token. The losses, in order.

    `heard` (pages, tokens, hidden) is what the teacher's head hears on these pages; each is a step, in the order
    that `seed` draws.
    """

    def apart(logits: Tensor, hidden: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = head(hidden).log_softmax(-1)
        return F.kl_div(logits.log_softmax(-1), wanted, reduction="sum", log_target=True) / hidden.shape[:2].numel()

    adam = AdamW(student.parameters(), lr=RATE, weight_decay=0.0, fused=True)
    settings: dict[str, Any] = {"steps": len(ids), "lr": RATE, "batch_size": 1, "seed": seed, "progress": False}
    return train(student, (ids, heard), loss=apart, optimizer=lambda _: adam, on_step=look, **settings).losses


# The stored grid: the Llama made smaller by several ways, before and after the distillation


POINT = ("way", "rule", "scope", "like", "steps", "seed")
SIZES = (8, 15)  # blocks' worth of parameters: 21 and 39 % of the Llama
HEADS = 3  # blocks' worth where heads are compared: all attentions together have less than eight blocks have
SOME, TESTED = 4, 8  # pages to calibrate on, and to test the controls and code on; to test the race on
EVERY = 6  # of the pages to train on
ON_CODE = ", on code"  # a rule that looks at pages of source code, not of prose


def shapes_grid() -> Resumable:
    """Notebook 15: as many parameters out of the Llama by blocks, neurons, heads and width, then distilled."""
    llama = zoo.llama()
    text, code, asked = text_for(llama), text_for(llama, "code"), questions()
    calib, test = text.some(SOME), text.test[:TESTED]
    loud = loudness(llama.model, calib)
    ids = text.train[::EVERY][:STEPS, :TOKENS]
    taught: list[Tensor] = []
    scores: dict[str, Scores] = {}
    calibs = {"": calib, ON_CODE: code.some(SOME)}

    def made(way: str, rule: str, scope: str, like: int) -> nn.Module:
        if rule not in scores:
            name, mark, _ = rule.partition(ON_CODE)
            scores[rule] = RULES[name](llama.model, calibs[mark])
        return cut(llama.model, way, like, scores[rule], scope, loud)

    def distilled(model: nn.Module, seed: int) -> Run:
        if not taught:
            with torch.no_grad():
                taught.append(torch.cat([llama.model.model(one).last_hidden_state for one in ids.split(1)]))
        course = []

        def look(done: int, _: int) -> None:
            if done in COURSE:
                course.append([done, perplexity(model, test).value])

        losses = distil(model, llama.model.lm_head, ids, taught[0], look, seed)
        return {"course": course, "kl": [round(x, 4) for x in losses]}

    def run(point: Run) -> Run:
        *how, steps, seed = (point[key] for key in POINT)
        model = made(*how) if point["like"] else llama.model
        course = distilled(model, seed) if steps else {}
        chosen_by = (point["rule"].removesuffix(ON_CODE), point["scope"])
        main = point["like"] != HEADS and BEST.get(point["way"], ("", "")) == chosen_by
        main = main or not point["like"]
        found = judged(model, llama, test if main else test[:SOME], writes=main)
        if main:
            other = perplexity(model, code.test[:SOME])
            found |= {"code": other.value, "code losses": [round(x, 5) for x in other.losses]}
            found |= {"answers": answered(model, llama.tokenizer, asked)}
        if not point["like"]:
            found |= {"blind": answered(model, llama.tokenizer, asked, "The answer is")}
        return found | course

    return _points(), run


def _points() -> list[Run]:
    """The mains at both sizes, before and after, once in another order of the pieces and once chosen on code.

    Then heads, other rules, and what the loudest neurons alone do.
    """
    points: list[tuple[Any, ...]] = [("whole", "", "", 0, 0, 0)]
    mains = ((8, 0, 0), (8, STEPS, 0), (15, 0, 0), (8, STEPS, 1), (15, STEPS, 0))
    points += [(way, *rule, *main) for main in mains for way, rule in BEST.items()]
    points += [(way, rule + ON_CODE, scope, 8, 0, 0) for way, (rule, scope) in BEST.items()]
    points += [("neurons", *how, 8, 0, 0) for how in CONTROLS.values() if how != BEST["neurons"]]
    points += [("width", "loudness", "layer, unscaled", 8, 0, 0)]
    points += [(way, rule, "global", HEADS, 0, 0) for way, rule in AT_HEADS.items()]
    return [dict(zip(POINT, p, strict=True)) for p in points]


GRIDS: dict[str, Grid] = {"llama-shapes": shapes_grid}


def stored() -> dict[tuple[str, str, str, int, bool, int], Run]:
    """The runs of the grid by way, rule, scope, blocks' worth, whether they are distilled, and the order's seed."""
    runs = grid("llama-shapes")
    return {(r["way"], r["rule"], r["scope"], r["like"], r["steps"] > 0, r["seed"]): r for r in runs}


def mains(like: int, *, seed: int = 0) -> dict[str, list[Run]]:
    """Of each way, at a size, the run before the distillation and the one after it, in an order of the pieces."""
    runs = stored()
    return {way: [runs[way, *rule, like, False, 0], runs[way, *rule, like, True, seed]] for way, rule in BEST.items()}


def chosen_on_code() -> dict[str, Run]:
    """Of each way, cut, the run whose parts were chosen on pages of source code."""
    runs = stored()
    return {way: runs[way, rule + ON_CODE, scope, 8, False, 0] for way, (rule, scope) in BEST.items()}


def controls() -> dict[str, float]:
    """Perplexity on the first four pages, 36 % of the neurons gone by each of the rules."""
    runs = [(name, stored()["neurons", *how, 8, False, 0]["losses"][:SOME]) for name, how in CONTROLS.items()]
    return {name: math.exp(sum(losses) / SOME) for name, losses in runs}


def verdicts(one: Run, other: Run) -> list[str]:
    """Which way of two is ahead on prose, on code and on each kind of question: pages paired, and questions.

    "cannot tell" where the 95 % interval of the mean difference holds zero.
    """
    pairs: list[Any] = [zip(other[key], one[key], strict=True) for key in ("losses", "code losses")]
    pairs += [zip(map(int, right), map(int, other["answers"][k]), strict=True) for k, right in one["answers"].items()]
    found = []
    for pair in pairs:
        _, low, high = mean_interval([a - b for a, b in pair])
        found.append(one["way"] if low > 0 else other["way"] if high < 0 else "cannot tell")
    return found


def shares(run: Run) -> list[float]:
    """The shares of facts, sums and verb forms that a run has right."""
    return [right.count("1") / len(right) for right in run["answers"].values()]


# Drawings


def judges(axes: Sequence[Axes], whole: Run) -> None:
    """Perplexity over the steps of the distillation, a line a way; and what each has right, cut and distilled."""
    for i, ((way, (bare, run)), colour, marker) in enumerate(zip(mains(8).items(), COLOURS, "os^", strict=False)):
        points = [[0, bare["perplexity"]], *run["course"], [STEPS, run["perplexity"]]]
        axes[0].plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=9, lw=2.5, label=way)
        for j, pair in enumerate(zip(shares(bare), shares(run), strict=True)):
            place = [4 * j + i, 4 * j + i + 0.5]
            axes[1].plot(place, [100 * x for x in pair], color=colour, marker=marker, markersize=9, lw=2.5)
    axes[0].axhline(whole["perplexity"], color=INK, lw=1, ls="--", marker="", label="the whole Llama")
    for j, share in enumerate(shares(whole)):
        axes[1].plot([4 * j - 0.3, 4 * j + 2.8], [100 * share] * 2, color=INK, lw=1, ls="--", marker="")
    axes[0].set(yscale="log", xlabel="steps of distillation", ylabel="perplexity: lower is better")
    axes[0].set_xticks([0, *COURSE, STEPS])
    axes[0].legend(loc="upper right")
    axes[1].set(ylabel="% right, cut and distilled", ylim=(0, 102))
    axes[1].set_xticks([1.25, 5.25, 9.25], ["facts", "sums", "verb forms"])


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
    other = "parameters that leave with the blocks, over the MLPs, over the parameters of a neuron."
    near = (message for message, rule in [(None, _neurons), *WRONG.items()] if _near(found, rule))
    return next(near, other)


def _near(found: Sequence[float], wanted: Callable[..., float]) -> bool:
    return all(abs(x - wanted(*config)) <= 1 for x, config in zip(found, CONFIGS, strict=True))


ROOM, CONTEXT = 1.45e9, 24_000  # bytes, tokens


def check_ship(answer: Any) -> str | None:
    """Of ways and sizes: the lowest perplexity among those whose weights and cache fit."""
    given = plain(answer)
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        return 'give a way and how many blocks\' worth leave, such as `("width", 15)`.'
    way, like = str(given[0]).strip().lower(), plain(given[1])
    if way not in BEST or like not in SIZES:
        return f"the ways are {', '.join(BEST)}, the sizes {' and '.join(map(str, SIZES))}."
    needs = {(w, k): _bytes(w, k, pair[-1]) for k in SIZES for w, pair in mains(k).items()}
    if needs[way, like] > ROOM:
        needed = f"{way} at {like} needs {needs[way, like] / 1e9:.2f} GB: the cache counts *blocks*, and no neuron"
        return f"{needed} and no channel that leaves makes it smaller."
    fits = {key: mains(key[1])[key[0]][-1]["perplexity"] for key, need in needs.items() if need <= ROOM}
    if fits[way, like] > min(fits.values()):
        return f"it fits, with a perplexity of {fits[way, like]:.0f}; another one that fits has a lower one."
    return None


def _bytes(way: str, like: int, run: Run) -> float:
    """Weights, and keys and values of 3 heads of 64 numbers for each token in each block that is left: float32."""
    return 4 * run["parameters"] + CONTEXT * (30 - like * (way == "blocks")) * 2 * 3 * 64 * 4
