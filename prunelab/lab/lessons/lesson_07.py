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
from ...core import Criterion, Group
from ...criteria import Mama, Random, magnitude
from ...granularity import weights
from ...layers import prunable
from ...measurement import evaluate
from ...movement import Learned, Threshold, TopV, by_group, finetune, gradual
from ...recovery import train
from ..learn.exercise import call
from ..learn.stored_grid import Grid, Resumable, Run
from ..show.figure import COLOURS
from ..show.measuring import measured
from ..show.vector import INK

# The transfer: a network that knows the digits 0 to 4 learns 5 to 9, and is pruned meanwhile


HEAD = "fc3"  # the last layer: new for the new task, and never pruned
EPOCHS = 12  # on the first five digits
STEPS, BATCH = 400, 32  # on the last five
HEAD_LR, SCORES_LR = 1e-3, 1e-1  # of the new last layer and of the scores, whatever that of the weights is
WAYS = ("movement", "magnitude", "MAMA's score", "random")


def half(last: bool) -> Any:
    """Digits 0 to 4 or, as classes 0 to 4 too, 5 to 9: .train, .valid and .test, a pair of tensors each."""
    data = zoo.load("digits")
    return SimpleNamespace(**{s: _half(getattr(data, s).tensors, last) for s in ("train", "valid", "test")})


def _half(split: tuple[Tensor, ...], last: bool) -> tuple[Tensor, Tensor]:
    images, labels = split
    chosen = (labels >= 5) == last
    return images[chosen], labels[chosen] % 5


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
    """A network after fine-tuning, how it was pruned meanwhile (None: not at all), and how well it then reads."""

    model: nn.Module
    learned: Learned | None
    accuracy: float
    stayed: float  # of the weights kept, the share that had been the largest before fine-tuning

    @property
    def density(self) -> float:
        """The share of the inner weights that is left."""
        return 1 - self.learned.pruned.report.sparsity if self.learned else 1.0


def transfer(before: nn.Module, way: str, left: float, lr: float, *, seed: int = 0, steps: int = STEPS) -> Transfer:
    """Fine-tune a copy on digits 5 to 9 with a new last layer, down to a share of its inner weights left.

    way: "movement", "soft movement" (then `left` is the penalty, and how many are left is learned), one of the other
    WAYS, by whose score the same schedule prunes, or "dense". `lr` is that of all weights but the last layer's.
    """
    model, data = copy.deepcopy(before), half(last=True)
    _new_head(model, seed)
    options: dict[str, Any] = {"steps": steps, "batch_size": BATCH, "lr_schedule": "linear", "seed": seed,
                               "progress": False, "optimizer": lambda m: _rates(m, lr)}  # fmt: skip
    if way == "dense":
        train(model, data.train, **options)
        return Transfer(model, None, evaluate(model, data, "test").accuracy, 1.0)
    groups = inner(model)
    if way in ("movement", "soft movement"):
        rule = TopV(1 - left) if way == "movement" else Threshold(left)
        learned = finetune(model, data.train, groups, rule, **options)
    else:
        criteria: dict[str, Criterion]
        criteria = {"magnitude": magnitude, "MAMA's score": Mama.of(before), "random": Random(seed)}
        learned = gradual(model, data.train, groups, TopV(1 - left), criteria[way], **options)
    return Transfer(model, learned, evaluate(model, data, "test").accuracy, _stayed(before, learned))


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


def _stayed(before: nn.Module, learned: Learned) -> float:
    """How much of what is kept magnitude would have kept before the first step, at each layer's own count."""
    large = magnitude(before)
    both = kept = 0
    for group in learned.pruned.groups:
        stays = learned.pruned.keep[group.name]
        share = 1 - float(stays.double().mean())
        first = allocate(large, [group], share, "layer")[group.name]
        both, kept = both + int((stays & first).sum()), kept + int(stays.sum())
    return both / kept


def scatter(before: nn.Module, after: Transfer, layer: str = "fc2.weight") -> dict[str, Tensor]:
    """A layer's weights before and after fine-tuning, and which of them are kept: three flat tensors."""
    assert after.learned is not None
    return {
        "before": prunable(before)[layer].detach().flatten(),
        "after": prunable(after.model)[layer].detach().flatten(),
        "kept": after.learned.pruned.keep[layer],
    }


def tables(runs: Sequence[Mapping[str, Any]], value: str) -> dict[float, dict[str, np.ndarray]]:
    """A grid's runs as tables: learning rate -> way -> (networks, densities), the densities falling."""
    networks = sorted({r["network"] for r in runs})
    found = {(r["lr"], r["way"], r["network"], r["left"]): r[value] for r in runs if "left" in r}
    rates = sorted({r["lr"] for r in runs}, reverse=True)
    return {lr: {way: _table(found, lr, way, networks) for way in dict.fromkeys(k[1] for k in found if k[0] == lr)}
            for lr in rates}  # fmt: skip


def _table(found: Mapping[tuple[Any, ...], float], lr: float, way: str, networks: Sequence[int]) -> np.ndarray:
    left = sorted({k[3] for k in found if k[:2] == (lr, way)}, reverse=True)
    return np.array([[found[lr, way, network, share] for share in left] for network in networks])


def softly(runs: Sequence[Mapping[str, Any]], lr: float) -> tuple[list[float], list[float]]:
    """The densities that soft movement found at a learning rate, and the accuracies there, a run each."""
    chosen = [r for r in runs if "penalty" in r and r["lr"] == lr]
    return [r["density"] for r in chosen], [r["accuracy"] for r in chosen]


# The stored grid: movement against magnitude, over the learning rate of the weights and the density left


SEEDS = range(5)
RATES = (1e-2, 1e-3, 1e-4, 3e-5)
LEFT = (0.15, 0.10, 0.05, 0.03)
ENDS = (RATES[0], RATES[-1])  # where the other scores run too
OTHERS = ("MAMA's score", "random")
PENALTIES = (30.0, 100.0, 200.0)  # of soft movement, which learns how many are left


def points() -> Iterator[Run]:
    """Every setting, a whole network after another, so that a part of the grid is a fair one."""
    for seed in SEEDS:
        for lr in RATES:
            yield {"network": seed, "way": "dense", "lr": lr, "left": 1.0}
            for left in LEFT:
                yield from ({"network": seed, "way": way, "lr": lr, "left": left} for way in ("movement", "magnitude"))
    for seed in SEEDS:
        for lr in ENDS:
            for left in LEFT:
                yield from ({"network": seed, "way": way, "lr": lr, "left": left} for way in OTHERS)
            for penalty in PENALTIES:
                yield {"network": seed, "way": "soft movement", "lr": lr, "penalty": penalty}


def movement() -> Resumable:
    """Notebook 07: five networks of digits 0 to 4, fine-tuned on 5 to 9 and pruned meanwhile, by several scores."""
    return points(), _measured_point


def _measured_point(point: Run) -> Run:
    """One run."""
    start = time.perf_counter()
    amount = point["penalty"] if "penalty" in point else point["left"]
    found = transfer(_network(point["network"]), point["way"], amount, point["lr"], seed=point["network"])
    return {
        "density": round(found.density, 4),
        "accuracy": round(found.accuracy, 4),
        "stayed": round(found.stayed, 4),
        "seconds": round(time.perf_counter() - start, 1),
    }


@cache
def _network(seed: int) -> nn.Module:
    return pretrained(seed)


GRIDS: dict[str, Grid] = {"movement": movement}


# Drawings: who is kept, where movement wins, and the race


ROWS = {"movement": "movement", "magnitude": "magnitude", "dense": "not pruned"}


def kept_of(axes: Sequence[Axes], found: Mapping[str, Mapping[str, Tensor]]) -> None:
    """A panel a method: each weight by its value before and after fine-tuning, the kept ones marked."""
    for ax, (name, layer) in zip(axes, found.items(), strict=True):
        kept = layer["kept"]
        gone_x, gone_y = layer["before"][~kept], layer["after"][~kept]
        kept_x, kept_y = layer["before"][kept], layer["after"][kept]
        # Thousands of points are a picture: as shapes they weigh six megabytes.
        ax.plot(
            gone_x,
            gone_y,
            linestyle="none",
            color="#BBBBBB",
            rasterized=True,
            marker=".",
            markersize=2,
            label="removed",
        )
        ax.plot(
            kept_x, kept_y, linestyle="none", color=COLOURS[0], rasterized=True, marker="o", markersize=3, label="kept"
        )
        ax.axhline(0, color=INK, lw=0.8, ls="-", marker="")
        ax.axvline(0, color=INK, lw=0.8, ls="-", marker="")
        ax.set(xlabel="weight before fine-tuning", title=name)
    axes[0].set_ylabel("weight after")
    axes[0].legend(loc="upper left", markerscale=2.5)


def advantage(ax: Axes, rates: Sequence[float], left: Sequence[float], ahead: np.ndarray, low: np.ndarray,
              high: np.ndarray) -> None:  # fmt: skip
    """A map (rates, left) of how many points one method is ahead; what an interval leaves open is marked by a ring."""
    most = float(np.abs(ahead).max())
    ax.imshow(100 * ahead, cmap="PuOr", vmin=-100 * most, vmax=100 * most, aspect="auto")
    for row, column in np.ndindex(ahead.shape):
        value, open_ = 100 * ahead[row, column], low[row, column] <= 0 <= high[row, column]
        dark = abs(ahead[row, column]) > 0.6 * most
        ax.text(column, row, f"{value:+.0f}" + (" ○" if open_ else ""), ha="center", va="center",
                color="white" if dark else "black", fontsize=12)  # fmt: skip
    ax.set_xticks(range(len(left)), [f"{x:.0%}" for x in left])
    ax.set_yticks(range(len(rates)), [f"{x:.5f}".rstrip("0") for x in rates])
    ax.set(xlabel="weights left", ylabel="learning rate of the weights")
    ax.grid(False)


def race(axes: Sequence[Axes], left: Sequence[float], panels: Mapping[str, Mapping[str, np.ndarray]],
         soft: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> None:  # fmt: skip
    """A panel a learning rate: accuracy against what is left, (networks, points) a method, as mean and range.

    `soft` has single runs, (densities, accuracies) by panel: what is left there nobody can choose.
    """
    for ax, (title, runs) in zip(axes, panels.items(), strict=True):
        for name, table in runs.items():
            (line,) = ax.plot(left, table.mean(0), label=name)
            ax.fill_between(left, table.min(0), table.max(0), color=line.get_color(), alpha=0.18, linewidth=0)
        ax.plot(*soft[title], linestyle="none", marker="x", color=INK, markersize=5, label="soft movement, each run")
        ax.set_xscale("log")
        ax.invert_xaxis()
        ax.set_xticks(list(left), [f"{x:.0%}" for x in left])
        ax.minorticks_off()
        ax.yaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
        ax.set(xlabel="weights left", title=title, ylim=(0.15, 1.0))
    axes[0].set_ylabel("test accuracy on the new digits")
    axes[-1].legend(loc="lower left", fontsize=9)


def stayed(ax: Axes, rates: Sequence[float], runs: Mapping[str, np.ndarray]) -> None:
    """Of the weights a method keeps, the share that was largest before fine-tuning, against the learning rate."""
    for name, table in runs.items():
        (line,) = ax.plot(rates, table.mean(0), label=name)
        ax.fill_between(rates, table.min(0), table.max(0), color=line.get_color(), alpha=0.2, linewidth=0)
    ax.set(xscale="log", ylim=(0, 1), xlabel="learning rate of the weights", ylabel="kept that were largest before")
    ax.set_xticks(list(rates), [f"{x:.5f}".rstrip("0") for x in rates])
    ax.minorticks_off()
    ax.yaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
    ax.legend()


def field(ax: Axes, runs: Mapping[str, np.ndarray], at: int) -> None:
    """One field of the map: a row a method, a dot a network, a bar the mean."""
    shown = _field(runs, at)
    for row, found in enumerate(shown.values()):
        ax.barh(row, float(found.mean()), color=COLOURS[row], alpha=0.35, height=0.6)
        ax.plot(found, [row] * len(found), linestyle="none", marker="o", color=COLOURS[row], markersize=6)
        ax.text(1.02, row, f"{found.mean():.0%}", va="center", fontweight="bold")
    ax.set_yticks(range(len(shown)), [ROWS[name] for name in shown])
    ax.invert_yaxis()
    ax.xaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
    ax.set(xlabel="new digits read (test)", xlim=(0, 1.1))
    ax.grid(axis="y", visible=False)


def means(runs: Mapping[str, np.ndarray], at: int) -> dict[str, str]:
    """`field` in words: the mean of each of its rows."""
    return {ROWS[name]: measured(found.mean(), "%") for name, found in _field(runs, at).items()}


def _field(runs: Mapping[str, np.ndarray], at: int) -> dict[str, np.ndarray]:
    """The networks' values at one density; the dense network has one column only."""
    return {name: runs[name][:, at if runs[name].shape[1] > 1 else 0] for name in ROWS if name in runs}


# The checks of the exercises, whose texts stand in 07.toml


def check_read(answer: Any) -> str | None:
    """Four weights before and after: the two that magnitude keeps, and the two that movement keeps."""
    if not isinstance(answer, (tuple, list)) or len(answer) != 2 or not all(isinstance(x, str) for x in answer):
        return 'give two texts of two letters each: `("magnitude keeps", "movement keeps")`, such as `("ab", "cd")`.'
    known = {
        ("ac", "bc"): None,
        ("bc", "ac"): "the other way round: first what is large, then what is growing.",
        ("ad", "bc"): "magnitude looks at the weight as it is now, after fine-tuning. `d` was large.",
        ("ac", "ac"): "that is magnitude twice. `a` is large, but it is on its way to zero.",
        ("ac", "ab"): "`c` went down as a number, but *away from zero*: it is growing. Look at the size.",
        ("ac", "ad"): "those two move most *towards* zero. Movement keeps what moves away from it.",
    }  # fmt: skip
    large, growing = ("".join(sorted(x)) for x in answer)
    return known.get((large, growing), "not these. Write down the size of each, before and after; two sizes grow.")


def check_modify(answer: Any) -> str | None:
    """One step of the scores under the straight-through estimator."""
    source = torch.Generator().manual_seed(0)
    scores, weight, gradient = (torch.randn(3, 4, generator=source) for _ in range(3))
    mask = torch.rand(3, 4, generator=source) > 0.5
    found = call(answer, scores.clone(), weight.clone(), gradient.clone(), mask.clone(), 0.1)
    if not torch.is_tensor(found) or found.shape != scores.shape:
        return "return a tensor of the scores' shape: the scores after the step."
    moved = gradient * weight
    wrong = (
        (scores - 0.1 * moved * mask, "the mask still holds the gradient back: a weight that is out can never return."),
        (scores + 0.1 * moved, "uphill: a step *down* the loss subtracts the gradient."),
        (scores - 0.1 * gradient, "that is the weights' own step. The score's gradient is dL/dW' times W."),
        (scores - 0.1 * moved.abs(), "without its sign no score can ever rise."),
        (scores - moved, "you forgot the learning rate."),
    )
    if torch.allclose(found, scores - 0.1 * moved):
        return None
    near = [message for value, message in wrong if torch.allclose(found, value)]
    return (
        near[0]
        if near
        else "a step is `scores - lr * gradient of the scores`, and that gradient is `gradient * weight`."
    )


WEIGHT = torch.tensor([[4.0, 1.0, -2.0, 0.5], [8.0, 0.5, 0.5, 1.0]])
MASK = torch.tensor([[True, False, True, False], [True, False, False, False]])


def check_make(answer: Any) -> str | None:
    """What is pruned, shared out among the kept of its row."""
    weight, mask = WEIGHT.clone(), MASK.clone()
    found = call(answer, weight.clone(), mask)
    if not torch.is_tensor(found) or found.shape != weight.shape:
        return "return a tensor of the weight's shape."
    removed = weight.masked_fill(mask, 0).sum(1, keepdim=True)
    count = mask.sum(1, keepdim=True)
    wrong = (
        (weight * mask, "nothing moved. If you zeroed first and summed then, you summed zeros: that is the very slip "
                        "of the published code."),
        ((weight + removed / count), "the pruned weights are still there: put zeros where the mask is False."),
        ((weight + removed) * mask, "every heir got the *whole* of it. Divide it among them."),
        ((weight + removed / 4) * mask, "you divided by all weights of the row; only the kept ones inherit."),
        ((weight + weight[~mask].sum() / mask.sum()) * mask, "the layer keeps its sum, but the rows do not: each row "
                                                             "for itself."),
    )  # fmt: skip
    if torch.allclose(found, (weight + removed / count) * mask):
        return None
    near = [message for value, message in wrong if torch.allclose(found, value)]
    return near[0] if near else "check one row by hand: its sum must be the same before and after."
