"""Lesson 12, "How many heads does attention need?": its grid, drawings and exercises' checks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from torch import Tensor, nn

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
from ..learn.exercise import call
from ..learn.stored_grid import Grid
from ..show import plots
from ..show.measuring import measured

# The stored grid: five Vision Transformers, five orders in which their heads leave


VITS = ("digits-vit", "digits-vit-1", "digits-vit-2", "digits-vit-3", "digits-vit-4")
REMOVED = (8, 16, 24, 28)  # of 32 heads; the last of each of four blocks stays
ORDERS = ("random", "magnitude", "Michel", "left out alone", "one by one")
DRAWS = 5  # lotteries, of which the accuracy without retraining is the mean; the first one is retrained
CALIBRATION = 512  # training pictures that Michel's gradient sees
JUDGED = 300  # validation pictures on which a head is left out: one of each scan
VIEWS, LR = 8, 1e-3  # of the short retraining: new pictures of each training scan, once through


def orders_grid() -> Iterator[dict[str, Any]]:
    """Notebook 12: five networks, five orders of removing heads, before and after a short retraining."""
    for name in VITS:
        yield from of_network(name)


def of_network(name: str) -> Iterator[dict[str, Any]]:
    """The runs of one network; with nothing removed, all orders are the same."""
    data, model, seed = zoo.load("digits"), zoo.checkpoint(name), VITS.index(name)
    whole = {g.name: torch.ones(g.units, dtype=torch.bool) for g in heads(model)}
    control = _run(model, data, whole, seed)
    for order in ORDERS:
        yield {"network": name, "order": order, "removed": 0, **control}
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
    finetune(model, zoo.more_views(VIEWS, seed=2), epochs=1, lr=LR, seed=seed, progress=False)


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
        name, unit = min(
            ((n, u) for n, r in rises.items() for u in range(len(r))), key=lambda x: float(rises[x[0]][x[1]])
        )
        gone.append((name, left[name].pop(unit)))
        model = shrink(
            model, groups, {g.name: torch.arange(g.units) != (unit if g.name == name else -1) for g in groups}
        )
    return gone


def _without(groups: list[Group], gone: list[tuple[str, int]]) -> Keep:
    return {g.name: torch.tensor([(g.name, u) not in gone for u in range(g.units)]) for g in groups}


GRIDS: dict[str, Grid] = {"heads": orders_grid}


# Drawings: what heads look at, what is lost without each, how many can go


GAP = 3  # white pixels between two heads
OFF = 0.9  # the grey of a head that is gone


def looks(
    ax: Axes, picture: Tensor, maps: Sequence[Tensor], kept: Sequence[str] | None = None, title: str = ""
) -> None:
    """What the class token looks at, a row a block, a column a head: attention in orange over the digit.

    picture (h, w); maps of each block (heads, tokens, tokens), of this picture. `kept` says of each block, "1101...",
    which heads are there; the others are grey.
    """
    side = picture.shape[-1]
    heads = len(maps[0])
    board = np.ones((len(maps) * (side + GAP) - GAP, heads * (side + GAP) - GAP, 3))
    for b, block in enumerate(maps):
        for h, attention in enumerate(block[:, 0, 1:]):
            there = kept is None or kept[b][h] == "1"
            top, left = b * (side + GAP), h * (side + GAP)
            board[top : top + side, left : left + side] = _look(picture, attention) if there else OFF
    ax.imshow(board)
    ax.set_xticks(np.arange(heads) * (side + GAP) + side / 2, [str(h) for h in range(heads)])
    ax.set_yticks(np.arange(len(maps)) * (side + GAP) + side / 2, [str(b) for b in range(len(maps))])
    ax.set(xlabel="head", ylabel="block", title=title)
    ax.tick_params(length=0)
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)


def _look(picture: Tensor, attention: Tensor) -> np.ndarray:
    """One head: its attention to each patch as a shade of orange, the ink of the digit over it. (h, w, 3)."""
    cells = round(len(attention) ** 0.5)
    grid = (attention / attention.max()).view(cells, cells)
    pixels = torch.kron(grid, torch.ones(picture.shape[-1] // cells, picture.shape[-1] // cells))
    ink = picture.clamp(0, 1).numpy()[..., None]
    return colormaps["Oranges"](0.75 * pixels.numpy())[..., :3] * (1 - 0.8 * ink)


def board(ax: Axes, picture: Tensor, maps: Sequence[Tensor], run: Mapping[str, Any]) -> None:
    """The heads that a run of the grid has left, under what the network reads without the others."""
    there = sum(block.count("1") for block in run["kept"])
    title = f"{there} heads: {run['before']:.0%} read correctly; {run['after']:.0%} after a short retraining"
    looks(ax, picture, maps, run["kept"], title)


def missed(ax: Axes, rises: Mapping[str, Tensor]) -> None:
    """How much the loss rises without each head, a row a block, a column a head."""
    table = torch.stack(list(rises.values())).numpy()
    most = float(np.abs(table).max())
    ax.imshow(table, cmap="PuOr_r", vmin=-most, vmax=most)
    for (b, h), value in np.ndenumerate(table):
        ax.text(h, b, f"{value:+.3f}", ha="center", va="center", fontsize=8.5,
                color="white" if abs(value) > 0.7 * most else "black")  # fmt: skip
    ax.set_xticks(range(table.shape[1]))
    ax.set_yticks(range(len(table)))
    ax.set(xlabel="head", ylabel="block")
    ax.grid(False)


def orders(axes: Sequence[Axes], removed: Sequence[int], before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Accuracy against heads removed, a curve an order, without and with retraining."""
    for ax, title, runs in zip(axes, ("without retraining", "after a short retraining"), (before, after), strict=True):
        plots.curves(ax, removed, runs, ylabel="test accuracy", legend=ax is axes[0])
        ax.xaxis.set_major_formatter(lambda v, _: f"{v:.0f}")
        ax.set(title=title, xlabel="heads removed, of 32", xticks=[0, 8, 16, 24, 28])
    axes[1].set_ylabel("")


def reads(run: Mapping[str, Any]) -> dict[str, str]:
    """`board` in words: the heads left in each block, and what the network then reads."""
    left = {f"block {i}": block.count("1") for i, block in enumerate(run["kept"], 1)}
    return {**{name: str(heads) for name, heads in left.items()}, "read correctly": measured(run["before"], "%")}


# The checks of the exercises, whose texts stand in 12.toml


def check_read(answer: Any) -> str | None:
    """9 query heads, 3 key-value heads, head size 64, width 576: what leaves with one key-value head."""
    known: dict[tuple[int, ...], str | None] = {
        (192, 64, 64, 192): None,
        (
            64,
            64,
            64,
            64,
        ): "one query head alone cannot leave: each key-value head serves 9 / 3 = 3 of them, and all three "
        "would ask a head that is gone.",
        (
            192,
            192,
            192,
            192,
        ): "keys and values are shared: the three query heads have *one* key-value head between them.",
        (192, 64, 64, 64): "`o_proj` reads what the *query* heads bring: count its columns by those.",
        (576, 192, 192, 576): "that is all of the layer. One key-value head of three leaves.",
    }
    if not isinstance(answer, (tuple, list)) or len(answer) != 4:
        return "give four numbers: rows of `q_proj`, of `k_proj`, of `v_proj`, and columns of `o_proj`."
    return known.get(
        tuple(answer), "not these four. How many query heads share a key-value head, and how wide is a head?"
    )


def check_modify(answer: Any) -> str | None:
    """Michel: absolute by sample, mean, L2-normalised."""
    gradients = torch.tensor([[2.0, 0.8, 0.0], [-2.0, 0.8, 0.5], [2.0, 0.8, -0.5], [-2.0, 0.8, 0.0]])
    found = call(answer, gradients.clone())
    if not torch.is_tensor(found) or found.shape != (3,):
        return "return one number a head: three here."
    mean, size = gradients.mean(0).abs(), gradients.abs().mean(0)
    if torch.allclose(found, size / size.norm()):
        return None
    wrong = (
        (mean, "the first head pulls every picture hard, half of them one way and half the other. Your mean calls it "
         "worthless: take the absolute value *before* the mean."),
        (mean / mean.norm(), "normalised, but the signs have cancelled before: absolute value first, then the mean."),
        (size, "right by picture; now divide by the length (the L2 norm) of it all, so that layers compare."),
        (size / size.sum(), "you divided by the sum. The paper divides by the length, the root of the sum of squares."),
        (gradients.square().mean(0), "squares favour the few pictures that pull hardest: take the absolute value."),
    )  # fmt: skip
    near = [message for value, message in wrong if torch.allclose(found, value)]
    return (
        near[0] if near else "absolute value of each picture's gradient, mean over the pictures, divided by the norm."
    )


def _layer() -> tuple[Tensor, ...]:
    dice = torch.Generator().manual_seed(0)
    return tuple(torch.randn(6, 6, generator=dice) for _ in range(4))


def _attend(x: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor) -> Tensor:
    queries, keys, values = ((x @ w.T).unflatten(-1, (-1, 2)).transpose(0, 1) for w in (q, k, v))
    mixed = (queries @ keys.mT / 2**0.5).softmax(-1) @ values  # (heads, tokens, 2)
    return mixed.transpose(0, 1).flatten(1) @ o.T


def check_make(answer: Any) -> str | None:
    """Remove head 1 of three heads of size 2."""
    q, k, v, o = _layer()
    found = call(answer, q.clone(), k.clone(), v.clone(), o.clone(), 1, 2)
    if not isinstance(found, (tuple, list)) or len(found) != 4 or not all(map(torch.is_tensor, found)):
        return "return four tensors: q, k, v, o without the head."
    shapes = " ".join("x".join(map(str, t.shape)) for t in found)
    messages = {
        "6x6 6x6 6x6 6x6": "every shape is as before: zeroed is not removed. Leave the rows and columns out.",
        "4x6 4x6 4x6 4x6": "`o` makes the layer's output, which must keep its width: of `o` the head owns *columns*.",
        "6x4 6x4 6x4 6x4": "the columns of `q`, `k`, `v` read the input, which stays: there the head owns *rows*.",
        "5x6 5x6 5x6 6x5": "you removed one row. Head 1 of size 2 owns rows 2 and 3.",
        "2x6 2x6 2x6 6x2": "you kept the head and removed the others: turn the choice round.",
    }
    if shapes != "4x6 4x6 4x6 6x4":
        return messages.get(shapes, f"the shapes are {shapes}; of 6 rows (of `o`: columns), 4 should be left.")
    masked = o.clone()
    masked[:, 2:4] = 0
    x = torch.linspace(-1, 1, 24).view(4, 6)
    if torch.allclose(_attend(x, *found), _attend(x, q, k, v, masked), atol=1e-5):
        return None
    if torch.equal(found[3], o[:, [0, 2, 3, 5]]) or torch.equal(found[0], q[[0, 2, 3, 5]]):
        return "heads lie one after another: head 1 owns rows 2 and 3, not every third one."
    return (
        "the shapes are right, but another head has gone: head 1 of size 2 owns 2 to 4, counted from 0, end left out."
    )
