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
    lesson_07,
    lesson_09,
    lesson_12,
    lesson_13,
    lesson_16,
)
from prunelab.lab.show import figure, plots
from prunelab.lab.show.readings import Reading
from prunelab.measurement.physics import Layer, Roofline

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
    layers = [
        Layer(
            n,
            "Conv2d",
            macs=(10 + i) * 100_000,
            moved=80_000 + 900 * i,
            predicted=1e-4,
            measured=latency(1e-4 + 2e-6 * i),
            bound="compute",
        )
        for i, n in enumerate(names)
    ]
    machine = type("Machine", (), {"peak": 4e10, "bandwidths": ((1e4, 4e10), (1e6, 2e10), (1e8, 9e9))})()
    return Roofline(machine=machine, layers=tuple(layers), whole=latency(2e-3))


LEVELS = [0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99]
FALLING = {
    "magnitude, all layers compared": [0.97, 0.96, 0.95, 0.9, 0.7, 0.4, 0.2, 0.1],
    "magnitude, layer by layer": [0.97, 0.9, 0.8, 0.6, 0.3, 0.2, 0.1, 0.1],
    "by lot": [0.97, 0.7, 0.5, 0.4, 0.2, 0.1, 0.1, 0.1],
}
SEEDS = {name: np.array([values, [0.9 * v for v in values]]) for name, values in FALLING.items()}
PARTS = {"convolutions": 12e-3, "pooling": 4e-3, "norms, ReLU": 1e-3, "linear": 1e-4}
BARS = {f"{n}{end}": PARTS for n in ("dense", "half zeroed", "half removed") for end in ("", ", channels last")}
DENSE, WAYS = [0.97] * 5, {way: [0.5, 0.6] for way in ("at once", "in rounds", "linear", "cubic", "by lot")}
RATES, LEFT = [3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2], [0.5, 0.15, 0.05, 0.03]


def table(rows, columns):
    return np.linspace(0.1, 0.97, rows * columns).reshape(rows, columns)


def returns():
    """The sparsities of the stored runs, and by their number of steps the accuracies (networks, sparsities)."""
    runs = [run for run in lab.grid("returns") if run["sparsity"]]
    return sorted({run["sparsity"] for run in runs}), lab.collect(runs, "accuracy", by="steps", along="sparsity")


def digits(n):
    return torch.rand(n, 16, 16, generator=torch.Generator().manual_seed(0))


def shape(**subplots):
    return subplots


DRAWINGS = {
    "gallery": (
        shape(figsize=(7, 3.5)),
        lambda ax: lesson_00.gallery(ax, digits(24), list(range(10)) * 3),
    ),
    "filmstrip": (
        shape(figsize=(8, 5.2)),
        lambda ax: lesson_00.filmstrip(
            ax,
            digits(8),
            list(range(8)),
            dict.fromkeys(("dense", "half of it zero"), Reading([8] * 8, 0.1)),
        ),
    ),
    "curves": (shape(figsize=(7, 3.4)), lambda ax: plots.curves(ax, LEVELS, SEEDS)),
    "histogram": (
        shape(figsize=(7, 3)),
        lambda ax: lesson_01.histogram(
            ax, torch.linspace(-1, 1, 500), torch.linspace(-1, 1, 500).abs() < 0.4, "The weights of fc1"
        ),
    ),
    "matrices": (
        shape(figsize=(7, 2.4), ncols=3),
        lambda axes: lesson_01.matrices(
            axes, {"weights": torch.randn(10, 64), "mask": torch.rand(10, 64) > 0.5, "pruned": torch.randn(10, 64)}
        ),
    ),
    "choices": (
        shape(figsize=(7, 3.4)),
        lambda ax: lesson_01.choices(
            ax,
            torch.arange(6.0),
            torch.arange(6.0),
            torch.arange(6) > 2,
            torch.arange(6) > 3,
            ("L1 norm of the filter", "L2 norm"),
        ),
    ),
    "marked_curve": (shape(figsize=(7, 3.4)), lambda ax: lesson_01.marked_curve(ax, LEVELS, FALLING, "by lot", 0.99)),
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
            {n: [0.5] * 6 for n in ("local", "global", "ERK", "LAMP", "by hand")},
        ),
    ),
    "before_after": (
        shape(figsize=(9, 3.8), ncols=2, sharey=True),
        lambda axes: plots.before_after(axes, LEVELS, SEEDS, SEEDS),
    ),
    "draw_by_hand": (
        shape(figsize=(7, 3.2)),
        lambda ax: lesson_04.draw_by_hand(
            ax, dict.fromkeys(("conv2", "conv3", "conv4", "fc1"), 0.9), {(0.9,) * 4: (0.98, 0.85)}
        ),
    ),
    "layer_scan": (
        shape(figsize=(7, 3.8)),
        lambda ax: lesson_05.layer_scan(ax, LEVELS[1:], {f"conv{i}": FALLING["by lot"][1:] for i in range(6)}, 0.97),
    ),
    "bars_over_networks": (
        shape(figsize=(7, 3.6)),
        lambda ax: plots.bars_over_networks(ax, FALLING, "rank correlation with the loss without the filter"),
    ),
    "judged": (
        shape(figsize=(6, 3.8)),
        lambda ax: lesson_05.judged(
            ax, {"scores": np.arange(64), "truth": np.arange(64), "criterion": "fisher", "layer": "conv4"}
        ),
    ),
    "agreement_map": (
        shape(figsize=(6.4, 5)),
        lambda ax: lesson_05.agreement_map(ax, [f"criterion {i}" for i in range(10)], table(10, 10), 0.2),
    ),
    "kept_of": (
        shape(figsize=(9, 4.2), ncols=2, sharey=True),
        lambda axes: lesson_07.kept_of(
            axes,
            {
                n: {"before": torch.randn(50), "after": torch.randn(50), "kept": torch.arange(50) > 40}
                for n in ("magnitude", "movement")
            },
        ),
    ),
    "advantage": (
        shape(figsize=(7, 4.2)),
        lambda ax: lesson_07.advantage(ax, RATES, LEFT, table(6, 4) - 0.5, table(6, 4) - 0.6, table(6, 4) - 0.4),
    ),
    "race": (
        shape(figsize=(9.5, 4.2), ncols=2, sharey=True),
        lambda axes: lesson_07.race(
            axes,
            LEFT,
            {
                n: {w: table(5, 4) for w in ("magnitude", "movement", "MAMA's score", "soft movement", "dense")}
                for n in ("timid, 0.00003", "bold, 0.01")
            },
            {n: ([0.02, 0.03], [0.5, 0.6]) for n in ("timid, 0.00003", "bold, 0.01")},
        ),
    ),
    "stayed": (
        shape(figsize=(7, 3.6)),
        lambda ax: lesson_07.stayed(ax, RATES, {"magnitude": table(5, 6), "movement": table(5, 6)}),
    ),
    "field": (
        shape(figsize=(6.5, 2.8)),
        lambda ax: lesson_07.field(ax, {name: table(5, 4) for name in lesson_07.ROWS}, 1),
    ),
    "missed": (
        shape(figsize=(8, 3)),
        lambda ax: lesson_12.missed(ax, {f"block {i}": torch.linspace(-0.2, 1.234, 8) for i in range(4)}),
    ),
    "orders": (
        shape(figsize=(9.5, 4), ncols=2, sharey=True),
        lambda axes: lesson_12.orders(axes, [0, 4, 8, 12, 16, 20, 24, 28], SEEDS, SEEDS),
    ),
    "board": (
        shape(figsize=(8.5, 5)),
        lambda ax: lesson_12.board(
            ax, digits(1)[0], [torch.rand(8, 17, 17)] * 4, {"kept": ["11110000"] * 4, "before": 0.5, "after": 0.9}
        ),
    ),
    "by_pattern": (
        shape(figsize=(8, 4)),
        lambda ax: lesson_13.by_pattern(
            ax,
            [
                {"pattern": p, "method": m, "perplexity": 100.0 * (1 + i + k)}
                for i, p in enumerate(("50 %", "2:4", "4:8"))
                for k, m in enumerate(("magnitude", "Wanda", "SparseGPT"))
            ],
            19.0,
        ),
    ),
    "influence": (
        shape(figsize=(8, 3)),
        lambda ax: lesson_13.influence(ax, list(np.geomspace(0.02, 0.6, 30)), [3, 4, 5]),
    ),
    "depth": (
        shape(figsize=(9, 3.8), ncols=2, sharey=True),
        lambda axes: lesson_13.depth(
            axes,
            {
                w: {r: {1: [20.0, 21.0], 3: [30.0, 40.0], 8: [90.0, 400.0]} for r in ("influence", "angle", "by lot")}
                for w in ("layers", "mlps")
            },
            19.0,
        ),
    ),
    "said": (
        shape(figsize=(8, 1.6)),
        lambda ax: lesson_13.said(ax, "8 layers out", {"perplexity": 105.5, "text": "word and " * 60}),
    ),
    "cliff": (shape(figsize=(7, 3.8)), lambda ax: lesson_09.cliff(ax, *returns(), DENSE)),
    "no_return": (
        shape(figsize=(7, 3.6)),
        lambda ax: lesson_09.no_return(ax, returns()[0], returns()[1][0], DENSE, 0.02),
    ),
    "ways": (
        shape(figsize=(9, 4.6), nrows=2, ncols=2, sharex=True),
        lambda axes: lesson_09.ways(axes.flat, {f"{n} % zeros, 378 steps": WAYS for n in (50, 80, 95, 98)}),
    ),
    "stored_front": (
        shape(figsize=(7, 4)),
        lambda ax: lesson_16.stored_front(ax, lab.grid("fronts"), lesson_16.networks(lab.grid("fronts"))[0], 0.5),
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
        lesson_07,
        lesson_09,
        lesson_12,
        lesson_13,
        lesson_16,
    )
    own = {
        name
        for room in rooms
        for name, thing in vars(room).items()
        if inspect.isfunction(thing) and thing.__module__ == room.__name__ and not name.startswith("_")
        if next(iter(inspect.signature(thing).parameters), "") in ("ax", "axes")
    }
    parts = {"looks", "name_points"}  # of board and roof
    assert own <= {*DRAWINGS, *parts}, "a drawing that no test has looked at"
