"""Lesson 10, "Which way back is best?": its race, the search inside it, drawings and exercises' checks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor, nn

from ... import zoo
from ...measurement import evaluate
from ...pipeline import Recipe, gradually
from ...recovery import Early, distil, rewind_rates, rewind_weights, train
from ...recovery.methods import State
from ...text import percent
from ..learn.claim import plain
from ..learn.exercise import call
from ..learn.stored_grid import Ahead, Grid, Resumable, Run, ahead
from ..show.figure import COLOURS, table
from ..show.measuring import measured
from ..show.vector import INK
from .lesson_09 import EPOCH, FIRST, settings
from .pruned_networks import CNNS, pruned

# The race: every way gets the same steps after (or, if gradual, around) the cut, and the same search


STEPS = 2 * EPOCH  # the budget of every way back
AS_LONG = 163  # steps of a cycle that take as long as distillation's: a step with a teacher took 1.29 times as long
SPARSITY = 0.98
CYCLE_RATE = 0.05  # what the cycle's own search chose: gradual and distillation, which build on it, take it from there
SEEDS = (0, 1, 2, 3, 4)  # of the networks "digits-cnn", "digits-cnn-1", ...


def _cut(seed: int) -> nn.Module:
    return pruned(zoo.checkpoint(CNNS[seed]), "global", SPARSITY)


def cycle(seed: int, data: zoo.Data, lr: float, order: int = 0, **changed: Any) -> nn.Module:
    """Up to the rate and down to nothing, all within the budget; `order` shuffles the batches otherwise."""
    model = _cut(seed)
    train(model, data.train, **{**settings(seed + len(SEEDS) * order), "lr": lr, "steps": STEPS, **changed})
    return model


def fine_tuning(seed: int, data: zoo.Data, lr: float) -> nn.Module:
    """A constant rate."""
    return cycle(seed, data, lr, lr_schedule="constant")


def rates_rewound(seed: int, data: zoo.Data, lr: float) -> nn.Module:
    """The falling half of a first training's rates, with this peak."""
    model = _cut(seed)
    rewind_rates(model, data.train, **{**settings(seed), "lr": lr}, steps=STEPS, of=FIRST)
    return model


@cache
def _halfway(seed: int) -> State:
    """The state `STEPS` steps before the end of a first training, which is run again from its seed."""
    model = zoo.cnn(**zoo.trained.cards()["digits-cnn"]["arguments"], seed=seed)
    early = Early(model, FIRST - STEPS)
    train(model, zoo.load("digits").train, steps=FIRST, on_step=early, **settings(seed))
    return early.state


def weights_rewound(seed: int, data: zoo.Data, lr: float) -> nn.Module:
    """The same from the weights of half-time, with the mask of the end."""
    model = _cut(seed)
    rewind_weights(model, _halfway(seed), data.train, **{**settings(seed), "lr": lr}, steps=STEPS, of=FIRST)
    return model


def gradual(seed: int, data: zoo.Data, until: float, lr: float = CYCLE_RATE) -> nn.Module:
    """Nine cuts within a cycle, cubic, the last after a share of it: Zhu and Gupta 2017, arXiv 1710.01878."""
    model = zoo.checkpoint(CNNS[seed])
    step = gradually(model, Recipe(sparsity=SPARSITY, schedule="cubic", rounds=9), until=until)
    train(model, data.train, **{**settings(seed), "lr": lr}, steps=STEPS, on_step=step)
    return model


def distillation(
    seed: int, data: zoo.Data, temperature: float, alpha: float, lr: float = CYCLE_RATE, order: int = 0
) -> nn.Module:
    """The cycle, learning from the dense network's outputs too: Hinton et al. 2015, arXiv 1503.02531."""
    model, how = _cut(seed), {**settings(seed + len(SEEDS) * order), "lr": lr, "steps": STEPS}
    distil(model, zoo.checkpoint(CNNS[seed]), data.train, temperature=temperature, alpha=alpha, **how)
    return model


def softened_labels(seed: int, data: zoo.Data, smoothing: float) -> nn.Module:
    """The cycle with labels that are softer, as a teacher's outputs are, but without a teacher."""
    return cycle(seed, data, CYCLE_RATE, loss=nn.CrossEntropyLoss(label_smoothing=smoothing))


Way = Callable[..., nn.Module]  # seed, data, a setting


def _each(name: str, *values: float) -> tuple[dict[str, float], ...]:
    return tuple({name: value} for value in values)


_HIGH = _each("lr", 0.01, 0.02, 0.05, 0.1, 0.2)
WAYS: dict[str, tuple[Way, tuple[dict[str, float], ...]]] = {  # five settings each
    "one full cycle": (cycle, _HIGH),
    "fine-tuning": (fine_tuning, _each("lr", 0.002, 0.005, 0.01, 0.02, 0.05)),
    "rates rewound": (rates_rewound, _HIGH),
    "weights rewound": (weights_rewound, _HIGH),
    "gradual": (gradual, _each("until", 0.1, 0.25, 0.4, 0.6, 0.75)),
    "distillation": (distillation, tuple(  # a middle, and one step from it each way
        {"temperature": t, "alpha": a} for t, a in ((1, 0.7), (2, 0.5), (2, 0.7), (2, 0.9), (4, 0.7)))),
}  # fmt: skip

AS_IT_CAME: dict[str, dict[str, Any]] = {  # the settings of a race in which nobody had searched much
    "one full cycle": {"lr": 0.01},  # the first training's own
    "fine-tuning": {"lr": 0.003},
    "rates rewound": {"lr": 0.01},
    "weights rewound": {"lr": 0.01},
    "gradual": {"until": 0.75, "lr": 0.01},
    "distillation": {"temperature": 4, "alpha": 0.7, "lr": 0.01},  # the library's own, at the cycle's rate of then
}


def race() -> Resumable:
    """Notebook 10: six ways back from 98 % zeros; of five settings the best on validation, then five networks."""
    data = zoo.load("digits")

    def run(point: Run) -> Run:
        found = entrant(way := point["way"], data)
        if way != "distillation":
            return found
        longer = [cycle(seed, data, CYCLE_RATE, steps=AS_LONG) for seed in SEEDS]  # the rival of a teacher: more steps
        return {**found, "cycle as long": tested(longer, data)}

    return [{"way": way} for way in WAYS], run


def entrant(way: str, data: zoo.Data) -> Run:
    """A way as it came, on all networks, and after its search."""
    go, settings = WAYS[way]
    untuned = tested([go(seed, data, **AS_IT_CAME[way]) for seed in SEEDS], data)
    return {**searched(go, settings, data), "untuned": untuned}


def searched(go: Way, settings: Sequence[Mapping[str, float]], data: zoo.Data, seeds: Sequence[int] = SEEDS) -> Run:
    """Every setting of a way on the first network's validation digits; the best one on test, once, on all networks."""
    tried = [go(seeds[0], data, **setting) for setting in settings]
    valid = [evaluate(model, data, "valid").accuracy for model in tried]
    best = int(np.argmax(valid))
    raced = [tried[best], *(go(seed, data, **settings[best]) for seed in seeds[1:])]
    return {"settings": list(settings), "valid": valid, "chosen": settings[best], "accuracy": tested(raced, data)}


def tested(models: Iterable[nn.Module], data: zoo.Data) -> list[float]:
    """What each reads of the test digits."""
    return [evaluate(model, data, "test").accuracy for model in models]


def controls() -> Resumable:
    """Notebook 10: rivals of distillation's lead: two other orders of the batches, soft labels, and chance alone."""
    data = zoo.load("digits")

    def run(point: Run) -> Run:
        if point["control"] == "soft labels":
            return searched(softened_labels, _each("smoothing", 0.02, 0.05, 0.1, 0.2, 0.3), data)
        if point["control"] == "chance":
            return chance()
        alone = [cycle(seed, data, CYCLE_RATE, point["order"]) for seed in SEEDS]
        taught = [distillation(seed, data, 2, 0.7, order=point["order"]) for seed in SEEDS]
        return {"one full cycle": tested(alone, data), "distillation": tested(taught, data)}

    points: list[Run] = [{"control": "order", "order": order} for order in (1, 2)]
    return [*points, {"control": "soft labels"}, {"control": "chance"}], run


def chance(tables: int = 40_000) -> dict[str, float]:
    """In how many simulated tables of equal ways, normal and independent, so many of the pairs clear zero."""
    reads = np.random.default_rng(0).normal(size=(len(SEEDS), len(WAYS), tables))
    one, other = np.triu_indices(len(WAYS), 1)
    lead = ahead(reads[:, one], reads[:, other])
    clear = ((lead.low > 0) | (lead.high < 0)).sum(0)
    return {f"{least} or more": float((clear >= least).mean()) for least in (1, 5)}


GRIDS: dict[str, Grid] = {"race": race, "race-controls": controls}

# Who is ahead, and whether anyone can tell


def leads(found: Mapping[str, Sequence[float]], over: str) -> dict[str, Ahead]:
    """How far each of the others is ahead of `over`: the interval of the differences, network by network."""
    return {name: ahead(np.array(values), np.array(found[over])) for name, values in found.items() if name != over}


def verdict(lead: Ahead) -> str:
    """Ahead or behind if the interval lies on one side of zero."""
    if lead.low > 0:
        return "ahead"
    return "behind" if lead.high < 0 else "cannot tell"


def written(lead: Ahead) -> str:
    """A lead in points, with its interval."""
    return measured(float(lead.mean), "points", interval=(float(lead.low), float(lead.high)))


def apart(found: Mapping[str, Sequence[float]], one: str, other: str) -> dict[str, str]:
    """`pair` in words."""
    return {"ahead by": written(ahead(np.array(found[one]), np.array(found[other])))}


def standings(runs: Sequence[Run], over: str) -> None:
    """Show each way as it came and tuned: its mean, and its lead over one of them."""
    rows: list[list[str | float]] = []
    sets = {key: {run["way"]: run[key] for run in runs} for key in ("untuned", "accuracy")}
    for run in runs:
        way, setting = run["way"], ", ".join(f"{name} {value:g}" for name, value in run["chosen"].items())
        row: list[str | float] = [way]
        for key, found in sets.items():
            lead = None if way == over else leads(found, over)[way]
            row += [setting] * (key == "accuracy") + [float(np.mean(found[way])), written(lead) if lead else ""]
        rows.append([*row, "" if lead is None else verdict(lead)])
    columns = {"way": None, "as it came": "%", f"ahead of {over}": None, "chosen": None, "tuned": "%"}
    table("Five networks, compared one by one (95 % interval)", {**columns, "ahead now": None, "so": None}, rows)


# Drawings


def entrants(ax: Axes, runs: Sequence[Run]) -> None:
    """A row a way: five networks as it came, above, and tuned, below; a line from mean to mean."""
    sets = (
        ("untuned", "as it came", -0.16, INK, "none"),
        ("accuracy", "after the same search", 0.16, COLOURS[0], COLOURS[0]),
    )
    for row, run in enumerate(runs):
        means = [float(np.mean(run[key])) for key, *_ in sets]
        ax.plot(means, [row - 0.16, row + 0.16], color=COLOURS[0], lw=2, ls="-", marker="")
        for key, name, shift, edge, face in sets:
            ax.plot(run[key], [row + shift] * len(run[key]), ls="", marker="o", mec=edge, mfc=face, ms=6,
                    label=None if row else name)  # fmt: skip
    ax.set_yticks(range(len(runs)), [run["way"] for run in runs])
    ax.set(ylim=(len(runs) - 0.5, -0.5), xlabel="test accuracy at 98 % zeros, five networks")
    ax.xaxis.set_major_formatter(lambda v, _: percent(v, digits=0))
    ax.grid(axis="y", visible=False)
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)  # no row beneath it


def pair(ax: Axes, found: Mapping[str, Sequence[float]], one: str, other: str) -> None:
    """The difference of two ways, a dot a network, with the mean and its interval."""
    lead = ahead(np.array(found[one]), np.array(found[other]))
    ax.axvspan(100 * float(lead.low), 100 * float(lead.high), color=COLOURS[1], alpha=0.25, lw=0)
    ax.axvline(100 * float(lead.mean), color=COLOURS[1], lw=1.6, ls="-", marker="")
    apart = [100 * (a - b) for a, b in zip(found[one], found[other], strict=True)]
    ax.plot(apart, range(len(apart)), ls="", marker="o", color=COLOURS[0])
    ax.axvline(0, color=INK, lw=1.2, ls=(0, (4, 3)), marker="")
    ax.set_yticks(range(len(apart)), [f"network {n}" for n in range(len(apart))])
    ax.set(xlim=(-16, 16), ylim=(-0.6, len(apart) - 0.4), title=f"{one}: {verdict(lead)}")
    ax.set_xlabel(f"points ahead of {other}")


# The checks of the exercises, whose texts stand in 10.toml


def _says(middle: float, width: float) -> str:
    if abs(middle) <= width:
        return "cannot tell"
    return "one" if middle > 0 else "other"


def _verdicts(one: np.ndarray, other: np.ndarray, t: float) -> dict[str, str]:
    """The right answer under "", and what each wrong way of thinking would say under what it must be told."""
    apart, n = one - other, len(one)
    middle, single = float(apart.mean()), t / math.sqrt(n)
    separate = single * (float(one.std(ddof=1)) + float(other.std(ddof=1)))
    widths = {
        "": single * float(apart.std(ddof=1)),
        "you compared two separate intervals. The networks are the same for both: take the differences first, "
        "network by network.": separate,
        "that looks at the mean only; so there is always a winner, and often it is luck.": 0.0,
        "that is the spread of single networks. Of the *mean* of n it is smaller by the root of n.":
            t * float(apart.std(ddof=1)),
        "the factor t is missing: with so few networks s / sqrt(n) alone is far too narrow.":
            float(apart.std(ddof=1)) / math.sqrt(n),
    }  # fmt: skip
    found = {message: _says(middle, width) for message, width in widths.items()}
    turned = {"one": "other", "other": "one"}
    found["one and other changed places: more accuracy is better."] = turned.get(found[""], found[""])
    return found


def check_verdict(answer: Any) -> str | None:
    """Student's interval of the paired differences holds zero, or lies on one side of it."""
    dice = np.random.default_rng(10)
    given, wanted = [], []
    for n in [3, 5, 5, 8] * 30:
        base = dice.normal(0.8, 0.05, n)
        one, other = base + dice.normal(0, 0.02, n), base + dice.normal(0, 0.02, n) + dice.choice([-0.03, 0.0, 0.03])
        t = {3: 4.303, 5: 2.776, 8: 2.365}[n]
        said = plain(call(answer, one.tolist(), other.tolist(), t))
        if not isinstance(said, str) or said.strip().lower() not in ("one", "other", "cannot tell"):
            return 'return one of the texts "one", "other" and "cannot tell".'
        given.append(said.strip().lower())
        wanted.append(_verdicts(one, other, t))
    for message in wanted[0]:
        if given == [found[message] for found in wanted]:
            return message or None
    wrong = sum(a != found[""] for a, found in zip(given, wanted, strict=True))
    return f"{wrong} of {len(given)} pairs are judged otherwise. Does mean ± t · s / sqrt(n) of the differences hold 0?"


def check_targets(answer: Any) -> str | None:
    """1 - (1 - s)^(n / rounds): the same share of what is left, every round; four digits are enough."""
    for final, rounds in ((0.875, 3), (0.9, 4), (0.5, 1), (0.99, 5)):
        found = plain(call(answer, final, rounds))
        if not isinstance(found, (list, tuple)) or len(found) != rounds:
            return f"return a list of one sparsity a round; for {rounds} rounds that is {rounds} of them."
        given, times = [float(plain(x)) for x in found], [n / rounds for n in range(1, rounds + 1)]
        right = [1 - (1 - final) ** t for t in times]
        known = (
            (right, None),
            ([final * t for t in times], "that is still linear: each round takes the same number of weights, and the "
             "last one takes nearly all that is left."),
            ([1 - x for x in right], "those are the shares that *stay*. Give the sparsities, the shares that are "
             "gone."),
            ([1 - (1 - final) ** (1 / rounds)] * rounds, "that is what one round takes of what is left. "
             "Give how much is gone in all, after each round."),
            ([final**t for t in times], "you shrank the share that goes; what shrinks by the same factor is the share "
             "that *stays*, 1 - final."),
            ([final * (1 - (1 - t) ** 3) for t in times], "that is the cubic schedule: a good one, but not this one."),
        )  # fmt: skip
        other = f"for {final:g} in {rounds} rounds it gave {[round(x, 4) for x in given]}; (1 - final) ** (n / rounds)"
        near = (message for values, message in known if np.allclose(given, values, rtol=0, atol=1e-4))
        message = next(near, f"{other} stays.")
        if message:
            return message
    return None


def _divergence(student: Tensor, teacher: Tensor, t_student: float, t_teacher: float) -> Tensor:
    """KL(teacher || student), the mean over the samples."""
    p = (teacher / t_teacher).softmax(1)
    return (p * (p.log() - (student / t_student).log_softmax(1))).sum(1).mean()


def check_make(answer: Any) -> str | None:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), the mean over the samples, on several shapes and dtypes."""
    dice = torch.Generator().manual_seed(0)
    for n, classes, t, dtype in ((4, 3, 2.5, torch.float32), (7, 10, 4.0, torch.float64), (3, 5, 0.5, torch.float32)):
        student, teacher = (torch.randn(n, classes, generator=dice, dtype=dtype) for _ in range(2))
        found = plain(call(answer, student.clone(), teacher.clone(), t))
        if isinstance(found, bool) or not isinstance(found, (int, float)):
            return "return one number: the mean over the samples."
        right, p = _divergence(student, teacher, t, t), (teacher / t).softmax(1)
        entropy = -(p * p.log()).sum(1).mean()
        known = (
            (t**2 * right, None),
            (right, "the factor T² is missing: a soft target's gradient shrinks by T², and this makes up for it."),
            (t * right, "T came in once; it must come in squared, because the gradient shrinks by T²."),
            (_divergence(student, teacher, 1, 1), "the temperature did nothing: divide both outputs by it first."),
            (t**2 * _divergence(student, teacher, 1, t), "only the teacher was softened: divide the student's by T."),
            (t**2 * _divergence(student, teacher, t, 1), "only the student was softened: divide the teacher's by T."),
            (t**2 * _divergence(teacher, student, t, t), "student and teacher changed places: it is the teacher's "
             "probabilities that weigh the logarithms."),
            (t**2 * right * len(student), "that is the sum over the samples; take their mean."),
            (t**2 * right / student.shape[1], "that is the mean over the classes too: sum over them, and take the mean "
             "over the samples. (`reduction=\"batchmean\"` does it.)"),
            (t**2 * (right + entropy), "that is the cross-entropy. Subtract the teacher's own entropy, which is not "
             "the student's fault."),
            (-(t**2) * right, "the sign is reversed: a divergence is never negative."),
        )  # fmt: skip
        near = (m for value, m in known if abs(found - float(value)) < 1e-5 * max(1.0, abs(float(value))))
        message = next(near, "it is T² times the mean, over the samples, of the sum of p · (log p - log q).")
        if message:
            return message
    return None
