"""Lesson 07, "Should we keep what is large, or what is growing?": experiment, grid, drawings, exercises' checks."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from ... import zoo
from ...allocation import allocate
from ...calibration import Calibration
from ...core import Criterion, Group, Keep
from ...criteria import Mama, Random, magnitude, taylor
from ...granularity import weights
from ...layers import prunable
from ...masking import apply, expand
from ...measurement import evaluate
from ...movement import TopV, by_group, finetune, gradual
from ...recovery import train
from ..learn.claim import plain
from ..learn.exercise import call
from ..learn.stored_grid import Grid, Resumable, Run
from ..show.figure import COLOURS
from ..show.vector import INK

# The transfer: a network that knows the digits 0 to 4 learns 5 to 9, and is pruned meanwhile


HEAD = "fc3"  # the last layer: new for the new task, and never pruned
EPOCHS = 12  # on the first five digits
STEPS, BATCH = 400, 32  # on the last five
HEAD_LR, SCORES_LR = 1e-3, 1e-1  # of the new last layer and of the scores, whatever that of the weights is
ONCE = "one-shot |g w|"
WAYS = ("movement", "mask only", "magnitude", ONCE, "random", "MAMA's score", "net movement")


def half(last: bool) -> Any:
    """Digits 0 to 4 or, as classes 0 to 4 too, 5 to 9: .train, .valid and .test, a pair of tensors each."""
    data, parts = zoo.load("digits"), {}
    for split in ("train", "valid", "test"):
        images, labels = getattr(data, split).tensors
        chosen = (labels >= 5) == last
        parts[split] = images[chosen], labels[chosen] % 5
    return SimpleNamespace(**parts)


def pretrained(seed: int) -> nn.Module:
    """The course's MLP (LeNet-300-100) with five outputs, trained on digits 0 to 4."""
    model = zoo.mlp(classes=5, seed=seed)
    train(model, half(last=False).train, epochs=EPOCHS, seed=seed, progress=False)
    return model


def inner(model: nn.Module) -> list[Group]:
    """What is pruned: every single weight below the last layer."""
    return weights(model, exclude=[f"{HEAD}.weight"])


@dataclass(frozen=True)
class Transfer:
    """A network after fine-tuning, who stayed by layer and by which scores, and how well it then reads."""

    model: nn.Module
    accuracy: float
    keep: Keep
    scores: Mapping[str, Tensor]
    stayed: float = 1.0  # of the weights kept, the share that had been the largest before fine-tuning

    @property
    def density(self) -> float:
        """The share of the inner weights that is left."""
        entries = torch.cat([*self.keep.values()]) if self.keep else torch.ones(1)
        return float(entries.double().mean())


def transfer(before: nn.Module, way: str, left: float, lr: float, *, seed: int = 0, steps: int = STEPS) -> Transfer:
    """Fine-tune a copy on digits 5 to 9 with a new last layer, down to a share of its inner weights left.

    way: one of WAYS, or "dense". `lr` is that of all weights but the last layer's; "mask only" is movement with none.
    """
    model, data = copy.deepcopy(before), half(last=True)
    _new_head(model, seed)
    options: dict[str, Any] = {"steps": steps, "batch_size": BATCH, "lr_schedule": "linear", "seed": seed,
                               "progress": False}  # fmt: skip
    options["optimizer"] = lambda m: _rates(m, 0.0 if way == "mask only" else lr)
    groups, rule = inner(model), TopV(1 - left)
    keep: Keep = {}
    scores: Mapping[str, Tensor] = {}
    if way in ("movement", "mask only"):
        learned = finetune(model, data.train, groups, rule, **options)
        keep, scores = learned.pruned.keep, learned.scores
    elif way in ("dense", ONCE):
        keep = _once(model, data, groups, left, options) if way == ONCE else {}
        train(model, data.train, **options)
    else:
        criteria: dict[str, Criterion]
        criteria = {"magnitude": magnitude, "MAMA's score": Mama.of(before), "random": Random(seed),
                     "net movement": _net(before)}  # fmt: skip
        learned = gradual(model, data.train, groups, rule, criteria[way], **options)
        keep, scores = learned.pruned.keep, learned.scores
    accuracy = evaluate(model, data, "test").accuracy
    return Transfer(model, accuracy, keep, scores, _stayed(before, groups, keep) if keep else 1.0)


def _net(before: nn.Module) -> Criterion:
    """|w - w0|, the half of MAMA's score that is no magnitude."""
    start = {name: w.detach().clone() for name, w in prunable(before).items()}
    return lambda model, calib=None: {n: (w.detach() - start[n]).abs() for n, w in prunable(model).items()}


def _once(model: nn.Module, data: Any, groups: Sequence[Group], left: float, options: Mapping[str, Any]) -> Keep:
    """The new last layer learns alone, then |g w| over all of the new task decides, before any weight moves."""
    train(model, data.train, **{**options, "optimizer": lambda m: _rates(m, 0.0)})
    calib = Calibration.of(data.train, samples=len(data.train[1]))
    keep = allocate(taylor(model, calib), groups, 1 - left, "layer")
    apply(model, expand(model, groups, keep))
    return keep


def _new_head(model: nn.Module, seed: int) -> None:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model.get_submodule(HEAD).reset_parameters()  # type: ignore[operator]


def _rates(model: nn.Module, lr: float) -> Optimizer:
    """Three rates: the new head learns as one does, the scores as fast as they like, the weights at `lr`."""
    head, scores = list(model.get_submodule(HEAD).parameters()), list(by_group(model).values())
    apart = {id(p) for p in (*head, *scores)}
    rest = [p for p in model.parameters() if id(p) not in apart]
    rates = ((rest, lr), (head, HEAD_LR), (scores, SCORES_LR))
    return AdamW([{"params": p, "lr": rate} for p, rate in rates if p], weight_decay=0.0)


def _stayed(before: nn.Module, groups: Sequence[Group], keep: Keep) -> float:
    """How much of what is kept magnitude would have kept before the first step, at each layer's own count."""
    large = magnitude(before)
    both = kept = 0
    for group in groups:
        stays = keep[group.name]
        first = allocate(large, [group], 1 - float(stays.double().mean()), "layer")[group.name]
        both, kept = both + int((stays & first).sum()), kept + int(stays.sum())
    return both / kept


# The stored grid: five networks, every rate, number of steps and density


SEEDS = range(5)
TIMID, BOLD = 3e-5, 1e-2
RATES = (BOLD, 1e-3, 1e-4, TIMID)
LEFT = (0.15, 0.10, 0.05, 0.03)
LONG = round(STEPS * 1e-4 / TIMID)  # timid steps that can go as far as 400 of the next rate


def points() -> Iterator[Run]:
    """Every setting, for all five networks before the next one."""
    plan: list[tuple[str, float, Sequence[float], int]]
    plan = [(way, lr, LEFT, STEPS) for lr in RATES for way in ("movement", "magnitude")]
    plan += [("dense", lr, (1.0,), STEPS) for lr in RATES]
    plan += [(way, lr, LEFT, STEPS) for way in ("MAMA's score", "random") for lr in (BOLD, TIMID)]
    plan += [("mask only", TIMID, (0.05,), STEPS), (ONCE, TIMID, (0.05,), STEPS), ("magnitude", TIMID, (0.05,), LONG)]
    plan += [("net movement", TIMID, (0.05,), STEPS)]
    plan += [(way, TIMID, (0.8,), STEPS) for way in ("movement", "magnitude")]
    for way, lr, left, steps in plan:
        for share in left:
            yield from ({"network": seed, "way": way, "lr": lr, "steps": steps, "left": share} for seed in SEEDS)


def movement() -> Resumable:
    """Notebook 07: five networks of digits 0 to 4, fine-tuned on 5 to 9 and pruned meanwhile, by several scores."""
    return points(), _measured_point


def _measured_point(point: Run) -> Run:
    """One run."""
    start = time.process_time()
    network, way, left = point["network"], point["way"], point["left"]
    found = transfer(_network(network), way, left, point["lr"], seed=network, steps=point["steps"])
    return {
        "density": round(found.density, 4),
        "accuracy": round(found.accuracy, 4),
        "stayed": round(found.stayed, 4),
        "seconds": round(time.process_time() - start, 1),
    }


@cache
def _network(seed: int) -> nn.Module:
    return pretrained(seed)


GRIDS: dict[str, Grid] = {"movement": movement}


def found(runs: Sequence[Mapping[str, Any]], way: str, lr: float, left: Sequence[float], steps: int = STEPS,
          value: str = "accuracy") -> np.ndarray:  # fmt: skip
    """One value of a grid's runs as a table (networks, densities)."""
    by = {(r["network"], r["left"]): r[value] for r in runs if (r["way"], r["lr"], r["steps"]) == (way, lr, steps)}
    return np.array([[by[network, share] for share in left] for network in sorted({n for n, _ in by})])


# Drawings


def learned_scores(axes: Sequence[Axes], before: nn.Module, runs: Mapping[str, Transfer], layer: str) -> None:
    """A panel a run: each weight of a layer before fine-tuning against the score it learned, the kept ones marked."""
    weight = prunable(before)[layer].detach().flatten()
    for ax, (name, run) in zip(axes, runs.items(), strict=True):
        score, kept = run.scores[layer], run.keep[layer]
        style: dict[str, Any] = {"linestyle": "none", "rasterized": True, "marker": "o"}
        ax.plot(weight[~kept], score[~kept], color="#BBBBBB", markersize=1.5, label="removed", **style)
        ax.plot(weight[kept], score[kept], color=COLOURS[0], markersize=3, label="kept", **style)
        ax.axvline(0, color=INK, lw=0.8, ls="-", marker="")
        ax.set(xlabel="weight before fine-tuning", title=name)
    axes[0].set_ylabel("learned score")
    axes[0].legend(loc="lower right", markerscale=2)


# The checks of the exercises, whose texts stand in 07.toml


def check_read(answer: Any) -> str | None:
    """Four weights before and after: the two that magnitude keeps, and the two that movement keeps."""
    pair = list(answer) if isinstance(answer, (tuple, list)) else []
    if len(pair) != 2 or not all(isinstance(x, (str, tuple, list, set)) for x in pair):
        return 'give two texts of two letters each: `("magnitude keeps", "movement keeps")`, such as `("ab", "cd")`.'
    known = {
        ("ac", "bc"): None,
        ("bc", "ac"): "the other way round: first what is large, then what is growing.",
        ("ad", "bc"): "magnitude looks at the weight as it is now, after fine-tuning. `d` was large.",
        ("ac", "ac"): "that is magnitude twice. `a` is large, but it is on its way to zero.",
        ("ac", "ab"): "`c` went down as a number, but *away from zero*: it is growing. Look at the size.",
        ("ac", "ad"): "those two move most *towards* zero. Movement keeps what moves away from it.",
    }  # fmt: skip
    large, growing = ("".join(sorted(y for y in "".join(x).lower() if y.isalpha())) for x in pair)
    return known.get((large, growing), "not these. Write down the size of each, before and after; two sizes grow.")


def check_modify(answer: Any) -> str | None:
    """One step of the scores under the straight-through estimator, in several shapes, types and rates."""
    source = torch.Generator().manual_seed(0)
    for size, dtype, lr in (((3, 4), torch.float32, 0.1), ((7,), torch.float64, 0.5), ((2, 3, 3, 3), torch.float32, 2)):
        scores, weight, gradient = (torch.randn(size, generator=source, dtype=dtype) for _ in range(3))
        mask = torch.rand(size, generator=source) > 0.5
        result = plain(call(answer, scores.clone(), weight.clone(), gradient.clone(), mask.clone(), lr))
        message = _stepped(torch.as_tensor(result, dtype=dtype), scores, weight, gradient, mask, lr)
        if message:
            return message
    return None


def _stepped(result: Tensor, scores: Tensor, weight: Tensor, gradient: Tensor, mask: Tensor, lr: float) -> str | None:
    if result.shape != scores.shape:
        return "return a tensor of the scores' shape: the scores after the step."
    moved = gradient * weight
    wrong = (
        (scores - lr * moved * mask, "the mask holds the gradient back: a weight that is out can never return."),
        (scores + lr * moved, "uphill: a step *down* the loss subtracts the gradient."),
        (scores - lr * gradient, "that is the weights' own step. The score's gradient is dL/dW' times W."),
        (scores - lr * moved.abs(), "without its sign no score can ever rise."),
        (scores - moved, "you forgot the learning rate."),
    )
    if torch.allclose(result, scores - lr * moved, atol=1e-5):
        return None
    near = [message for value, message in wrong if torch.allclose(result, value, atol=1e-5)]
    hint = "a step is `scores - lr * gradient of the scores`, and that gradient is `gradient * weight`."
    return near[0] if near else hint


def check_decide(answer: Any) -> str | None:
    """Which control tells each rival: b, c, a."""
    letters = "".join(answer) if isinstance(answer, (list, tuple)) else answer
    if not isinstance(letters, str):
        return 'give three letters in the order of the rivals, such as `"abc"`.'
    letters = "".join(x for x in letters.lower() if x.isalpha())
    if letters == "bca":
        return None
    if len(letters) != 3:
        return "three rivals, so three letters: one run each, in their order."
    hints = (
        ("b", "for the first: if more steps do it as well, the run to make has more *steps*, at the same rate."),
        ("c", "for the second: if no weight has to move, the run to make lets none move."),
        ("a", "for the third: if looking once is enough, the run to make looks once."),
    )
    return next(text for given, (right, text) in zip(letters, hints, strict=True) if given != right)
