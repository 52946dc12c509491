"""The exam of notebook 16: a network nobody has pruned yet, a budget, and marks that say why."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

from ... import zoo
from ...budget import GoalNotMet, SearchOptions, fit_budget
from ...core import PruneError
from ...measurement import compare, evaluate
from ...recovery import History, distil, finetune
from ...text import percent
from ..show import display
from ..show.measuring import measured
from . import exercise
from .network_choice import Pair

BUDGET = 0.3  # of the dense network's time, at batch 64 on one thread: at half, all ways are alike within the noise
STEPS = 100  # of retraining, at most
LOST = 0.05  # of the hidden digits, at most
TIE = 0.01  # of the hidden digits: fewer than 8 of 800 pictures apart, nobody has beaten anybody
NETWORK, ID = "exam", "16-exam"
EQUAL_SHARES = SearchOptions(criteria=("magnitude",), rules=("uniform",), finalists=1, front=())
HELD_BACK = 200  # of the course's 1,000 training scans: the exam's network has learnt from the other 800


@dataclass(frozen=True)
class Mark:
    """One rule, whether it was kept, and what was found."""

    rule: str
    kept: bool
    found: str


@dataclass
class Exam:
    """The paper: `model`, and `data` to learn and to choose on; the budget; `retrain`, and `mark` for the answer."""

    model: nn.Module = field(repr=False)
    data: Pair = field(repr=False)
    budget: float = BUDGET
    steps: int = STEPS
    counted: int = 0  # steps that `retrain` has taken; what is trained without it, this paper can't see

    def retrain(self, model: nn.Module, steps: int = STEPS, teacher: nn.Module | None = None, **how: Any) -> History:
        """`recovery.finetune`, or `distil` from a teacher, with the exam's data; the steps are counted."""
        self.counted += steps
        if teacher is None:
            return finetune(model, self.data, steps=steps, **how)
        return distil(model, teacher, self.data, steps=steps, **how)

    def mark(self, answer: Any) -> None:
        """Judge an answer, a smaller nn.Module, by four rules, and show why. `...` is not attempted yet.

        1. Timed in turns with the dense network, it takes no more than the budget. 2. On the hidden digits it loses no
        more than allowed. 3. There it beats equal shares of magnitude at the same budget, with the same steps.
        4. Its retraining was counted, and short enough. Every marking is an attempt; attempts outlast `lab.reset`.
        """
        if answer is None or answer is Ellipsis:
            display.say(
                "○ The exam: not attempted yet. Put your smaller network in place of the `...`, and run the cell again."
            )
            return
        marks = self.marks(answer)
        kept = sum(m.kept for m in marks)
        exercise.record(ID, kept == len(marks))
        lines = [f"{'✓' if m.kept else '✗'} {m.rule}: {m.found}." for m in marks]
        luck = f"Attempt {exercise.tries(ID)}: the more you take, the more of a good mark is luck."
        lines.append(f"{kept} of {len(marks)} rules kept. {luck}")
        display.say(*lines, edge=display.GOOD if kept == len(marks) else display.WARN)

    def marks(self, answer: Any) -> tuple[Mark, ...]:
        """The marks alone; shows and stores nothing."""
        if not isinstance(answer, nn.Module):
            return (Mark("The answer is a network", False, f"it is a {type(answer).__name__}: hand in an nn.Module"),)
        if answer is self.model:
            own = "it is the exam's own: hand in what you made of it"
            return (Mark("The answer is a smaller network", False, own),)
        rival = equal_shares(self)
        try:
            ratio, hidden = self._worth(answer.eval(), rival)
        except PruneError as error:
            return (Mark("The answer runs on the exam's digits", False, str(error)),)
        return (*judged(ratio, hidden, self.budget), self._steps(answer))

    def _worth(self, answer: nn.Module, rival: nn.Module) -> tuple[float, dict[str, float]]:
        digits = split()[1]
        with torch.no_grad():
            timed = compare({"dense": self.model, "yours": answer}, digits[:64][0], clock="steady", rounds=15)
        networks = {"dense": self.model, "yours": answer, "equal shares": rival}
        hidden = {name: evaluate(m, digits).accuracy for name, m in networks.items()}
        return 1 / timed.speedup["yours"].ratio, hidden

    def _steps(self, answer: nn.Module) -> Mark:
        """Whether the paper knows of the answer's retraining: trained weights are no longer among the network's own."""
        rule = f"At most {self.steps} counted steps"
        if self.counted:
            return Mark(rule, self.counted <= self.steps, f"this paper has counted {self.counted}")
        own = torch.cat([p.detach().flatten() for p in self.model.parameters()])
        its = torch.cat([p.detach().flatten() for p in answer.parameters()])
        trained = torch.isin(its, own).float().mean() < 0.5
        found = "its weights were trained, and not by `paper.retrain`" if trained else "not retrained at all"
        return Mark(rule, not trained, found)


def exam() -> Exam:
    """The exam's network, trained, with digits to learn and to choose on; those it is marked on are made for marking.

    A fresh paper, with no step counted, every time. What no code can see is a matter of honour: the rules stand in the
    notebook.
    """
    return Exam(zoo.checkpoint(NETWORK), split()[0])


def split() -> tuple[Pair, TensorDataset]:
    """The exam's (train, valid), and its hidden digits: four views of each of 200 scans held back from training.

    The zoo's scans come in an order that keeps every class in proportion wherever it is cut.
    """
    digits, origin = zoo.load("digits"), zoo.load("digits").origin["train"]
    held = torch.isin(origin, origin[:HELD_BACK])
    rest, hidden = (TensorDataset(*(t[rows] for t in digits.train.tensors)) for rows in (~held, held))
    return Pair(rest, digits.valid), hidden


def equal_shares(paper: Exam) -> nn.Module:
    """The rival: magnitude, the same share of every layer, the same budget and steps."""
    options: dict[str, Any] = {"latency": paper.budget, "recover_steps": paper.steps, "how": EQUAL_SHARES}
    try:
        return fit_budget(paper.model, paper.data, **options, progress=False).model
    except GoalNotMet as missed:
        if missed.result is None:
            raise
        return missed.result.model


def judged(ratio: float, hidden: dict[str, float], budget: float = BUDGET) -> tuple[Mark, ...]:
    """The three rules, on what was measured: the share of the time, and the accuracies on the hidden digits."""
    lost = hidden["dense"] - hidden["yours"]
    lead = hidden["yours"] - hidden["equal shares"]
    beaten = "ahead by" if lead >= 0 else "behind by"
    close = " (too little to tell)" if abs(lead) < TIE else ""
    takes = f"it takes {measured(ratio, '%')} of the time, {percent(budget, digits=0)} allowed"
    return (
        Mark("It is within the budget", ratio <= budget, takes),
        Mark("It still reads", lost <= LOST, f"{measured(lost, 'points')} of the hidden digits lost, 5 allowed"),
        Mark("It beats equal shares", lead >= TIE, f"{beaten} {measured(abs(lead), 'points')}{close}"),
    )
