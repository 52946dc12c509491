"""Lesson 11, "What did it forget?": its grid, drawings and exercises' checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F

from ... import zoo
from ...pipeline import Recipe, prune
from ...recovery import finetune, train
from ..learn.claim import plain
from ..learn.exercise import call
from ..learn.stored_grid import Grid, Resumable, Run
from ..show.figure import COLOURS, SHADES
from ..show.vector import FAINT, INK
from .pruned_networks import CNNS

# The stored grid: which test digits are read by five networks, dense, pruned, and small


LEVELS = {"70 %": 0.7, "90 %": 0.9, "95 %": 0.95}
KINDS = ("dense", "trained on", *LEVELS, "small dense")
EPOCHS = 2  # of retraining; the dense network that is trained on has as many, the small one 4 before them
SMALL = 10  # filters of the small network's first layers: 8,340 parameters, about as many as 90 % sparse has left
TILTS = (0.0, 0.45, 0.8)  # radians, to either side; the training pictures end at 0.5
NOISE = 0.3  # standard deviation of noise that no training picture had, on top of its own 0.15
BINS = 10
Reads = dict[str, np.ndarray]


def forgotten_grid() -> Resumable:
    """Notebook 11: five networks, dense, trained on, pruned and retrained, and small: which test digits are read."""
    return [{"network": name, "kind": kind} for name in CNNS for kind in KINDS], forgotten_run


def forgotten_run(point: Run) -> Run:
    """What one of the thirty networks reads: the test digits as bits, its confidence, at tilts and under noise."""
    data, model = zoo.load("digits"), made(point["network"], point["kind"])
    images, labels = data.test.tensors
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)) * NOISE
    sure, right = judged(model, images, labels)
    noisy = judged(model, images + noise, labels)
    tilts = {f"{tilt:g}": float(judged(model, *tilted(data, tilt))[1].float().mean()) for tilt in TILTS}
    return {
        "parameters": sum(int(p.count_nonzero()) for p in model.parameters()),
        "right": bits(right),
        "bins": binned(sure, right),
        "noisy": float(noisy[1].float().mean()),
        "noisy_bins": binned(*noisy),
        "tilts": tilts,
    }


def made(name: str, kind: str) -> nn.Module:
    """A network of the grid: a checkpoint, the same trained on or pruned and retrained, or a small one from nothing."""
    data, seed = zoo.load("digits"), CNNS.index(name)
    if kind == "small dense":
        model = zoo.cnn(width=SMALL, seed=seed)
        train(model, data.train, epochs=4 + EPOCHS, seed=seed, progress=False)
        return model.eval()
    model = zoo.checkpoint(name)
    if kind in LEVELS:
        prune(model, Recipe(sparsity=LEVELS[kind]))
    if kind != "dense":
        finetune(model, data.train, epochs=EPOCHS, seed=seed, progress=False)
    return model.eval()


def tilted(data: zoo.Data, tilt: float) -> tuple[Tensor, Tensor]:
    """Every test scan turned by so many radians to the left and to the right, with the data set's noise."""
    scans, labels = zoo.scans()
    own = data.origin["test"][: data.origin["test"].unique().numel()]
    dice = torch.Generator().manual_seed(round(100 * tilt))
    turned = []
    for angle in (tilt, -tilt):
        turn = torch.tensor([[np.cos(angle), -np.sin(angle), 0.0], [np.sin(angle), np.cos(angle), 0.0]]) / 0.85
        grid = F.affine_grid(turn.float().expand(len(own), 2, 3), [len(own), 1, 16, 16], align_corners=False)
        plain = F.grid_sample(scans[own][:, None], grid, align_corners=False)
        turned.append(plain + 0.15 * torch.randn(plain.shape, generator=dice))
    return torch.cat(turned), labels[own].repeat(2)


def judged(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """How sure a model is of what it reads, (n,) from 0 to 1, and whether that is right, (n,)."""
    with torch.no_grad():
        sure, read = torch.cat([model(some) for some in images.split(250)]).softmax(1).max(1)
    return sure, read == labels


def binned(sure: Tensor, right: Tensor) -> list[list[float]]:
    """Of each tenth of confidence: pictures, the sum of their confidences, how many are right."""
    where = (sure * BINS).long().clamp(max=BINS - 1)
    return [[int((where == b).sum()), float(sure[where == b].sum()), int(right[where == b].sum())] for b in range(BINS)]


def bits(right: Tensor) -> str:
    """Yes or no for each picture as hexadecimal digits, four pictures a digit."""
    return np.packbits(right.numpy()).tobytes().hex()


def unpacked(run: Run) -> np.ndarray:
    """`bits` undone: (pictures,) of bool."""
    count = sum(pictures for pictures, *_ in run["bins"])
    return np.unpackbits(np.frombuffer(bytes.fromhex(run["right"]), dtype=np.uint8))[:count].astype(bool)


def who_reads(runs: Sequence[Run]) -> Reads:
    """Which of the test pictures each network reads: kind -> (networks, pictures) of bool."""
    kinds = dict.fromkeys(run["kind"] for run in runs)
    return {kind: np.stack([unpacked(run) for run in runs if run["kind"] == kind]) for kind in kinds}


GRIDS: dict[str, Grid] = {"forgotten": forgotten_grid}


# What the notebook measures on the grid


def paid(reads: Reads, kind: str, labels: Tensor, scans: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Points that each class pays, mean of five networks, (10,), and the standard error over its scans, (10,)."""
    loss, means, errors = (reads["trained on"].astype(float) - reads[kind]).mean(0), [], []
    for digit in range(10):
        own = labels.numpy() == digit
        by_scan = [loss[scans.numpy() == scan].mean() for scan in scans.unique().numpy() if own[scans == scan].any()]
        means.append(100 * loss[own].mean())
        errors.append(100 * np.std(by_scan, ddof=1) / len(by_scan) ** 0.5)
    return np.array(means), np.array(errors)


def halves(reads: Reads, kind: str, labels: Tensor, scans: Tensor, times: int = 400) -> list[float]:
    """Split-half reliability: the rank correlation of what classes pay on two random halves of the scans."""
    loss, every, found = (reads["trained on"].astype(float) - reads[kind]).mean(0), scans.unique().numpy(), []
    dice, own = np.random.default_rng(0), [labels.numpy() == digit for digit in range(10)]
    for _ in range(times):
        here = np.isin(scans.numpy(), dice.permutation(every)[: len(every) // 2])
        found.append(spearmanr([loss[o & here].mean() for o in own], [loss[o & ~here].mean() for o in own]).statistic)
    return [float(f) for f in found]


# Drawings


COLOUR = dict(zip(("trained on", "70 %", "90 %", "95 %", "small dense", "dense"), COLOURS, strict=False))
PITCH = 18  # pixels from one digit of a wall to the next


def wall(ax: Axes, images: Tensor, labels: Tensor, lost: np.ndarray, framed: np.ndarray, title: str) -> None:
    """A row a class, and in it every digit that is lost; those to be framed come first."""
    rows = [sorted(np.flatnonzero(lost & (labels.numpy() == d)), key=lambda i: not framed[i]) for d in range(10)]
    canvas = np.zeros((10 * PITCH, max(map(len, rows)) * PITCH))
    for d, row in enumerate(rows):
        for n, i in enumerate(row):
            x, y = n * PITCH, d * PITCH
            canvas[y : y + 16, x : x + 16] = images[i, 0].clamp(0, 1)
            if framed[i]:
                left, right, top, foot = x - 1, x + 16, y - 1, y + 16
                frame = [left, right, right, left, left], [top, top, foot, foot, top]
                ax.plot(*frame, color=COLOURS[1], lw=2.2, ls="-", marker="")
    ax.imshow(canvas, cmap=SHADES, vmin=0, vmax=1)
    ax.set_yticks([d * PITCH + 8 for d in range(10)], [f"{d}" for d in range(10)])
    ax.set(title=title, xticks=[])
    ax.spines[:].set_visible(False)
    ax.grid(False)


def classes(ax: Axes, tolls: dict[str, tuple[Any, Any]], names: Sequence[str] = tuple("0123456789")) -> None:
    """What each class pays, by kind of network: the mean, and how far a line reaches to either side of it."""
    for n, (kind, (mean, around)) in enumerate(tolls.items()):
        where = np.arange(10) + 0.2 * (n - (len(tolls) - 1) / 2)
        ax.errorbar(where, mean, around, ls="none", marker="os^Dv"[n], color=COLOUR.get(kind, COLOURS[0]), lw=1.5,
                    label=kind)  # fmt: skip
    ax.axhline(0, color=INK, lw=0.8, ls="-", marker="")
    ax.set_xticks(range(10), names, rotation=20 if len(names[0]) > 1 else 0)
    ax.set(xlabel="class", ylabel="points lost")
    ax.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))  # no line beneath it


def trust(ax: Axes, runs: Sequence[Run], kinds: Sequence[str]) -> None:
    """A reliability picture: how often a network is right where it is so sure; bins of 20 pictures or more."""
    for kind in kinds:
        bins = np.sum([run["bins"] for run in runs if run["kind"] == kind], axis=0)
        count, sure, right = bins[bins[:, 0] >= 20].T
        ax.plot(sure / count, right / count, marker="os^Dvp"[KINDS.index(kind)], color=COLOUR[kind], label=kind)
    ax.plot([0.2, 1], [0.2, 1], color=FAINT, lw=0.8, ls="-", marker="")
    ax.set(xlabel="how sure it is", ylabel="how often it is right")
    ax.legend()


def panel(ax: Axes, reads: Reads, labels: Tensor, kind: str) -> None:
    """One kind of network beside the twin: pictures lost and gained in each class, mean of five."""
    before, after = reads["trained on"], reads[kind]
    for name, moved, sign in (("lost", before & ~after, -1), ("gained", ~before & after, 1)):
        counts = [sign * moved[:, labels.numpy() == d].sum(1).mean() for d in range(10)]
        ax.bar(range(10), counts, color=COLOURS[sign == -1], label=name, hatch="//" if sign == -1 else "")
    ax.set(xticks=range(10), xlabel="class", ylabel="pictures", ylim=(-22, 10))
    ax.legend(ncols=2)


# The checks of the exercises, whose texts stand in 11.toml


def check_ship(answer: Any) -> str | None:
    """Which of some networks costs least, where misread digits cost by their class."""
    rules = {
        "you counted misreadings, all alike: multiply each by what its class costs.":
            lambda wrong, one, cost: wrong.mean(),
        "you looked only at the dearest class: the others cost something, too.":
            lambda wrong, one, cost: wrong[one == cost.argmax()].mean(),
        "you looked only at the class with most errors: add up what all misread pictures cost.":
            lambda wrong, one, cost: max(wrong[one == d].mean() for d in range(10)),
        "you averaged over classes as if they were equally frequent: here they are not.":
            lambda wrong, one, cost: sum(cost[d] * wrong[one == d].mean() for d in range(10)),
        "that is the network that costs *most*: ship the cheapest.":
            lambda wrong, one, cost: -(cost[one] * wrong).sum(),
    }  # fmt: skip
    given, best, theirs = [], [], []
    for seed in range(40):
        right, labels, cost = _market(seed)
        given.append(str(call(answer, {k: r.clone() for k, r in right.items()}, labels.clone(), cost.tolist())))
        bills = {name: float(cost[labels][~r].sum()) for name, r in right.items()}
        best.append(_least(bills))
        wrong = {name: (~r).double() for name, r in right.items()}
        theirs.append([_least({k: float(rule(w, labels, cost)) for k, w in wrong.items()}) for rule in rules.values()])
        if given[-1] not in right:
            return f"return the name of one of the networks, {sorted(right)}; yours gave {given[-1]!r}."
    if given == best:
        return None
    known = [message for message, picks in zip(rules, zip(*theirs, strict=True), strict=True) if list(picks) == given]
    return known[0] if known else "not the cheapest one: add up, for each network, the costs of the digits it misreads."


def _least(bills: dict[str, float]) -> str:
    return min(bills, key=lambda name: bills[name])


def _market(seed: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Two to four networks' right readings, (n,) of bool, the labels, unequally frequent, and ten distinct costs."""
    dice = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.arange(10), torch.multinomial(torch.rand(10, generator=dice), 400, True, generator=dice)])
    cost = 1 + torch.randperm(10, generator=dice) * (1 + torch.rand(10, generator=dice)) ** 2
    right = {}
    for name in ("heron", "otter", "adder", "finch")[: 2 + seed % 3]:
        right[name] = torch.rand(len(labels), generator=dice) > 0.3 * torch.rand(10, generator=dice)[labels]
    return right, labels, cost


def check_calibration(answer: Any) -> str | None:
    """Guo's expected calibration error with ten bins."""
    rules = {
        "signs cancel: a bin too sure by as much as another is too unsure makes 0. Take the size bin by bin.":
            lambda n, gap: (n * gap).sum() / n.sum(),
        "each bin counts by its pictures: you gave all bins that hold any the same say.":
            lambda n, gap: abs(gap).mean(),
        "that divides by ten bins, whether they hold pictures or not: weigh a bin by its share of the pictures.":
            lambda n, gap: abs(gap).sum() / BINS,
        "that is the *largest* gap (Guo calls it the maximum calibration error): average them.":
            lambda n, gap: abs(gap).max(),
    }  # fmt: skip
    for seed in range(12):
        dice = torch.Generator().manual_seed(seed)
        sure = 1 - 0.9 * torch.rand(60 + 40 * seed, generator=dice, dtype=[torch.float, torch.double][seed % 2]) ** 2
        sure[: seed % 4] = 1.0  # the ends belong to the last bin
        right = torch.rand(len(sure), generator=dice) < 0.7 * sure
        found = float(plain(call(answer, sure.clone(), right.clone())))
        table = np.array([row for row in binned(sure, right) if row[0]])
        n, gap = table[:, 0], (table[:, 1] - table[:, 2]) / table[:, 0]
        if abs(found - float((n * abs(gap)).sum() / n.sum())) < 1e-4:
            continue
        if np.isnan(found):
            return "it gave nan: a bin without pictures has no mean. Leave it out."
        near = [message for message, rule in rules.items() if abs(found - float(rule(n, gap))) < 1e-4]
        lost = " Where somebody is sure at 1.0 exactly: in which bin?" if seed % 4 else ""
        return (
            near[0] if near else f"for {len(sure)} pictures it gave {found:.4f}.{lost} Ten bins: 0 to 0.1, and so on."
        )
    return None
