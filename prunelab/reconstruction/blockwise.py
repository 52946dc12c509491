"""A whole model, pruned one block at a time: only one block's statistics are held, and the inputs of the next."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..allocation import NM, check_sparsity, check_target
from ..calibration import Calibration
from ..calibration.samples import sequences, wide
from ..core import Masks, PruneError, find, join, named, shape
from ..criteria.registry import finite
from ..data import tensors
from ..decoders import Block, blocks
from ..layers import CONV1D, layer_of, prunable
from ..masking import current_masks
from ..running import attempt, check_plain, entering, hooked, leaving, uncached, undisturbed
from ..text import listed
from .sparsegpt import cheapest_gone, kept_before, sparsegpt


class Method(Protocol):
    """Gathers a statistic of a layer's inputs, and prunes the layer's weight by it."""

    def gather(self, inputs: Tensor) -> Tensor:
        """Inputs (n, in) as a statistic that adds up over batches."""
        ...

    def __call__(
        self, weight: Tensor, gathered: Tensor, sparsity: float | NM, name: str, within: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The weight (out, in) pruned, and what it keeps (out, in) bool: no more than `within` does, if given."""
        ...


@dataclass(frozen=True)
class Wanda:
    """|W_ij| * norm(X_j), the lowest of each row go, or of each m with NM(n, m); what stays is not changed.

    Sun et al. 2023, arXiv 2306.11695. The same score as `criteria.wanda`, on inputs from blocks already pruned. In
    float64: two weights that rounding swaps in an early block change what all later ones see, and after 26 blocks one
    weight in twenty is another.
    """

    def gather(self, inputs: Tensor) -> Tensor:
        """(n, in) -> (in,): the sum of squares of each input."""
        return inputs.double().square().sum(0)

    def __call__(
        self, weight: Tensor, gathered: Tensor, sparsity: float | NM, name: str, within: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The weight with the lowest of each row at 0; a row (or m) that has lost more before loses no more."""
        scope: str | NM = sparsity if isinstance(sparsity, NM) else "row"
        share = check_target(None if isinstance(sparsity, NM) else sparsity, scope)
        before = kept_before(weight, within, name)
        keep = cheapest_gone(weight.abs() * gathered.sqrt(), before, share, scope)
        return weight * keep, keep


@dataclass(frozen=True)
class SparseGPT:
    """`sparsegpt` as a method: what goes is chosen by its cost, and what stays is changed to make up for it."""

    damping: float = 0.01
    columns: int = 128

    def gather(self, inputs: Tensor) -> Tensor:
        """(n, in) -> (in, in): the Gram matrix, in float64 as what is computed of it."""
        wide = inputs.double()
        return wide.T @ wide

    def __call__(
        self, weight: Tensor, gathered: Tensor, sparsity: float | NM, name: str, within: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The weight pruned and repaired."""
        own = {"damping": self.damping, "columns": self.columns}
        return sparsegpt(weight, gathered, sparsity, **own, name=name, within=within)  # type: ignore[arg-type]


Told = tuple[tuple[Any, ...], dict[str, Any]]  # what a block is given beside its input, by position and by keyword
Passing = list[tuple[Tensor, list[Told]]]  # of each sequence: what enters a block, and what each block is told


def blockwise(
    model: nn.Module,
    calib: Calibration,
    method: Method,
    sparsity: float | NM | Mapping[str, float],
    *,
    within: Mapping[str, Tensor] | None = None,
    progress: bool = False,
) -> Masks:
    """Prune every linear layer of a model's blocks in place; returns the masks, for `apply` to hold the zeros.

    Block by block: the inputs are run through it and each layer's statistic gathered; its weights are pruned; the
    inputs are run through what is left, and its outputs are the next block's inputs. So a block is judged on what it
    will really see, and memory stays near one block beyond the model. Stack after stack: a decoder is told what its
    pruned encoder gives. Embeddings, norms and the output layer stay; so do, with a warning, a layer that its block
    never calls, and what else has weights in a block: convolutions, fused experts, torch's attention.

    The calibration's inputs are token ids (n, length), or what else the model takes; padding, as `attention_mask` says
    it, is cut off, and a sample is seen alone. It looks at no targets.

    sparsity: of every layer; or the share of each by its weight's name, such as `layerwise.Owl` makes.

    What an earlier pruning took stays 0 and counts as pruned: by masks that the model wears, or `within`, what was kept
    by tensor (`Pruned.masks`, or a `Keep` of `granularity.weights`). Of a model that was baked:
    within={name: w != 0 for name, w in prunable(model).items()}. Where more has gone than is asked, no more goes.

    The weights are kept on disk until all is done: if anything fails, the model is as it was. Raises PruneError for a
    model without blocks, or with LoRA or shared ones, or not all in memory, and for tokens it does not know.
    """
    if not isinstance(sparsity, Mapping):
        check_target(None if isinstance(sparsity, NM) else sparsity, sparsity if isinstance(sparsity, NM) else "row")
    check_plain(model, ours=False)
    found = blocks(model)
    each = _of_layers(sparsity, [path for block in found for path in _linear(block).values()])
    finite(prunable(model))
    kept = _kept_before(model, within or {})
    packed: dict[str, np.ndarray[Any, Any]] = {}
    with undisturbed(model), uncached(model), torch.no_grad(), _journal() as note:
        passing: Passing = []
        for block in tqdm(found, desc="blocks", unit="block", disable=not progress, leave=False):
            stack = [b for b in found if b.stack == block.stack]
            at = stack.index(block)
            passing = passing if at else _entering(model, [b.module for b in stack], calib)
            note(block)
            packed |= _prune_block(model, block, [(x, told[at]) for x, told in passing], method, each, kept)
            for i, (x, told) in enumerate(passing):  # in place: two lists of them would be held at once
                passing[i] = _through(block.module, x, told[at]), told
    weights = named(model)
    return {name: _unpacked(packed.pop(name), weights[name]) for name in list(packed)}


def _packed(mask: Tensor) -> np.ndarray[Any, Any]:
    """Eight entries a byte: a fifth of a float32 model's size would else stand beside the statistics."""
    return np.packbits(mask.cpu().numpy())


def _unpacked(bits: np.ndarray[Any, Any], weight: Tensor) -> Tensor:
    """The weight's mask again, on its device."""
    found = np.unpackbits(bits, count=weight.numel()).view(bool)
    return torch.from_numpy(found).view(weight.shape).to(weight.device)


def _kept_before(model: nn.Module, within: Mapping[str, Tensor]) -> Masks:
    """What earlier prunings kept, by tensor: the masks worn, and `within` in the tensors' shapes."""
    kept, tensors = current_masks(model), named(model)
    for name, mask in within.items():
        weight = find(tensors, name)
        if mask.dtype != torch.bool or mask.numel() != weight.numel():
            raise PruneError(
                f"within has {mask.dtype} {shape(mask)} for {name} {shape(weight)}: give a bool for each, True = keep"
            )
        mask = mask.view(weight.shape).to(weight.device)
        kept[name] = kept[name] & mask if name in kept else mask
    return kept


def _linear(block: Block) -> dict[nn.Module, str]:
    """The linear layers of a block, and the names of their weights."""
    layers = ((join(block.path, name), m) for name, m in block.module.named_modules())
    return {m: f"{path}.weight" for path, m in layers if isinstance(m, nn.Linear) or layer_of(m) is CONV1D}


def _of_layers(sparsity: float | NM | Mapping[str, float], names: list[str]) -> Mapping[str, float | NM]:
    """The sparsity of each layer by its weight's name, checked where it was given by name."""
    if not isinstance(sparsity, Mapping):
        return dict.fromkeys(names, sparsity)
    astray = [n for n in sparsity if n not in names]
    lacking = [n for n in names if n not in sparsity]
    if astray or lacking:
        what = f"{astray[0]!r} is none of them" if astray else f"there is none for {listed(lacking)}"
        raise PruneError(f"give a share for each weight of the blocks, 0 where nothing shall go: {what}")
    for name, share in sparsity.items():
        try:
            check_sparsity(share)
        except PruneError as error:
            raise PruneError(f"of {name}: {error}") from error
    return sparsity


def _prune_block(
    model: nn.Module,
    block: Block,
    given: list[tuple[Tensor, Told]],
    method: Method,
    sparsity: Mapping[str, float | NM],
    kept: Masks,
) -> dict[str, np.ndarray[Any, Any]]:
    paths = _linear(block)
    other = [n for n in prunable(model) if n.startswith(f"{block.path}.") and n not in paths.values()]
    if other:
        warnings.warn(f"not pruned, for they are no linear layers: {', '.join(other)}", stacklevel=3)
    tensors = named(model)
    weights = {layer: find(tensors, path) for layer, path in paths.items()}  # those under masks
    for layer, path in paths.items():
        if path in kept:  # what comes out of a layer goes into the others
            weights[layer].masked_fill_(~kept[path], 0)
    gathered: dict[nn.Module, Tensor] = {}

    def note(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found = method.gather(wide(entering(args, kwargs).flatten(0, -2)))
        gathered[layer] = gathered[layer].add_(found) if layer in gathered else found

    with hooked(paths, note):
        for x, told in given:
            _through(block.module, x, told)
    packed = {}
    for layer, full in paths.items():
        weight, statistic = weights[layer], gathered.pop(layer, None)
        if statistic is None:
            said = f"no inputs seen of {full} {shape(weight)}: its block never calls the layer, and it is not pruned"
            warnings.warn(said, stacklevel=3)
            continue
        if not torch.isfinite(statistic).all():
            raise PruneError(f"the inputs of {full} {shape(weight)} are not finite: look for NaN in the weights")
        turn = Tensor.t if layer_of(layer) is CONV1D else Tensor.detach  # the one's weight is (in, out)
        before = turn(kept[full]) if full in kept else None
        new, mask = method(turn(weight.detach()), statistic, sparsity[full], full, before)
        packed[full] = _packed(turn(mask))
        weight.copy_(turn(new))
    return packed


class _Reached(Exception):
    """The last block of interest was reached: there is no need to run on."""


def _entering(model: nn.Module, found: list[nn.Module], calib: Calibration) -> Passing:
    """A sample at a time: the hidden states that the first block is given, and what each block is told.

    Gemma's blocks take turns with two masks. Blocks of a Llama are all told the same: once a sequence has shown that,
    others of its length (a short one fits into any window) are run to the first block only.
    """
    passing: Passing = []
    alike: set[int] = set()  # lengths
    for given in sequences(model, calib):
        length = given["input_ids"].shape[1] if isinstance(given, Mapping) and given.keys() == {"input_ids"} else 0
        hidden, told = _caught(model, found[:1] if length in alike else found, given)
        if length and all(_same(one, told[0]) for one in told):
            alike.add(length)
            told = told[:1] * len(found)
        passing.append((hidden, told))
    return passing


def _caught(model: nn.Module, watched: list[nn.Module], given: Any) -> tuple[Tensor, list[Told]]:
    """What the first of the blocks is given and each of them is told; none after the last of them is run."""
    hidden: list[Tensor] = []
    told: list[Told] = []

    def catch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not hidden:
            hidden.append(entering(args, kwargs))
        told.append((args[1:], {k: v for k, v in kwargs.items() if args or k != "hidden_states"}))
        if module is watched[-1]:
            raise _Reached

    try:
        with hooked(watched, catch):
            attempt(model, given)
    except PruneError as error:
        if not isinstance(error.__cause__, _Reached):
            raise
    if len(told) != len(watched):
        shapes = ", ".join(map(shape, tensors(given)))
        raise PruneError(
            f"{type(model).__name__} runs {len(told)} of its {len(watched)} blocks on {shapes}, and blockwise "
            "needs each to run once: look at config.num_hidden_layers"
        )
    return hidden[0], told


def _same(one: Told, other: Told) -> bool:
    """Whether two blocks were told the very same objects."""
    (more, named), (others, as_named) = one, other
    pairs = [*zip(more, others, strict=False), *((named[key], as_named.get(key)) for key in named)]
    return len(more) == len(others) and named.keys() == as_named.keys() and all(a is b for a, b in pairs)


def _through(block: nn.Module, x: Tensor, told: Told) -> Tensor:
    more, named = told
    return leaving(block(x, *more, **named))


@contextmanager
def _journal() -> Iterator[Any]:
    """Gives a function that writes a block's weights to disk; if the block of code fails, all of them come back."""
    with tempfile.TemporaryDirectory(prefix="prunelab-") as folder:
        noted: list[tuple[nn.Module, str]] = []

        def note(block: Block) -> None:
            path = f"{folder}/{len(noted)}.safetensors"
            try:
                save_file({n: p.detach().contiguous() for n, p in block.module.named_parameters()}, path)
            except Exception as error:  # safetensors' own, or the system's
                raise PruneError(f"no copy of {block.path} could be kept in {folder} ({error}): make room") from error
            noted.append((block.module, path))

        try:
            yield note
        except BaseException:
            for module, path in noted:
                saved = load_file(path)
                for name, parameter in module.named_parameters():
                    parameter.data.copy_(saved[name])
            raise
