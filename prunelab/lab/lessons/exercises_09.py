"""The exercises of notebook 09: what comes back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..learn.claim import plain
from ..learn.exercise import Exercise, WrongAnswer, call


def check_read(answer: Any) -> str | None:
    """Dense 95 %, retrained 94.5, 94, 91 and 70 % at 90, 95, 97 and 99 %: within 2 points up to 95 %."""
    known = {
        0.95: None,
        0.9: "that is back within 2 points, but it is not the last one: look one row further.",
        0.97: "91 % is 4 points below dense. Within 2 points means at least 93 %.",
        0.99: "70 % is the cliff itself: nothing came back there.",
        95: "did you mean 0.95? Sparsity is a fraction here.",
        0.93: "that is the accuracy which is still good enough; the question is for the sparsity.",
    }
    if isinstance(answer, bool) or not isinstance(answer, (int, float)):
        return "give one number: a sparsity of the table, such as 0.9."
    return known.get(answer, "that is no sparsity of the table: 0.9, 0.95, 0.97 or 0.99.")


FINAL, ROUNDS = 0.9, 3


def check_modify(answer: Any) -> str | None:
    """1 - (1 - s)^(n / rounds): the same share of what is left, every round."""
    for final, rounds in ((0.875, 3), (FINAL, ROUNDS), (0.5, 1), (0.99, 5)):
        found = plain(call(answer, final, rounds))
        if not isinstance(found, (list, tuple)) or len(found) != rounds:
            return f"return a list of one sparsity a round; for {rounds} rounds that is {rounds} of them."
        given = [float(x) for x in found]
        message = _of_rounds(given, final, rounds)
        if message:
            return message
    return None


def _of_rounds(given: list[float], final: float, rounds: int) -> str | None:
    def close(wanted: list[float]) -> bool:
        return all(abs(a - b) < 1e-6 for a, b in zip(given, wanted, strict=True))

    times = [n / rounds for n in range(1, rounds + 1)]
    right = [1 - (1 - final) ** t for t in times]
    if close(right):
        return None
    wrong = (
        ([final * t for t in times], "that is still linear: each round takes the same number of weights, and the last "
         "one takes nearly all that is left."),
        ([1 - x for x in right], "those are the shares that *stay*. Give the sparsities, the shares that are gone."),
        ([1 - (1 - final) ** (1 / rounds)] * rounds, "that is what one round takes of what is left. "
         "Give how much is gone in all, after each round."),
        ([final**t for t in times], "you shrank the share that goes; what shrinks by the same factor is the share that "
         "*stays*, 1 - final."),
        ([final * (1 - (1 - t) ** 3) for t in times], "that is the cubic schedule: a good one, but not this one."),
    )  # fmt: skip
    for values, message in wrong:
        if close(values):
            return message
    if abs(given[-1] - final) > 1e-6:
        return f"the last round must end at the final sparsity, {final:g}; yours ends at {given[-1]:.3g}."
    return "after n of the rounds (1 - final) ** (n / rounds) is left; the sparsity is the rest."


_DICE = torch.Generator().manual_seed(0)
STUDENT, TEACHER = torch.randn(4, 3, generator=_DICE), torch.randn(4, 3, generator=_DICE)


def _divergence(student: Tensor, teacher: Tensor, t_student: float, t_teacher: float) -> Tensor:
    """KL(teacher || student), the mean over the samples."""
    p = (teacher / t_teacher).softmax(1)
    return (p * (p.log() - (student / t_student).log_softmax(1))).sum(1).mean()


def check_make(answer: Any) -> str | None:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), the mean over the samples."""
    t = 2.5
    found = plain(call(answer, STUDENT.clone(), TEACHER.clone(), t))
    if isinstance(found, bool) or not isinstance(found, (int, float)):
        return "return one number: the mean over the samples."
    right = _divergence(STUDENT, TEACHER, t, t)
    p = (TEACHER / t).softmax(1)
    entropy = -(p * p.log()).sum(1).mean()
    wrong = (
        (right, "the factor T² is missing: a soft target's gradient shrinks by T², and this makes up for it."),
        (t * right, "T came in once; it must come in squared, because the gradient shrinks by T²."),
        (_divergence(STUDENT, TEACHER, 1, 1), "the temperature did nothing: divide both outputs by it first."),
        (t**2 * _divergence(STUDENT, TEACHER, 1, t), "only the teacher was softened. Divide the student's by T too."),
        (t**2 * _divergence(STUDENT, TEACHER, t, 1), "only the student was softened. Divide the teacher's by T too."),
        (t**2 * _divergence(TEACHER, STUDENT, t, t), "student and teacher changed places: it is the teacher's "
         "probabilities that weigh the logarithms."),
        (t**2 * right * len(STUDENT), "that is the sum over the samples; take their mean."),
        (t**2 * right / STUDENT.shape[1], "that is the mean over the classes too: sum over them, and take the mean "
         "over the samples. (`reduction=\"batchmean\"` does it.)"),
        (t**2 * (right + entropy), "that is the cross-entropy. The teacher's own entropy is not the student's fault: "
         "subtract it."),
        (-(t**2) * right, "the sign is reversed: a divergence is never negative."),
    )  # fmt: skip
    if abs(found - float(t**2 * right)) < 1e-5:
        return None
    near = [message for value, message in wrong if abs(found - float(value)) < 1e-5]
    return near[0] if near else "it is T² times the mean, over the samples, of the sum of p · (log p - log q)."


EXERCISES = (
    Exercise(
        id="09-1",
        title="Find the point of no return",
        kind="read",
        difficulty=1,
        minutes=3,
        task=(
            "A dense network reads 95 %. Pruned and retrained for long, it reads 94.5 % at sparsity 0.9, 94 % at 0.95, "
            "91 % at 0.97, and 70 % at 0.99.\n\n"
            "What is the highest of these sparsities from which it comes back to within 2 points of dense? Set "
            "`returns` to it."
        ),
        answer="returns",
        stub="returns = ...  # a sparsity, such as 0.9",
        hints=(
            "Within 2 points of 95 % means: at least 93 %.",
            "Go down the rows until the first one that is below; you want the one before it.",
            "0.95 reads 94 %, and 0.97 only 91 %.",
        ),
        solution="returns = 0.95",
        check=check_read,
        wrong=(
            WrongAnswer("returns = 0.9", "one row further"),
            WrongAnswer("returns = 0.97", "4 points below"),
            WrongAnswer("returns = 0.99", "the cliff itself"),
            WrongAnswer("returns = 95", "0.95"),
        ),
        praise="A point of no return has two parameters: how long you retrain, and how far below is still good enough.",
    ),
    Exercise(
        id="09-2",
        title="The same share of what is left",
        kind="modify",
        difficulty=2,
        minutes=6,
        task=(
            "`targets(final, rounds)` says how sparse the network is after each round. Now it takes the same *number* "
            "of weights each time, so that the last round takes nearly all that is left: for 0.9 in three rounds "
            "0.3, 0.6, 0.9, which leaves 70, 40 and 10 %.\n\n"
            "Change it so that each round takes the same *share of what is left*, as the lottery tickets were found: "
            "for 0.875 in three rounds 0.5, 0.75, 0.875."
        ),
        answer="targets",
        stub=(
            "def targets(final, rounds):\n    return ...  # it was [final * n / rounds for n in range(1, rounds + 1)]"
        ),
        hints=(
            "Follow the share that *stays*: 1 - final in the end, and each round multiplies it by the same factor.",
            "That factor is (1 - final) ** (1 / rounds).",
            "After n rounds (1 - final) ** (n / rounds) stays; the sparsity is one minus that.",
        ),
        solution=(
            "def targets(final, rounds):\n    return [1 - (1 - final) ** (n / rounds) for n in range(1, rounds + 1)]\n"
        ),
        check=check_modify,
        wrong=(
            WrongAnswer(
                "def targets(final, rounds):\n    return [final * n / rounds for n in range(1, rounds + 1)]",
                "still linear",
            ),
            WrongAnswer(
                "def targets(final, rounds):\n    return [(1 - final) ** (n / rounds) for n in range(1, rounds + 1)]",
                "*stay*",
            ),
            WrongAnswer(
                "def targets(final, rounds):\n    return [final ** (n / rounds) for n in range(1, rounds + 1)]",
                "what shrinks by the same factor",
            ),
            WrongAnswer(
                "def targets(final, rounds):\n    return [1 - (1 - final) ** (1 / rounds)] * rounds",
                "after each round",
            ),
            WrongAnswer(
                "def targets(final, rounds):\n"
                "    return [final * (1 - (1 - n / rounds) ** 3) for n in range(1, rounds + 1)]",
                "cubic",
            ),
        ),
        praise="This is `schedules.Exponential`: a fifth of what is left each round found the first tickets.",
    ),
    Exercise(
        id="09-3",
        title="Learn from the teacher",
        kind="make",
        difficulty=3,
        minutes=10,
        task=(
            "Write `teachers_loss(student, teacher, temperature)`. Both are outputs (n, classes), before any softmax. "
            "Divide them by the temperature T; let p be the teacher's probabilities and q the student's. The loss is "
            "T² times the Kullback-Leibler divergence, the sum over the classes of p · (log p - log q), its mean over "
            "the samples."
        ),
        answer="teachers_loss",
        stub="def teachers_loss(student, teacher, temperature):\n    return ...  # one number",
        hints=(
            "`(teacher / temperature).softmax(1)` is p; `log_softmax(1)` of the student's gives log q.",
            "Sum over dimension 1, the classes, then take the mean over the samples.",
            "At the end multiply by `temperature ** 2`.",
        ),
        solution=(
            "def teachers_loss(student, teacher, temperature):\n"
            "    p = (teacher / temperature).softmax(1)\n"
            "    log_q = (student / temperature).log_softmax(1)\n"
            "    return temperature**2 * (p * (p.log() - log_q)).sum(1).mean()\n"
        ),
        check=check_make,
        wrong=(
            WrongAnswer(
                "def teachers_loss(student, teacher, temperature):\n"
                "    p = (teacher / temperature).softmax(1)\n"
                "    log_q = (student / temperature).log_softmax(1)\n"
                "    return (p * (p.log() - log_q)).sum(1).mean()",
                "T² is missing",
            ),
            WrongAnswer(
                "def teachers_loss(student, teacher, temperature):\n"
                "    p = teacher.softmax(1)\n"
                "    return (p * (p.log() - student.log_softmax(1))).sum(1).mean()",
                "the temperature did nothing",
            ),
            WrongAnswer(
                "def teachers_loss(student, teacher, temperature):\n"
                "    q = (student / temperature).softmax(1)\n"
                "    log_p = (teacher / temperature).log_softmax(1)\n"
                "    return temperature**2 * (q * (q.log() - log_p)).sum(1).mean()",
                "changed places",
            ),
            WrongAnswer(
                "def teachers_loss(student, teacher, temperature):\n"
                "    p = (teacher / temperature).softmax(1)\n"
                "    return -temperature**2 * (p * (student / temperature).log_softmax(1)).sum(1).mean()",
                "cross-entropy",
            ),
            WrongAnswer(
                "def teachers_loss(student, teacher, temperature):\n"
                "    p = (teacher / temperature).softmax(1)\n"
                "    log_q = (student / temperature).log_softmax(1)\n"
                "    return temperature**2 * (p * (p.log() - log_q)).mean()",
                "the classes too",
            ),
        ),
        praise="That is the soft half of distillation; the labels' own cross-entropy is the other half.",
    ),
)
