"""Text for a language model: windows of tokens, the loss of the next one, and what the model writes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .core import PruneError, device_of, mode, network, shape
from .data import Batch


def tokens(tokenizer: Any, text: str, model: nn.Module | None = None) -> Tensor:
    """The text as token ids, (n,) int64, without special tokens; with a model, checked against its embedding.

    Raises PruneError for an empty text, and for a tokenizer that knows more tokens than the model embeds: it was made
    for another model.
    """
    if not isinstance(text, str) or not text:
        raise PruneError(
            f"the text is {'empty' if text == '' else type(text).__name__}: give a str with something in it"
        )
    # Not tokenizer(text): that warns of a text longer than the model's context, which `windows` cuts anyway.
    ids = torch.tensor(tokenizer.encode(text, add_special_tokens=False, verbose=False), dtype=torch.int64)
    if model is not None:
        check_tokens(model, ids)
    return ids


def windows(ids: Tensor, length: int, count: int | None = None, *, start: int = 0) -> Tensor:
    """Token ids (n,) cut into consecutive windows, (count, length): as many as fit, or the first `count`.

    `start`: the window to begin with; a negative one counts from the end. Raises PruneError if the text is shorter
    than a window, or than the windows asked for.

    >>> windows(torch.arange(7), 3)  # the seventh fills no window
    tensor([[0, 1, 2],
            [3, 4, 5]])
    """
    if ids.dim() != 1 or length < 2:
        raise PruneError(f"windows of {length} of ids {shape(ids)}: give ids (n,) and a length of at least 2")
    cut = ids[: len(ids) // length * length].view(-1, length)
    first = start if start >= 0 else len(cut) + start
    found = cut[max(first, 0) :][:count]
    if first < 0 or len(found) == 0 or (count is not None and len(found) < count):
        raise PruneError(
            f"the text has {len(ids):,} tokens, {len(cut)} windows of {length}; asked for were "
            f"{'all' if count is None else count} from window {start}: give more text, or shorter windows"
        )
    return found


def next_tokens(rows: Tensor) -> Batch:
    """Windows (n, length) as (inputs, targets), each (n, length - 1): at every position the token that comes next.

    >>> next_tokens(torch.tensor([[1, 2, 3]]))
    (tensor([[1, 2]]), tensor([[2, 3]]))
    """
    return rows[:, :-1], rows[:, 1:]


def next_token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats: logits (n, length, vocabulary) against the next tokens (n, length).

    >>> round(float(next_token_loss(torch.zeros(1, 2, 8), torch.tensor([[3, 5]]))), 4)  # log 8: all as likely
    2.0794
    """
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def check_tokens(model: nn.Module, ids: Tensor) -> None:
    """PruneError if ids are no tokens of the model's: none, not whole numbers, or beyond its embedding."""
    if ids.is_floating_point() or ids.numel() == 0:
        raise PruneError(f"the token ids are {ids.dtype} {shape(ids)}: give whole numbers, at least one")
    rows = _vocabulary(model)
    low, high = int(ids.min()), int(ids.max())
    if rows is not None and not 0 <= low <= high < rows:
        raise PruneError(
            f"token ids run from {low} to {high}, but the embedding of this {type(model).__name__} has {rows:,} rows: "
            "the tokenizer is another model's. Load both from the same place"
        )


def _vocabulary(model: nn.Module) -> int | None:
    """How many tokens the model embeds: as it says itself, or the most that any of its embeddings holds (or None)."""
    try:
        own: Any = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        own = None
    if isinstance(own, nn.Embedding):
        return own.num_embeddings
    return max((m.num_embeddings for m in network(model).modules() if isinstance(m, nn.Embedding)), default=None)


def write(model: nn.Module, tokenizer: Any, prompt: str, count: int = 40, *, cache: bool = True) -> str:
    """What a model writes after a prompt: `count` tokens, each the likeliest, or fewer if it ends before.

    Nothing is drawn, so the same model writes the same text. With `cache=False` every token is computed from the
    whole text so far: slower, and the same.
    """
    ids = tokens(tokenizer, prompt, model)[None].to(device_of(model))
    with mode(model, training=False), torch.no_grad():
        written = continued(model, ids, count, cache=cache)
    return tokenizer.decode(written[0], skip_special_tokens=True)


def continued(model: Any, ids: Tensor, count: int, *, cache: bool = True) -> Tensor:
    """Greedy continuation of (1, n) ids by at most `count` tokens: (1, at most count) ids.

    Raises PruneError for a model that cannot generate.
    """
    if not callable(getattr(model, "generate", None)):
        raise PruneError(f"{type(model).__name__} has no generate(): give a model such as AutoModelForCausalLM loads")
    settings = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, "use_cache": cache}
    seen = torch.ones_like(ids)
    return model.generate(ids, attention_mask=seen, max_new_tokens=count, **settings)[:, ids.shape[1] :]
