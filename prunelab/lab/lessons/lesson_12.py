"""Lesson 12, "How many heads does attention need?": its grid, drawings and exercises' checks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F

from ... import zoo
from ...agreement import leave_one_out
from ...allocation import allocate, unit_scores
from ...calibration import Calibration
from ...core import Group, Keep, Member
from ...criteria import Random, head_importance, magnitude
from ...granularity import heads
from ...measurement import evaluate
from ...recovery import finetune
from ...surgery import shrink
from ...text import percent
from ..learn.exercise import call
from ..learn.stored_grid import Grid, Resumable, Run
from ..show import plots
from ..show.figure import COLOURS
from ..show.vector import FAINT, INK

# The stored grids: five Vision Transformers, five orders in which their heads leave, and how far a head is missed


VITS = ("digits-vit", "digits-vit-1", "digits-vit-2", "digits-vit-3", "digits-vit-4")
REMOVED = (8, 16, 24, 28)  # of 32 heads; the last of each of four blocks stays
ORDERS = ("random", "magnitude", "Michel", "left out alone", "one by one")
DRAWS = 5  # lotteries, of which the accuracy without retraining is the mean; the first one is retrained
CALIBRATION = 512  # training pictures that Michel's gradient sees
JUDGED = 300  # validation pictures on which a head is left out: one of each scan
TWICE = 600  # two of each: the even ones are of other scans than the odd ones
VIEWS, LR = 8, 1e-3  # of the short retraining: new pictures of each training scan, once through


def orders_grid() -> Iterator[dict[str, Any]]:
    """Notebook 12: five networks, five orders of removing heads, before and after a short retraining."""
    data = zoo.load("digits")
    for seed, name in enumerate(VITS):
        model = zoo.checkpoint(name)
        control = _run(model, data, {g.name: torch.ones(g.units, dtype=torch.bool) for g in heads(model)}, seed)
        for order in ORDERS:
            yield {"network": name, "order": order, "removed": 0, **control}  # with nothing removed, all are the same
            for removed, keep in kept(model, data, order, REMOVED, seed).items():
                run = _run(model, data, keep, seed)
                if order == "random":
                    run["before"] = lottery(model, data, removed, seed)
                yield {"network": name, "order": order, "removed": removed, **run}


def lottery(model: nn.Module, data: zoo.Data, removed: int, seed: int, draws: int = DRAWS) -> float:
    """The mean accuracy without so many heads, drawn at random several times."""
    keeps = (lowest_out(importance(model, data, "random", seed + 100 * draw), removed) for draw in range(draws))
    return float(np.mean([evaluate(shrink(model, heads(model), keep), data, "test").accuracy for keep in keeps]))


def _run(model: nn.Module, data: zoo.Data, keep: Keep, seed: int) -> dict[str, Any]:
    small = shrink(model, heads(model), keep)
    before = evaluate(small, data, "test").accuracy
    retrain(small, seed)
    board = ["".join("1" if stays else "0" for stays in k.tolist()) for k in keep.values()]
    return {"before": before, "after": evaluate(small, data, "test").accuracy, "kept": board}


def retrain(model: nn.Module, seed: int) -> None:
    """A short retraining, in place: once through new pictures of the training scans."""
    finetune(model, zoo.data.more_views(VIEWS, seed=2), epochs=1, lr=LR, seed=seed, progress=False)


def kept(model: nn.Module, data: zoo.Data, order: str, removed: tuple[int, ...], seed: int = 0) -> dict[int, Keep]:
    """Which heads stay, for each number of heads removed in an order."""
    groups = heads(model)
    if order == "one by one":
        left = one_by_one(model, data.valid[:JUDGED])
        return {k: _without(groups, left[:k]) for k in removed}
    values = importance(model, data, order, seed)
    return {k: lowest_out(values, k) for k in removed}


def importance(model: nn.Module, data: zoo.Data, order: str, seed: int = 0) -> dict[str, Tensor]:
    """What each head is worth, (heads,) a layer."""
    groups = heads(model)
    if order == "left out alone":
        return leave_one_out(model, [data.valid[:JUDGED]], groups, progress=False)
    if order == "Michel":
        calib = Calibration.of(data, samples=CALIBRATION)
        return unit_scores(head_importance(model, calib), groups, "sum")  # comparable as it is: normalised a layer
    return unit_scores((magnitude if order == "magnitude" else Random(seed))(model), groups)


def lowest_out(values: Mapping[str, Tensor], k: int) -> Keep:
    """Without the k lowest of all layers together; each layer's best stays."""
    alone = [Group(name, len(v), (Member(name, 0),)) for name, v in values.items()]
    return allocate(dict(values), alone, k / sum(map(len, values.values())), "global", reduce="sum")


def one_by_one(model: nn.Module, pictures: tuple[Tensor, Tensor]) -> list[tuple[str, int]]:
    """The order in which heads leave if each time all that are left are tried, and the one least missed goes."""
    left = {g.name: list(range(g.units)) for g in heads(model)}
    gone = []
    for _ in range(sum(len(units) - 1 for units in left.values())):
        groups = heads(model)  # those of layers with one head left are no longer among them
        rises = leave_one_out(model, [pictures], groups, progress=False)
        _, name, unit = min((float(rise), n, u) for n, every in rises.items() for u, rise in enumerate(every))
        gone.append((name, left[name].pop(unit)))
        model = shrink(model, groups, _without(groups, [(name, unit)]))
    return gone


def _without(groups: Sequence[Group], gone: list[tuple[str, int]]) -> Keep:
    return {g.name: torch.tensor([(g.name, u) not in gone for u in range(g.units)]) for g in groups}


def missed_grid() -> Resumable:
    """Notebook 12: five networks, how much the loss rises without each head, on which pictures, and four judges."""
    return [{"network": name} for name in VITS], missed_run


def missed_run(point: Run) -> Run:
    """The rises on two halves of validation scans and on the test digits; Michel's score; the norms of the weights."""
    model: Any = zoo.checkpoint(point["network"])
    data = zoo.load("digits")
    pictures, labels = data.valid[:TWICE]
    asked: dict[str, Any] = {"one half": (pictures[::2], labels[::2]), "other half": (pictures[1::2], labels[1::2])}
    asked["test"] = data.test.tensors
    groups = heads(model)
    rises = {who: leave_one_out(model, [some], groups, progress=False) for who, some in asked.items()}
    parts = [block.attention for block in model.blocks]
    own = [[_rows(a.q_proj), _rows(a.k_proj), _rows(a.v_proj), a.o_proj.weight.detach().square().sum(0)] for a in parts]
    q, k, v, o = (torch.stack(found).view(-1, parts[0].head_dim).sum(1) for found in zip(*own, strict=True))
    found = {who: torch.cat(list(rise.values())) for who, rise in rises.items()}
    found |= {"Michel": torch.cat(list(importance(model, data, "Michel").values()))}
    found |= {"Q, K": (q + k).sqrt(), "V, O": (v + o).sqrt()}
    return {name: [round(float(x), 5) for x in values] for name, values in found.items()}


def _rows(layer: nn.Linear) -> Tensor:
    return layer.weight.detach().square().sum(1)


def excess(model: Any, images: Tensor, labels: Tensor, block: int) -> Tensor:
    """By how much more the loss rises without two heads of a block than without each, added: (heads, heads)."""
    attention = model.blocks[block].attention
    weight, size = attention.o_proj.weight.data, attention.head_dim
    whole, count = weight.clone(), weight.shape[1] // size
    lost = torch.zeros(count, count)
    for pair in combinations_with_replacement(range(count), 2):
        for head in pair:
            weight[:, head * size : (head + 1) * size] = 0
        with torch.no_grad():
            lost[pair] = lost[pair[::-1]] = F.cross_entropy(model(images), labels)
        weight.copy_(whole)
    with torch.no_grad():
        lost -= F.cross_entropy(model(images), labels)
    return lost - lost.diagonal() - lost.diagonal()[:, None]


def agreement(one: Sequence[float], other: Sequence[float], blocks: int = 0) -> float:
    """Spearman's rank correlation of two judgements of all heads; with `blocks`, the mean of those within a block."""
    pair = np.array([one, other], dtype=float).reshape(2, blocks or 1, -1)
    return float(np.mean([spearmanr(a, b).statistic for a, b in zip(*pair, strict=True)]))


GRIDS: dict[str, Grid] = {"heads": orders_grid, "missed": missed_grid}


# Drawings: what heads look at, how far each is missed, how many can go


GAP, LABEL = 4, 6  # white pixels between two heads, and below one for its number
OFF = 0.9  # the grey of a head that is gone
MISSED = COLOURS[1]


def board(ax: Axes, picture: Tensor, maps: Sequence[Tensor], lost: Tensor, sure: Tensor) -> None:
    """The board of heads: over the digit what each looks at, under it the rise of the loss without it.

    Framed are the heads that are `sure`-ly missed, (blocks, heads) of bool as `lost` is of numbers; the others pale.
    """
    side = _lay(ax, picture, maps, lambda b, h, look: look if sure[b, h] else 1 - 0.35 * (1 - look))
    for b, h in np.ndindex(*lost.shape):
        x, y, missed = h * (side + GAP), b * (side + LABEL + GAP), bool(sure[b, h])
        ax.text(x + side / 2, y + side + 3.2, f"{lost[b, h]:+.3f}", ha="center", va="center", fontsize=9,
                color=MISSED if missed else FAINT, fontweight="bold" if missed else "normal")  # fmt: skip
        if missed:
            frame = [x, x + side, x + side, x, x], [y, y, y + side, y + side, y]
            ax.plot(*frame, color=MISSED, lw=2.2, ls="-", marker="")


def left(ax: Axes, picture: Tensor, maps: Sequence[Tensor], run: Mapping[str, Any]) -> None:
    """The heads that a run of the grid has left, under what the network reads without the others."""
    _lay(ax, picture, maps, lambda b, h, look: look if run["kept"][b][h] == "1" else np.full_like(look, OFF))
    there = sum(block.count("1") for block in run["kept"])
    before, after = (percent(run[when], digits=0) for when in ("before", "after"))
    ax.set_title(f"{there} heads: {before} read correctly; {after} after a short retraining")


def _lay(ax: Axes, picture: Tensor, maps: Sequence[Tensor], shade: Callable[[int, int, np.ndarray], Any]) -> int:
    """A row a block, a column a head, each picture as `shade` makes it; maps of a block (heads, tokens, tokens)."""
    side, heads = picture.shape[-1], len(maps[0])
    wide, high = side + GAP, side + LABEL + GAP
    for b, block in enumerate(maps):
        for h, attention in enumerate(block[:, 0, 1:]):
            x, y = h * wide, b * high
            ax.imshow(shade(b, h, _look(picture, attention)), extent=(x, x + side, y + side, y))
    ax.set_xticks(np.arange(heads) * wide + side / 2, [str(h) for h in range(heads)])
    ax.set_yticks(np.arange(len(maps)) * high + side / 2, [str(b) for b in range(len(maps))])
    ax.set(xlabel="head", ylabel="block", xlim=(-2, heads * wide - 2), ylim=(len(maps) * high - GAP, -2))
    ax.set_aspect("equal")
    ax.tick_params(length=0)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    return side


def _look(picture: Tensor, attention: Tensor) -> np.ndarray:
    """One head: its attention to each patch as a shade of orange, the ink of the digit over it. (h, w, 3)."""
    cells = round(len(attention) ** 0.5)
    grid = (attention / attention.max()).view(cells, cells)
    pixels = torch.kron(grid, torch.ones(picture.shape[-1] // cells, picture.shape[-1] // cells))
    ink = picture.clamp(0, 1).numpy()[..., None]
    return colormaps["Oranges"](0.75 * pixels.numpy())[..., :3] * (1 - 0.8 * ink)


def twice(axes: Sequence[Axes], one: Tensor, other: Tensor, judges: Mapping[str, Sequence[float]]) -> None:
    """The same question put to two halves of the scans; and how well judges agree with the test digits."""
    ax = axes[0]
    ax.plot(one, other, ls="none", marker="o", color=COLOURS[0])
    ends = [min(float(one.min()), float(other.min())), max(float(one.max()), float(other.max()))]
    ax.plot(ends, ends, color=INK, lw=0.8, ls="-", marker="")
    ax.set(xlabel="rise without a head, 150 scans", ylabel="on 150 others", title="One network, asked twice")
    plots.bars_over_networks(axes[1], judges, "rank correlation with the test digits")
    axes[1].set(title="Five networks", xlim=(min(-0.7, *map(min, judges.values())), 1))


def orders(axes: Sequence[Axes], removed: Sequence[int], before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Accuracy against heads removed, a curve an order, without and with retraining."""
    for ax, title, runs in zip(axes, ("without retraining", "after a short retraining"), (before, after), strict=True):
        plots.curves(ax, removed, runs, ylabel="test accuracy", legend=ax is axes[0])
        ax.xaxis.set_major_formatter(lambda v, _: f"{v:.0f}")
        ax.set(title=title, xlabel="heads removed, of 32", xticks=[0, 8, 16, 24, 28])
    axes[1].set_ylabel("")


# The checks of the exercises, whose texts stand in 12.toml


SPEND, ENOUGH = 8, 0.945  # heads that must go, and the share of the test digits that must still be read


def check_spend(answer: Any) -> str | None:
    """Eight heads of the first network leave; what it reads without them is measured here."""
    chosen = [tuple(int(x) for x in head) for head in answer]
    if len(set(chosen)) != SPEND or any(len(head) != 2 for head in chosen):
        return f"name {SPEND} different heads, each as (block, head): {len(set(chosen))} different ones came."
    if any(not (0 <= b < 4 and 0 <= h < 8) for b, h in chosen):
        return "blocks count from 0 to 3 and heads from 0 to 7; one of yours is not there."
    model: Any = zoo.checkpoint(VITS[0])
    data = zoo.load("digits")
    gone = [sum(b == block for b, _ in chosen) for block in range(4)]
    if max(gone) == 8:
        return f"block {gone.index(8)} would be left without a head: each block keeps at least one."
    for b, h in chosen:
        attention = model.blocks[b].attention
        attention.o_proj.weight.data[:, h * attention.head_dim : (h + 1) * attention.head_dim] = 0
    found = evaluate(model, data, "test").accuracy
    if found >= ENOUGH:
        return None
    why = "the board frames those that are missed" if gone[0] >= 4 else "ask more than one judge, and mind the pairs"
    return f"without these eight it reads {percent(found)} of the test digits; {percent(ENOUGH)} are asked for. {why}."


# Heads, size of one, width of the stream, the head that goes, numbers of which kind
CASES = ((3, 2, 8, 1, torch.float32), (6, 3, 19, 3, torch.float64), (4, 5, 21, 0, torch.float32))


def check_without(answer: Any) -> str | None:
    """One head taken out of attentions of three shapes."""
    for number, (count, size, width, head, dtype) in enumerate(CASES):
        dice, rows = torch.Generator().manual_seed(number), count * size
        q, k, v = (torch.randn(rows, width, generator=dice, dtype=dtype) for _ in range(3))
        o = torch.randn(width, rows, generator=dice, dtype=dtype)
        found = call(answer, q.clone(), k.clone(), v.clone(), o.clone(), head, size)
        if not isinstance(found, (tuple, list)) or len(found) != 4 or not all(map(torch.is_tensor, found)):
            return "return four tensors: q, k, v, o without the head."
        shapes, stay = [tuple(t.shape) for t in found], rows - size
        if shapes != [(stay, width)] * 3 + [(width, stay)]:
            return _shapes_wrong(shapes, rows, width, head, size)
        one, x = torch.arange(rows), torch.randn(4, width, generator=dice, dtype=dtype)
        same = [n for n in range(count) if _alike(found, _cut(q, k, v, o, one // size != n), x, size)]
        if head in same:
            continue
        if same == [count - 1 - head]:
            return f"you counted from the end: of {count} heads, head {head} was to go, and head {same[0]} went."
        if same:
            return f"you removed head {same[0]}; here head {head} was asked for, counted from 0."
        if torch.equal(found[0], q[one % count != head]):
            return f"heads lie one after another: head {head} owns rows {head * size} to {head * size + size - 1}."
        return "the shapes are right, but rows and columns of different heads have gone."
    return None


def _shapes_wrong(shapes: Sequence[tuple[int, ...]], rows: int, width: int, head: int, size: int) -> str:
    stay = rows - size
    messages: dict[Any, str] = {
        ((rows, width), (width, rows)): "every shape is as before: zeroed is not removed. Leave rows and columns out.",
        ((stay, width), (stay, rows)): "`o` makes the layer's output, which must keep its width: of `o` the head owns "
        "*columns*.",
        ((rows, width - size), (width, stay)): "the columns of `q`, `k`, `v` read the input, which stays: there the "
        "head owns *rows*.",
        ((rows - 1, width), (width, rows - 1)): f"you removed one row. Head {head} of size {size} owns rows "
        f"{head * size} to {head * size + size - 1}.",
        ((size, width), (width, size)): "you kept the head and removed the others: turn the choice round.",
    }
    told = ", ".join("x".join(map(str, shape)) for shape in shapes)
    other = f"the shapes are {told}; for heads of size {size}, {stay} of {rows} rows (of `o`: columns) should be left."
    return messages.get((shapes[0], shapes[3]), other)


def _cut(q: Tensor, k: Tensor, v: Tensor, o: Tensor, stay: Tensor) -> tuple[Tensor, ...]:
    return q[stay], k[stay], v[stay], o[:, stay]


def _alike(one: Sequence[Tensor], other: Sequence[Tensor], x: Tensor, size: int) -> bool:
    """Whether two attentions say the same of some tokens, whatever the order of their heads."""
    said = []
    for q, k, v, o in (one, other):
        queries, keys, values = ((x @ w.to(x).T).unflatten(-1, (-1, size)).transpose(0, 1) for w in (q, k, v))
        mixed = (queries @ keys.mT / size**0.5).softmax(-1) @ values
        said.append(mixed.transpose(0, 1).flatten(1) @ o.to(x).T)
    return torch.allclose(said[0], said[1], atol=1e-5)
