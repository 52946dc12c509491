"""How right a model is, and how sure one can be of it: accuracy of a classifier, perplexity of a language model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor, nn
from torch.nn import functional as F

from ..checks import check_count
from ..core import PruneError, check_loaded, device_of, shape
from ..data import EMPTY, batches, to
from ..language import check_tokens, next_tokens
from ..running import attempt, pair, undisturbed
from ..text import plural


@dataclass(frozen=True)
class Evaluation:
    """Mean loss, share of labels predicted right, number of labels, number right."""

    loss: float
    accuracy: float
    n: int
    correct: int

    @property
    def interval(self) -> tuple[float, float]:
        """The accuracy's 95 % Wilson interval."""
        return wilson(self.correct, self.n)


def wilson(correct: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """The interval of shares p that `correct` of `n` does not contradict: |p - correct/n| <= z sqrt(p (1-p) / n).

    Unlike correct/n +- z * (standard error), it stays within [0, 1] and keeps a width when all are right.
    z = 1.96 covers 95 %. Raises PruneError unless 0 <= correct <= n and n > 0. Ours, not scipy's `binomtest`: a
    scan asks it a thousand times, and that takes a millisecond each.

    >>> low, high = wilson(9, 10)
    >>> round(low, 3), round(high, 3)
    (0.596, 0.982)
    """
    if not 0 <= correct <= n or n == 0:
        raise PruneError(f"correct={correct} of n={n}: give 0 <= correct <= n, with n at least 1")
    share = correct / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    reach = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return max(0.0, centre - reach), min(1.0, centre + reach)


def evaluate(
    model: nn.Module,
    data: Any,
    split: str = "valid",
    *,
    batch_size: int = 256,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> Evaluation:
    """Loss and accuracy over a whole split: accuracy = (labels for which argmax of the outputs is right) / labels.

    Outputs (n, classes, ...) go with integer labels (n, ...); `loss` gives the mean over a batch. The model
    may wear masks. It runs in eval mode where it lies; its modes and the random state are as before.
    An output with a NaN counts as wrong. Raises PruneError for empty data and labels that do not fit.

    >>> data = torch.tensor([[2.0, 1.0], [0.0, 3.0], [5.0, 0.0]]), torch.tensor([0, 1, 1])  # the last is wrong
    >>> found = evaluate(nn.Identity(), data)
    >>> found.correct, found.n
    (2, 3)
    """
    check_count("batch_size", batch_size)
    check_loaded(model)
    device, total, correct, n = device_of(model), 0.0, 0, 0
    # Not inference_mode: what a model caches in its first forward must stay usable in training.
    with undisturbed(model), torch.no_grad():
        for batch in batches(data, split, size=batch_size):
            inputs, targets = to(pair(batch), device)
            outputs = attempt(model, inputs)
            _check_fit(type(model).__name__, outputs, targets)
            total += _mean_loss(loss, outputs, targets) * targets.numel()
            correct += right(outputs, targets)
            n += targets.numel()
    if n == 0:
        raise PruneError(EMPTY.format(split))
    return Evaluation(total / n, correct / n, n, correct)


def _mean_loss(loss: Callable[[Tensor, Tensor], Tensor], outputs: Tensor, targets: Tensor) -> float:
    """The loss of a batch as a number; PruneError if it is none, such as a loss for each sample."""
    value = loss(outputs, targets)
    if isinstance(value, Tensor) and value.numel() != 1:
        raise PruneError(f"the loss gives {shape(value)} values for a batch: give their mean, a single number")
    return float(value)


def right(outputs: Tensor, targets: Tensor) -> int:
    """How many labels the outputs' argmax is; an output with a NaN is wrong."""
    hit = outputs.argmax(dim=1) == targets
    return int((hit & ~outputs.isnan().any(dim=1)).sum())  # argmax takes a NaN for the largest


def _check_fit(name: str, outputs: Any, targets: Tensor) -> None:
    if not isinstance(outputs, Tensor):
        raise PruneError(f"{name} returns a {type(outputs).__name__}: accuracy needs a tensor (n, classes)")
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise PruneError(
            f"the labels {shape(targets)} are {targets.dtype}: accuracy needs whole numbers, class 0, 1, ..."
        )
    if outputs.dim() < 2 or (outputs.shape[:1] + outputs.shape[2:]) != targets.shape:
        raise PruneError(
            f"{name} gives outputs of shape {shape(outputs)} for labels of shape {shape(targets)}: "
            "they must be (n, classes, ...) for (n, ...)"
        )
    if targets.numel() and not 0 <= int(targets.min()) <= int(targets.max()) < outputs.shape[1]:
        raise PruneError(
            f"labels run from {int(targets.min())} to {int(targets.max())}, but {name} tells only classes 0 to "
            f"{outputs.shape[1] - 1} apart: its outputs are {shape(outputs)}, the labels {shape(targets)}"
        )


@dataclass(frozen=True, repr=False)
class Perplexity:
    """exp of the mean negative log-likelihood of the next token, in nats: among how many tokens it is as if torn.

    value, interval: the perplexity and its 95 % interval, by Student's t over the sequences, which it takes as
    independent (None for a single one); losses: the mean of each sequence; tokens: predicted in all; accuracy: the
    share of them that the model held for the likeliest.
    """

    value: float
    interval: tuple[float, float] | None
    losses: tuple[float, ...]
    tokens: int
    accuracy: float

    def __repr__(self) -> str:
        spread = "" if self.interval is None else f" [{self.interval[0]:.4g}, {self.interval[1]:.4g}]"
        count = plural(len(self.losses), "sequence")
        return f"perplexity {self.value:.4g}{spread} ({self.tokens:,} tokens in {count})"


def perplexity(model: nn.Module, rows: Tensor, *, batch_size: int = 1) -> Perplexity:
    """Perplexity on token windows (n, length), as `language.windows` cuts them: exp(-mean log p(token | before it)).

    Each window stands alone, so its first token is not predicted, and the others see at most length - 1 before them:
    longer windows give lower values, and only values of the same windows compare. Runs in eval mode where the model
    lies; a model may wear masks. Raises PruneError for ids that the model has no embedding for, for a model that
    does not predict tokens (a classifier), and for logits that are not finite.

    >>> class Guesses(nn.Module):
    ...     def forward(self, input_ids, use_cache):
    ...         return torch.zeros(*input_ids.shape, 8)  # any of 8 tokens is as likely
    >>> round(perplexity(Guesses(), torch.tensor([[1, 2, 3], [4, 5, 6]])).value, 4)
    8.0
    """
    if rows.dim() != 2 or rows.shape[1] < 2:
        raise PruneError(f"perplexity of ids {shape(rows)}: give windows (n, length), length at least 2")
    check_count("batch_size", batch_size)
    check_tokens(model, rows)
    losses: list[float] = []
    hits = 0
    with undisturbed(model), torch.no_grad():
        for some in rows.split(batch_size):
            inputs, targets = next_tokens(some.to(device_of(model)))
            logits = attempt(model, {"input_ids": inputs, "use_cache": False})
            _check_predicts(model, logits, targets)
            losses += [float(F.cross_entropy(one.float(), said)) for one, said in zip(logits, targets, strict=True)]
            hits += int((logits.argmax(-1) == targets).sum())
    broken = [i for i, value in enumerate(losses) if not math.isfinite(value)]
    if broken:
        raise PruneError(f"the logits of {type(model).__name__} are not finite on sequence {broken[0]}")
    tokens = rows[:, 1:].numel()
    value = math.exp(sum(losses) / len(losses))
    interval = tuple(map(math.exp, mean_interval(losses)[1:])) if len(losses) > 1 else None
    return Perplexity(value, interval, tuple(losses), tokens, hits / tokens)  # type: ignore[arg-type]


def _check_predicts(model: nn.Module, logits: Any, targets: Tensor) -> None:
    given = shape(logits) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
    fits = isinstance(logits, Tensor) and logits.dim() == 3 and logits.shape[:2] == targets.shape
    if not fits or int(targets.max()) >= logits.shape[-1]:
        raise PruneError(
            f"{type(model).__name__} gives {given} for ids {shape(targets)}, the largest {int(targets.max())}: not "
            "logits (n, length, vocabulary) of the next token. Perplexity is of causal language models, such as "
            "AutoModelForCausalLM loads; a classifier has an accuracy"
        )


def mean_interval(values: Any) -> tuple[Any, Any, Any]:
    """(mean, low, high): the mean along the first axis, and Student's 95 % interval of it: mean +- t s / sqrt(n).

    >>> mean, low, high = mean_interval([1.0, 2.0, 3.0])  # t(2 degrees) = 4.303, s = 1: 2 +- 4.303 / sqrt(3)
    >>> mean, round(low, 3), round(high, 3)
    (2.0, -0.484, 4.484)
    """
    table = np.asarray(values, dtype=float)
    n = len(table)
    if n < 2:
        raise PruneError(f"{n} value: an interval of a mean takes at least two")
    mean, reach = table.mean(0), stdtrit(n - 1, 0.975) * table.std(0, ddof=1) / math.sqrt(n)
    low, high = mean - reach, mean + reach
    return (mean, low, high) if table.ndim > 1 else (float(mean), float(low), float(high))
