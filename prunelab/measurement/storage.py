"""How many numbers a model holds, how many are not zero, and what storing them takes, indices included."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor, nn

from ..core import Mask, PruneError, mask_of, places
from ..layers import prunable
from .conditions import known

GZIP_LEVEL = 6  # what `gzip` does unless told otherwise
_CHUNK = 1 << 24  # bytes handed to zlib at a time

Written: TypeAlias = dict[int, Callable[[], Tensor]]


def count(model: nn.Module) -> tuple[int, int]:
    """(parameters, those of them that are not zero). Tied ones count once; what a mask hides counts as zero."""
    written = _masked(model)
    parameters = nonzero = 0
    for parameter in model.parameters():
        parameters += parameter.numel()
        nonzero += _nonzero(_value(parameter, written))
    return parameters, nonzero


def stored_bytes(model: nn.Module, formats: Iterable[str] | None = None) -> dict[str, int]:
    """Bytes to store a model's parameters and buffers, by format. nnz: the weights that are not zero.

    dense    every number: sum of numel * itemsize
    csr      a weight as a matrix of shape[0] rows: nnz * (itemsize + index) + (rows + 1) * index,
             an index taking 4 bytes (8 from 2^31 entries); pays below half density, in float32
    bitmask  nnz * itemsize + ceil(numel / 8): one bit an entry says whether its value follows
    gzip     what zlib makes of all the raw bytes at level 6; trained float32 hardly shrinks but for its zeros

    csr and bitmask encode what `prunable` names; biases, norms and buffers stay dense. Counted is what a
    checkpoint holds: tied tensors once, no non-persistent buffers, masks as if baked. gzip reads about 20 MB/s
    and never holds more than one tensor's copy. Raises PruneError for an unknown format.
    """
    return {name: FORMATS[name](model) for name in known("formats", FORMATS if formats is None else formats, FORMATS)}


def _dense_bytes(model: nn.Module) -> int:
    return sum(tensor.nbytes for tensor, _ in _stored(model))


def _csr_bytes(model: nn.Module) -> int:
    return sum(_csr(tensor) if weight else tensor.nbytes for tensor, weight in _stored(model))


def _bitmask_bytes(model: nn.Module) -> int:
    return sum(_bitmask(tensor) if weight else tensor.nbytes for tensor, weight in _stored(model))


def _gzip_bytes(model: nn.Module) -> int:
    packer = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, wbits=31)  # 31: with gzip's header and checksum
    packed = 0
    for tensor, _ in _stored(model):
        raw = tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        packed += sum(len(packer.compress(raw[i : i + _CHUNK])) for i in range(0, len(raw), _CHUNK))
    return packed + len(packer.flush())


FORMATS: dict[str, Callable[[nn.Module], int]] = {
    "dense": _dense_bytes,
    "csr": _csr_bytes,
    "bitmask": _bitmask_bytes,
    "gzip": _gzip_bytes,
}


def _csr(weight: Tensor) -> int:
    rows = len(weight)
    columns, nnz = weight.numel() // max(rows, 1), _nonzero(weight)
    index = 4 if max(columns, nnz) < 2**31 else 8
    return nnz * (weight.itemsize + index) + (rows + 1) * index


def _bitmask(weight: Tensor) -> int:
    return _nonzero(weight) * weight.itemsize + -(-weight.numel() // 8)


def _nonzero(tensor: Tensor) -> int:
    return int(torch.count_nonzero(tensor.detach()))


def _stored(model: nn.Module) -> Iterator[tuple[Tensor, bool]]:
    """Each tensor a checkpoint of the baked model holds, once, and whether it is a weight that pruning may zero."""
    weights = _prunable_ids(model)
    written = _masked(model)
    seen = {id(m.mask) for m in model.modules() if isinstance(m, Mask)}  # baking drops the masks themselves
    for tensor in model.state_dict(keep_vars=True).values():
        if isinstance(tensor, Tensor) and id(tensor) not in seen:
            seen.add(id(tensor))
            yield _value(tensor, written).detach(), id(tensor) in weights


def _value(tensor: Tensor, written: Written) -> Tensor:
    return written[id(tensor)]() if id(tensor) in written else tensor


def _prunable_ids(model: nn.Module) -> set[int]:
    try:
        return {id(weight) for weight in prunable(model).values()}
    except PruneError:
        return set()  # a model with nothing to prune is still stored


def _masked(model: nn.Module) -> Written:
    """For each tensor under a mask, by its id, how to get what baking would write; one at a time saves memory."""
    found = [p for p in places(model) if mask_of(p.module, p.attribute) is not None]
    return {id(p.tensor): partial(getattr, p.module, p.attribute) for p in found}
