"""How surprised a language model is by a text it has not seen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from scipy.special import stdtrit
from torch import Tensor, nn
from torch.nn import functional as F

from ..core import PruneError, device_of, shape
from ..language import check_tokens, next_tokens
from .conditions import attempt, undisturbed
from .text import plural


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
    """
    if rows.dim() != 2 or rows.shape[1] < 2:
        raise PruneError(f"perplexity of ids {shape(rows)}: give windows (n, length), length at least 2")
    check_tokens(model, rows)
    losses: list[float] = []
    right = 0
    with undisturbed(model), torch.no_grad():
        for some in rows.split(batch_size):
            inputs, targets = next_tokens(some.to(device_of(model)))
            logits = attempt(model, {"input_ids": inputs, "use_cache": False})
            _check_predicts(model, logits, targets)
            losses += _means(logits, targets)
            right += int((logits.argmax(-1) == targets).sum())
    if not all(map(math.isfinite, losses)):
        raise PruneError(f"the logits of {type(model).__name__} are not finite on sequence {_first_bad(losses)}")
    tokens = rows[:, 1:].numel()
    value = math.exp(sum(losses) / len(losses))
    return Perplexity(value, _interval(losses), tuple(losses), tokens, right / tokens)


def _check_predicts(model: nn.Module, logits: Any, targets: Tensor) -> None:
    given = shape(logits) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
    fits = isinstance(logits, Tensor) and logits.dim() == 3 and logits.shape[:2] == targets.shape
    if not fits or int(targets.max()) >= logits.shape[-1]:
        raise PruneError(
            f"{type(model).__name__} gives {given} for ids {shape(targets)}, the largest {int(targets.max())}: not "
            "logits (n, length, vocabulary) of the next token. Perplexity is of causal language models, such as "
            "AutoModelForCausalLM loads; a classifier has an accuracy"
        )


def _means(logits: Tensor, targets: Tensor) -> list[float]:
    """The mean loss of each sequence."""
    return [float(F.cross_entropy(one.float(), told)) for one, told in zip(logits, targets, strict=True)]


def _first_bad(losses: list[float]) -> int:
    return next(i for i, loss in enumerate(losses) if not math.isfinite(loss))


def _interval(losses: list[float]) -> tuple[float, float] | None:
    n = len(losses)
    if n < 2:
        return None
    mean, deviation = (float(f(torch.tensor(losses, dtype=torch.float64))) for f in (torch.mean, torch.std))
    reach = float(stdtrit(n - 1, 0.975)) * deviation / math.sqrt(n)
    return math.exp(mean - reach), math.exp(mean + reach)
