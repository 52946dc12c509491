"""A whole decoder, pruned one block at a time: only one block's statistics are held, and the inputs of the next."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..allocation import NM, check_target
from ..calibration import Calibration
from ..core import Masks, PruneError, device_of, shape
from ..criteria.registry import finite_weights
from ..decoders import Block, blocks
from ..language import check_tokens
from ..measurement.conditions import attempt, check_plain, pair, undisturbed
from .methods import Method

Told = dict[str, Any]  # what a block is given by keyword: masks and positions, which may differ from block to block
Passing = list[tuple[Tensor, list[Told]]]  # of each sequence: what enters a block, and what each block is told


def blockwise(
    model: nn.Module, calib: Calibration, method: Method, sparsity: float | NM, *, progress: bool = False
) -> Masks:
    """Prune every linear layer of a decoder's blocks in place; returns the masks, for `apply` to hold the zeros.

    Block by block: the inputs are run through it and each layer's statistic gathered; its weights are pruned; the
    inputs are run through what is left, and its outputs are the next block's inputs. So a block is judged on what it
    will really see, and memory stays near one block beyond the model. Embeddings, norms and the output layer stay.
    The calibration's inputs are token ids (n, length); it looks at no targets.

    The weights are kept on disk until all is done: if anything fails, the model is as it was. Raises PruneError for a
    model that is no Llama-like decoder, wears masks, or is not all in memory, and for tokens it does not know.
    """
    check_target(None if isinstance(sparsity, NM) else sparsity, sparsity if isinstance(sparsity, NM) else "row")
    check_plain(model)
    found = blocks(model)
    _check_present(model)
    finite_weights(model)
    packed: dict[str, Packed] = {}
    with undisturbed(model), torch.no_grad(), _journal(model) as note:
        passing = _entering(model, [b.module for b in found], calib)
        for at, block in enumerate(tqdm(found, desc="blocks", unit="block", disable=not progress, leave=False)):
            note(block)
            packed |= _prune_block(block, [(x, told[at]) for x, told in passing], method, sparsity)
            for i, (x, told) in enumerate(passing):  # in place: two lists of them would be held at once
                passing[i] = _through(block.module, x, told[at]), told
    return {name: packed.pop(name).whole() for name in list(packed)}


@dataclass(frozen=True)
class Packed:
    """A mask, eight entries a byte: a fifth of a float32 model's size would else stand beside the statistics."""

    bits: np.ndarray[Any, Any]
    size: torch.Size
    device: torch.device

    @classmethod
    def of(cls, mask: Tensor) -> Packed:
        """The mask, packed."""
        return cls(np.packbits(mask.cpu().numpy()), mask.shape, mask.device)

    def whole(self) -> Tensor:
        """The mask again, on its device."""
        found = np.unpackbits(self.bits, count=self.size.numel()).view(bool)
        return torch.from_numpy(found).view(self.size).to(self.device)


def _prune_block(
    block: Block, given: list[tuple[Tensor, Told]], method: Method, sparsity: float | NM
) -> dict[str, Packed]:
    layers = {name: m for name, m in block.module.named_modules() if isinstance(m, nn.Linear)}
    gathered: dict[nn.Module, Tensor] = {}

    def note(layer: nn.Module, args: tuple[Any, ...]) -> None:
        found = method.gather(args[0].flatten(0, -2).float())
        gathered[layer] = gathered[layer].add_(found) if layer in gathered else found

    handles = [layer.register_forward_pre_hook(note) for layer in layers.values()]
    try:
        for x, told in given:
            _through(block.module, x, told)
    finally:
        for handle in handles:
            handle.remove()
    packed = {}
    for name, layer in layers.items():
        full = f"{block.path}.{name}.weight"
        statistic = gathered.pop(layer)
        if not torch.isfinite(statistic).all():
            raise PruneError(f"the inputs of {full} {shape(layer.weight)} are not finite: look for NaN in the weights")
        new, mask = method(layer.weight.detach(), statistic, sparsity, full)
        packed[full] = Packed.of(mask)
        layer.weight.copy_(new)
    return packed


class _Reached(Exception):
    """The last block of interest was reached: there is no need to run on."""


def _entering(model: nn.Module, found: list[nn.Module], calib: Calibration) -> Passing:
    """A sequence at a time: the hidden states that the first block is given, and what each block is told.

    Gemma's blocks take turns with two masks. Blocks of a Llama are all told the same: once a sequence has shown that,
    others of its length (a short one fits into any window) are run to the first block only.
    """
    passing: Passing = []
    alike: set[int] = set()  # lengths
    for ids in _sequences(model, calib):
        length = ids.shape[1]
        hidden, told = _caught(model, found[:1] if length in alike else found, ids)
        if all(_same(one, told[0]) for one in told):
            alike.add(length)
            told = told[:1] * len(found)
        passing.append((hidden, told))
    return passing


def _caught(model: nn.Module, watched: list[nn.Module], ids: Tensor) -> tuple[Tensor, list[Told]]:
    """What the first of the blocks is given and each of them is told; none after the last of them is run."""
    hidden: list[Tensor] = []
    told: list[Told] = []

    def catch(module: nn.Module, args: tuple[Any, ...], kwargs: Told) -> None:
        if len(args) != 1:
            raise PruneError(f"{type(module).__name__} takes {len(args)} positional inputs: blockwise replays just one")
        if not hidden:
            hidden.append(args[0])
        told.append(kwargs)
        if module is watched[-1]:
            raise _Reached

    handles = [block.register_forward_pre_hook(catch, with_kwargs=True) for block in watched]
    try:
        attempt(model, {"input_ids": ids, "use_cache": False})
    except PruneError as error:
        if not isinstance(error.__cause__, _Reached):
            raise
    finally:
        for handle in handles:
            handle.remove()
    if len(told) != len(watched):
        raise PruneError(
            f"{type(model).__name__} runs {len(told)} of its {len(watched)} blocks on ids {shape(ids)}, and blockwise "
            "needs each to run once: look at config.num_hidden_layers"
        )
    return hidden[0], told


def _same(one: Told, other: Told) -> bool:
    """Whether two blocks were told the very same objects."""
    return one.keys() == other.keys() and all(one[key] is other[key] for key in one)


def _sequences(model: nn.Module, calib: Calibration) -> Iterator[Tensor]:
    """The calibration's token ids, one (1, length) at a time: the widest layer's inputs are what takes memory."""
    for batch in calib.batches:
        ids = pair(batch)[0]
        if not isinstance(ids, Tensor) or ids.dim() != 2:
            given = shape(ids) if isinstance(ids, Tensor) else type(ids).__name__
            raise PruneError(f"the calibration's inputs are {given}: give token ids (n, length), as language.windows")
        check_tokens(model, ids)
        yield from ids.to(device_of(model)).split(1)


def _through(block: nn.Module, x: Tensor, told: Told) -> Tensor:
    out = block(x, **told)
    return out[0] if isinstance(out, tuple) else out


def _check_present(model: nn.Module) -> None:
    away = [name for name, p in model.named_parameters() if p.device.type == "meta"]
    if away:
        raise PruneError(
            f"{away[0]} and {len(away) - 1} more weights of this {type(model).__name__} are offloaded (device 'meta'), "
            "where pruning in place can't reach them: load the model with all its weights in memory, on any devices"
        )


@contextmanager
def _journal(model: nn.Module) -> Iterator[Any]:
    """Gives a function that writes a block's weights to disk; if the block of code fails, all of them come back."""
    with tempfile.TemporaryDirectory(prefix="prunelab-") as folder:
        noted: list[tuple[Block, Path]] = []

        def note(block: Block) -> None:
            path = Path(folder) / f"{len(noted)}.safetensors"
            state = {n: p.detach().contiguous() for n, p in block.module.named_parameters()}
            try:
                save_file(state, path)
            except Exception as error:  # safetensors' own, or the system's
                raise PruneError(f"no copy of {block.path} could be kept in {folder} ({error}): make room") from error
            noted.append((block, path))

        try:
            yield note
        except BaseException:
            for block, path in noted:
                saved = load_file(path)
                for name, parameter in block.module.named_parameters():
                    parameter.data.copy_(saved[name])
            raise
