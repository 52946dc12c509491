"""Padding: what a batch's attention mask says no token stands at, and inputs without it.

Layers flatten their inputs, route them, or put tokens first: a mask fits few of them. So padding is cut off before the
model runs, and no layer ever sees any.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..batches import mapped, tensors
from ..core import PruneError, shape
from ..language import check_tokens
from ..measurement import conditions
from .samples import Calibration, inputs_on

ENCODER, DECODER = "attention_mask", "decoder_attention_mask"
Span = tuple[int, int]  # the first token of a sequence, and the one after its last


def unpadded(inputs: Any) -> Iterator[Any]:
    """Inputs with padding as several without: the sequences whose tokens stand at the same places, cut to these.

    Padding is where `attention_mask` (batch, tokens) is 0 before the first or after the last token of a sequence; in
    what is called decoder_..., where `decoder_attention_mask` is. All that is shaped (batch, tokens, ...) is cut. A
    sequence without a token is left out. Warns of a mask that cannot be followed: then padding counts.
    """
    given = inputs if isinstance(inputs, Mapping) else {}
    masks = {name: given[name] for name in (ENCODER, DECODER) if isinstance(given.get(name), Tensor)}
    if all(bool(mask.all()) for mask in masks.values()):
        yield inputs
        return
    reason = next(filter(None, (_unfit(given, name, mask) for name, mask in masks.items())), None)
    if reason:
        warnings.warn(f"{reason}: padding counts as if it were tokens", stacklevel=2)
        yield inputs
        return
    together: dict[tuple[Span, ...], list[int]] = {}
    for row, spans in enumerate(zip(*(_spans(name, mask) for name, mask in masks.items()), strict=True)):
        together.setdefault(spans, []).append(row)
    for spans, rows in together.items():
        if all(end > begin for begin, end in spans):
            at = dict(zip(masks, spans, strict=True))
            yield {key: mapped(_cutter(masks, at, key, rows), value) for key, value in given.items()}


def sequences(model: nn.Module, calib: Calibration) -> Iterator[Any]:
    """The calibration's inputs one sample at a time, without padding: {"input_ids": (1, length), and what else came}.

    Whole numbers alone are token ids (n, length) to a model of transformers; other inputs stay as they are. Raises
    PruneError for tokens that the model does not know.
    """
    for inputs in real_inputs(model, calib):
        whole = isinstance(inputs, Tensor) and not inputs.is_floating_point()
        given = {"input_ids": inputs} if whole and hasattr(model, "config") else inputs
        ids = given.get("input_ids") if isinstance(given, Mapping) else None
        if ids is not None:
            if ids.dim() != 2:
                raise PruneError(f"the calibration has ids {shape(ids)}: give token ids (n, length), as windows does")
            check_tokens(model, ids)
        count = conditions.rows(given)
        for row in range(count):
            yield mapped(_cutter({}, {}, "", [row], count), given)


def real_inputs(model: nn.Module, calib: Calibration) -> Iterator[Any]:
    """The inputs of each batch where the model lies, without padding: for those who look at no labels."""
    for inputs in inputs_on(model, calib):
        yield from unpadded(inputs)


def _side(key: str) -> str:
    return DECODER if key.startswith("decoder_") else ENCODER


def _unfit(given: Mapping[str, Any], name: str, mask: Tensor) -> str | None:
    """Why the inputs can't be cut by a mask, if they can't."""
    if mask.dim() != 2:
        return f"{name} is {shape(mask)}, not (batch, tokens)"
    own = [t for key, value in given.items() if key != name and _side(key) == name for t in tensors(value)]
    if not any(t.shape[:2] == mask.shape for t in own):
        return f"{name} {shape(mask)} fits none of the inputs it is for"
    odd = [key for key, value in given.items() for t in tensors(value) if t.dim() and len(t) not in (1, len(mask))]
    return f"{odd[0]} has not a row for each row of {name} {shape(mask)}" if odd else None


def _spans(name: str, mask: Tensor) -> list[Span]:
    """Where each row's tokens begin and end; (0, 0) for a row without any."""
    real = mask != 0
    positions = torch.arange(1, real.shape[1] + 1, device=mask.device)
    ends = (real * positions).amax(1)
    begins = torch.minimum((~real).cumprod(1).sum(1), ends)
    holes = int((ends - begins).sum() - real.sum())
    if holes:
        warnings.warn(f"{name} {shape(mask)} has {holes} zeros between tokens, and these count", stacklevel=3)
    return list(zip(begins.tolist(), ends.tolist(), strict=True))


def _cutter(
    masks: Mapping[str, Tensor], at: Mapping[str, Span], key: str, rows: list[int], size: int = 0
) -> Callable[[Tensor], Tensor]:
    """What takes these rows of a tensor, and its tokens if a mask says where they are."""
    mask = masks.get(_side(key))
    total = size or len(next(iter(masks.values())))

    def cut(tensor: Tensor) -> Tensor:
        if tensor.dim() > 1 and mask is not None and tensor.shape[1] == mask.shape[1]:
            tensor = tensor[:, slice(*at[_side(key)])]
        return tensor[rows] if tensor.dim() and len(tensor) == total else tensor

    return cut
