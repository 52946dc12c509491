"""Every drawing of the course, with values that crowd it: no label lies on another, none leaves the picture."""

import inspect
import itertools

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from prunelab import lab
from prunelab.lab.lessons import (
    lesson_00,
    lesson_01,
    lesson_02,
    lesson_03,
    lesson_04,
    lesson_05,
    lesson_06,
    lesson_07,
    lesson_08,
    lesson_09,
    lesson_10,
    lesson_12,
    lesson_13,
    lesson_14,
    lesson_16,
    llamas,
)
from prunelab.lab.lessons.physics import Layer, Machine, Roofline
from prunelab.lab.show import figure, plots

SLACK = 1.0  # pixels that two boxes may share, for a box is a little larger than its letters


def labels(fig):
    """Each text that a figure draws, and its box in pixels."""
    drawn = []
    original = Text.draw

    def draw(self, renderer, *args, **kwargs):
        if self.get_visible() and self.get_text().strip():
            drawn.append((self.get_text(), self.get_window_extent(renderer), self.get_rotation() % 90 != 0))
        return original(self, renderer, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Text, "draw", draw)
        FigureCanvasAgg(fig).draw()
    return drawn


def collisions(fig):
    """What is wrong with a figure's labels, a line each; slanted ones are compared with none of their like."""
    found, whole = labels(fig), fig.bbox
    wrong = [f"{text!r} leaves the picture" for text, box, _ in found if _leaves(box, whole)]
    for (one, a, slanted), (other, b, slanted_too) in itertools.combinations(found, 2):
        width = min(a.x1, b.x1) - max(a.x0, b.x0)
        height = min(a.y1, b.y1) - max(a.y0, b.y0)
        if min(width, height) > SLACK and not (slanted and slanted_too):
            wrong.append(f"{one!r} lies on {other!r} by {width:.0f}x{height:.0f} pixels")
    return wrong


def _leaves(box, whole):
    return box.x0 < -SLACK or box.y0 < -SLACK or box.x1 > whole.x1 + SLACK or box.y1 > whole.y1 + SLACK


def test_the_measure_sees_what_collides_and_what_is_cut():
    with matplotlib.rc_context(figure.STYLE):
        fig = figure.painted(lambda ax: (ax.text(0.5, 0.5, "one"), ax.text(0.51, 0.5, "two")))
        (wrong,) = collisions(fig)
        assert "'one' lies on 'two'" in wrong
        fig = figure.painted(lambda ax: ax.text(0.99, 0.5, "a long one", in_layout=False))
        assert collisions(fig) == ["'a long one' leaves the picture"]


def latency(seconds):
    return type("Latency", (), {"p50": seconds})()


def roofline():
    """Thirteen layers as a small network on a small machine has them, most of them close together."""
    names = (
        [f"conv{i}" for i in range(1, 5)] + [f"bn{i}" for i in range(1, 5)] + ["pool1", "pool2", "fc1", "fc2", "relu"]
    )
    machine = Machine(4e10, ((1e4, 4e10), (1e6, 2e10), (1e8, 9e9)), 1, "cpu")
    return Roofline(
        machine,
        {n: Layer(n, (10 + i) * 100_000, 80_000 + 900 * i, latency(1e-4 + 2e-6 * i)) for i, n in enumerate(names)},
    )


LEVELS = [0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99]
FALLING = {
    "magnitude, all layers compared": [0.97, 0.96, 0.95, 0.9, 0.7, 0.4, 0.2, 0.1],
    "magnitude, layer by layer": [0.97, 0.9, 0.8, 0.6, 0.3, 0.2, 0.1, 0.1],
    "by lot": [0.97, 0.7, 0.5, 0.4, 0.2, 0.1, 0.1, 0.1],
}
ORDERS = {o: np.array([[0.9] * 7, [0.5] * 7]) for o in lesson_01.ORDERS}
SEEDS = {name: np.array([values, [0.9 * v for v in values]]) for name, values in FALLING.items()}
DENSE = [0.97] * 5
PARTS = {"convolutions": 12e-3, "pooling": 4e-3, "norms, ReLU": 1e-3, "linear": 1e-4}
BARS = {f"{n}{end}": PARTS for n in ("dense", "half zeroed", "half removed") for end in ("", ", channels last")}
RATES, LEFT = [3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2], [0.5, 0.15, 0.05, 0.03]


def table(rows, columns):
    return np.linspace(0.1, 0.97, rows * columns).reshape(rows, columns)


def returns():
    """Sparsities, and a table of accuracies (networks, sparsities) for each of two budgets."""
    falling = np.array([[0.96, 0.95, 0.94, 0.92, 0.88, 0.8, 0.5]])
    return lesson_09.STAGES, [falling - 0.01 * np.arange(5)[:, None] - 0.1 * n for n in (0, 1)]


def digits(n):
    return torch.rand(n, 1, 16, 16, generator=torch.Generator().manual_seed(0))


def shape(**subplots):
    return subplots


DRAWINGS = {
    "gallery": (
        shape(figsize=(7, 3.5)),
        lambda ax: lesson_00.filmstrip(ax, digits(24), torch.arange(24) % 10),
    ),
    "filmstrip": (
        shape(figsize=(8, 5.2)),
        lambda ax: lesson_00.filmstrip(
            ax,
            digits(8),
            torch.arange(8),
            dict.fromkeys(("dense", "half of it zero", "95 % zero", "fresh statistics", "end"), torch.full((8,), 8)),
        ),
    ),
    "curves": (shape(figsize=(7, 3.4)), lambda ax: plots.curves(ax, LEVELS, SEEDS)),
    "matrices": (
        shape(figsize=(7, 2.4), ncols=3),
        lambda axes: lesson_01.matrices(
            axes, {"weights": torch.randn(10, 64), "mask": torch.rand(10, 64) > 0.5, "pruned": torch.randn(10, 64)}
        ),
    ),
    "panel": (
        shape(figsize=(10.5, 4), ncols=3, sharey=True),
        lambda axes: [lesson_01.panel(ax, w, ORDERS) for ax, w in zip(axes, lesson_01.WHICH, strict=True)],
    ),
    "panel, chosen": (
        shape(figsize=(7, 3.4)),
        lambda ax: lesson_01.panel(ax, "of all layers", ORDERS, "at random", 0.7),
    ),
    "crossings": (
        shape(figsize=(7, 3.8)),
        lambda ax: lesson_03.crossings(
            ax,
            {
                n: (LEVELS[1:], [0.1, 0.5, 1, 2, 5, 12, 50])
                for n in ("CSR, 64 columns", "CSR, 1 column", "BSR, 64 columns")
            },
        ),
    ),
    "roof": (shape(figsize=(7, 4.2)), lambda ax: lesson_03.roof(ax, {"batch 64": roofline(), "batch 1": roofline()})),
    "stacked": (shape(figsize=(8.5, 4.4)), lambda ax: lesson_02.stacked(ax, BARS)),
    "speed_curve": (
        shape(figsize=(8, 3.4)),
        lambda ax: lesson_02.speed_curve(
            ax,
            [1, 8, 64],
            {"½ filters": [1.1, 1.9, 2.5], "½ neurons": [1, 1, 1]},
            {"½ filters": 3.94, "½ neurons": 1.2},
            "½ filters",
            64,
        ),
    ),
    "shares": (
        shape(figsize=(8, 3.6)),
        lambda ax: lesson_04.shares(
            ax,
            ["conv1", "conv2", "conv3", "conv4", "fc1", "fc2"],
            {n: [0.5] * 6 for n in lesson_04.RULES},
        ),
    ),
    "left": (
        shape(figsize=(9, 4), ncols=2, sharey=True),
        lambda axes: [
            lesson_04.left(ax, ["conv1", "conv2", "conv3", "conv4", "fc1", "fc2"], [0.1, 0, 1, 0.5, 0.9, 1], "its twin")
            for ax in axes
        ],
    ),
    "two_scans": (
        shape(figsize=(9.5, 4.6), ncols=2, sharey=True),
        lambda axes: lesson_05.two_scans(
            axes, LEVELS[1:], {t: {f"conv{i}": FALLING["by lot"][1:] for i in range(6)} for t in ("old", "fresh")}, 0.97
        ),
    ),
    "framed": (
        shape(figsize=(9.5, 3.5), ncols=2),
        lambda axes: lesson_06.framed(
            axes, torch.randn(32, 1, 3, 3), {t: [0.02 - 0.001 * i for i in range(32)] for t in ("old", "fresh")}
        ),
    ),
    "bars_over_networks": (
        shape(figsize=(7, 3.6)),
        lambda ax: plots.bars_over_networks(ax, FALLING, "rank correlation with the loss without the filter"),
    ),
    "judged": (
        shape(figsize=(6, 3.8)),
        lambda ax: lesson_06.judged(ax, list(range(64)), list(range(64)), "fisher"),
    ),
    "learned_scores": (
        shape(figsize=(9.5, 4.6), ncols=2),
        lambda axes: lesson_07.learned_scores(
            axes,
            torch.nn.Sequential(torch.nn.Linear(10, 5)),
            {
                n: lesson_07.Transfer(
                    torch.nn.Identity(), 0.5, {"0.weight": torch.arange(50) > 40}, {"0.weight": torch.randn(50)}
                )
                for n in ("timid: 0.00003", "bold: 0.01")
            },
            "0.weight",
        ),
    ),
    "handed_on": (
        shape(figsize=(9, 3.8), ncols=2, sharey=True),
        lambda axes: lesson_08.handed_on(
            axes, {"summed first, as meant": torch.randn(64), "zeroed first, as published": torch.zeros(64)}
        ),
    ),
    "twice": (
        shape(figsize=(9.5, 3.9), ncols=2),
        lambda axes: lesson_12.twice(
            axes,
            torch.linspace(-0.01, 0.1, 32),
            torch.linspace(0.01, 0.12, 32),
            {"leaving out, within a block": [0.5, 0.9], "V, O, within a block": [0.4, 0.5], "Q, K": [-0.6, -0.4]},
        ),
    ),
    "orders": (
        shape(figsize=(9.5, 4), ncols=2, sharey=True),
        lambda axes: lesson_12.orders(axes, [0, 4, 8, 12, 16, 20, 24, 28], SEEDS, SEEDS),
    ),
    "board": (
        shape(figsize=(8.6, 5.6)),
        lambda ax: lesson_12.board(
            ax, digits(1)[0, 0], [torch.rand(8, 17, 17)] * 4, torch.randn(4, 8) / 10, torch.rand(4, 8) > 0.5
        ),
    ),
    "heads left": (
        shape(figsize=(8.5, 5.8)),
        lambda ax: lesson_12.left(
            ax, digits(1)[0, 0], [torch.rand(8, 17, 17)] * 4, {"kept": ["11110000"] * 4, "before": 0.5, "after": 0.9}
        ),
    ),
    "damage": (
        shape(figsize=(8.5, 5.5)),
        lambda ax: lesson_13.damage(
            ax,
            {
                "a block": (np.geomspace(0.02, 0.6, 30), np.geomspace(18, 50000, 30)),
                "three neighbours": (np.geomspace(0.09, 1.2, 28), np.geomspace(24, 170000, 28)),
                "your cuts": ([0.14, 0.13], [34.0, 5700.0]),
            },
            {"the five lowest": (0.14, 34.0), "26, 27, 28": (0.13, 5700.0)},
            17.5,
        ),
    ),
    "said": (
        shape(figsize=(8, 1.6)),
        lambda ax: llamas.said(ax, "8 layers out", {"perplexity": 105.5, "text": "word and " * 60}),
    ),
    "cliffs": (
        shape(figsize=(8, 4.6)),
        lambda ax: lesson_09.cliffs(ax, returns()[0], {f"{n} epochs": t for n, t in enumerate(returns()[1])}, 0.97),
    ),
    "crossing": (
        shape(figsize=(7, 3.6)),
        lambda ax: lesson_09.crossing(ax, returns()[0][2:], returns()[1][0][:, 2:], DENSE, 0.02),
    ),
    "entrants": (
        shape(figsize=(8.5, 5)),
        lambda ax: lesson_10.entrants(
            ax, [{"way": way, "untuned": [0.5] * 5, "accuracy": [0.7] * 5} for way in lesson_10.WAYS]
        ),
    ),
    "pair": (
        shape(figsize=(6.5, 2.8)),
        lambda ax: lesson_10.pair(
            ax, {"one full cycle": [0.8, 0.9], "weights rewound": [0.7, 0.9]}, "one full cycle", "weights rewound"
        ),
    ),
    "stored_front": (
        shape(figsize=(7, 4)),
        lambda ax: lesson_16.stored_front(ax, lab.grid("fronts"), "the course's CNN", 0.5),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAWINGS)
def test_no_label_collides(name):
    shape, paint = DRAWINGS[name]
    with matplotlib.rc_context(figure.STYLE):
        assert collisions(figure.painted(paint, **shape)) == []


def test_every_drawing_of_the_course_is_among_them():
    rooms = (
        plots,
        lesson_00,
        lesson_01,
        lesson_02,
        lesson_04,
        lesson_05,
        lesson_06,
        lesson_07,
        lesson_08,
        lesson_09,
        lesson_10,
        lesson_12,
        lesson_13,
        lesson_14,
        llamas,
        lesson_16,
    )
    own = {
        name
        for room in rooms
        for name, thing in vars(room).items()
        if inspect.isfunction(thing) and thing.__module__ == room.__name__ and not name.startswith("_")
        if next(iter(inspect.signature(thing).parameters), "") in ("ax", "axes")
    }
    parts = {"name_points"}  # of roof
    assert own <= {*DRAWINGS, *parts}, "a drawing that no test has looked at"
