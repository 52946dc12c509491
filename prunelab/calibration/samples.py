"""A calibration set, its inputs without padding, and what is common to all that is learned from one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..checks import check_count
from ..core import PruneError, device_of, shape
from ..data import Batch, batches, mapped, take, tensors, to, unlabelled
from ..language import check_tokens
from ..running import attempt, pair, rows

Loss = Callable[[Any, Tensor], Tensor]  # (the model's output, targets) -> a scalar, the mean over the batch


@dataclass(frozen=True)
class Calibration:
    """A fixed set of (inputs, targets) batches and the loss to judge the outputs by: its mean over a batch."""

    batches: tuple[Batch, ...]
    loss: Loss = F.cross_entropy

    def __post_init__(self) -> None:
        if not self.batches:
            raise PruneError("the calibration set is empty: give at least one (inputs, targets) batch")

    @property
    def example(self) -> Any:
        """The first batch's inputs."""
        return _inputs(self.batches[0])

    @classmethod
    def of(
        cls,
        data: Any,
        *,
        split: str = "train",
        samples: int = 256,
        batch_size: int = 64,
        loss: Loss = F.cross_entropy,
    ) -> Calibration:
        """The first `samples` of a split (rounded up to whole batches), in order: the same on every call.

        >>> calib = Calibration.of((torch.zeros(300, 4), torch.zeros(300)), samples=100)
        >>> [len(targets) for _, targets in calib.batches]
        [64, 64]
        """
        check_count("samples", samples)
        check_count("batch_size", batch_size)
        size = min(samples, batch_size)
        return cls(tuple(islice(batches(data, split, size=size), -(-samples // size))), loss)


def needed(calib: Any, criterion: str, what: str = "data to look at") -> Calibration:
    """The calibration a criterion was given, or PruneError that says how to make one."""
    if not isinstance(calib, Calibration):
        given = "nothing" if calib is None else f"a {type(calib).__name__}"
        raise PruneError(f"{criterion} needs {what}, and was given {given}: pass calib=pl.Calibration.of(data)")
    return calib


def on_device(model: nn.Module, calib: Calibration) -> Iterator[tuple[Any, Tensor, float]]:
    """Each batch where the model lies, and its share of all samples."""
    device = _device(model)
    sizes = [rows(pair(batch)[0]) for batch in calib.batches]
    for (inputs, targets), size in zip(calib.batches, sizes, strict=True):
        yield to(inputs, device), targets.to(device), size / sum(sizes)


def _inputs(batch: Any) -> Any:
    split = unlabelled(batch)
    return split if isinstance(split, Mapping) else pair(split)[0]


def _device(model: nn.Module) -> torch.device:
    device = device_of(model)
    if device.type == "meta":
        raise PruneError(f"the weights of this {type(model).__name__} are on the meta device, without values: load it")
    return device


def losses(model: nn.Module, calib: Calibration) -> Iterator[tuple[Tensor, float]]:
    """Each batch's mean loss, and its share of all samples; PruneError where the loss is no finite scalar."""
    for number, (inputs, targets, share) in enumerate(on_device(model, calib), start=1):
        loss = scalar_loss(calib.loss, attempt(model, inputs), targets)
        if not torch.isfinite(loss):
            raise PruneError(
                f"the loss {_name(calib.loss)} is {loss.item()} on batch {number} of {len(calib.batches)} of the "
                "calibration: look for NaN in its inputs, in the weights and BatchNorm statistics, and in the targets"
            )
        yield loss, share


def scalar_loss(loss: Loss, outputs: Any, targets: Tensor, of: Loss | None = None) -> Tensor:
    """loss(outputs, targets), or PruneError if that fails or is no scalar; `of` is the loss it is known by."""
    name = _name(of or loss)
    try:
        value = loss(outputs, targets)
    except Exception as error:  # a loss of one's own raises what it likes
        given = shape(outputs) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise PruneError(
            f"the loss {name} fails on outputs {given} and targets {shape(targets)} {targets.dtype}: {error}. Give a "
            "loss(outputs, targets) that fits this model and data"
        ) from error
    if not isinstance(value, Tensor) or value.dim() > 0:
        given = f"a tensor of shape {shape(value)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise PruneError(
            f"the loss {name} returns {given}: it must be a scalar tensor, the mean over the batch. Take reduction="
            '"mean", or loss=lambda outputs, targets: my_loss(outputs, targets).mean()'
        )
    return value


def _name(loss: Loss) -> str:
    return getattr(loss, "__name__", type(loss).__name__)


def checked(found: Mapping[str, Tensor], weights: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """What was found for each weight, in their order; PruneError for a weight without, or not finite."""
    for name, w in weights.items():
        if name not in found:
            lacking = [n for n in weights if n not in found]
            more = f", and {len(lacking) - 1} more," if len(lacking) > 1 else ""
            raise PruneError(
                f"{name} {shape(w)}{more} has no {what}: the forward does not use it in eval mode, or something stands "
                "between it and the loss, such as .detach(), torch.no_grad() or argmax. Give a loss that reaches it, "
                "remove the unused layer (an auxiliary head, say), or take a criterion that looks at weights only, "
                "such as magnitude"
            )
        if not torch.isfinite(found[name]).all():
            raise PruneError(
                f"{name} {shape(w)} has {what} with NaN or infinities: look for them in the calibration's inputs, for "
                "a sqrt or log at 0 in the forward and the loss, and for half precision that overflows"
            )
    return {name: found[name] for name in weights}


def wide(tensor: Tensor) -> Tensor:
    """In half precision sums and squares lose what they are about."""
    return tensor.float() if tensor.itemsize < 4 else tensor


def add(total: dict[str, Tensor], more: dict[str, Tensor], factor: float = 1.0) -> None:
    """Add factor * more to the total, by name. `more` is emptied: each may be as large as the model."""
    for name in list(more):
        part = more.pop(name).detach() * factor
        total[name] = total[name].add_(part) if name in total else part


ENCODER, DECODER = "attention_mask", "decoder_attention_mask"
Span = tuple[int, int]  # the first token of a sequence, and the one after its last


def unpadded(inputs: Any) -> Iterator[Any]:
    """Inputs with padding as several without: the sequences whose tokens stand at the same places, cut to these.

    Padding is where `attention_mask` (batch, tokens) is 0 before the first or after the last token of a sequence; in
    what is called decoder_..., where `decoder_attention_mask` is. All that is shaped (batch, tokens, ...) is cut. A
    sequence without a token is left out. Warns of a mask that cannot be followed: then padding counts.

    >>> tokens, mask = torch.tensor([[5, 6, 0], [7, 8, 9]]), torch.tensor([[1, 1, 0], [1, 1, 1]])
    >>> sorted(x["input_ids"].tolist() for x in unpadded({"input_ids": tokens, "attention_mask": mask}))
    [[[5, 6]], [[7, 8, 9]]]
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
    for spans, alike in together.items():
        if all(end > begin for begin, end in spans):
            at = dict(zip(masks, spans, strict=True))
            yield {key: take(_cut(key, value, masks, at), alike, rows(masks)) for key, value in given.items()}


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
        count = rows(given)
        for row in range(count):
            yield take(given, slice(row, row + 1), count)


def real_inputs(model: nn.Module, calib: Calibration) -> Iterator[Any]:
    """The inputs of each batch where the model lies, without padding: for those who look at no labels.

    To them a dict of inputs is a batch.
    """
    device = _device(model)
    for batch in calib.batches:
        inputs = to(_inputs(batch), device)
        rows(inputs)  # raises for an empty batch
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


def _cut(key: str, value: Any, masks: Mapping[str, Tensor], at: Mapping[str, Span]) -> Any:
    """The tokens that a mask says are some, of every tensor that has them."""
    side = _side(key)
    if side not in masks:
        return value
    length = masks[side].shape[1]
    return mapped(lambda t: t[:, slice(*at[side])] if t.dim() > 1 and t.shape[1] == length else t, value)
