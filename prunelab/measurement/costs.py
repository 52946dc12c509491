"""What a model costs without a clock: numbers stored, bytes, multiply-accumulates, memory of a forward pass."""

from __future__ import annotations

import weakref
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode

from .. import core
from ..checks import known
from ..core import PruneError, check_loaded, device_of, network
from ..data import tensors, to
from ..layers import prunable
from ..running import attempt, cut, hooked, storage_of, undisturbed, unfused

GZIP_LEVEL = 6  # what `gzip` does unless told otherwise
_CHUNK = 1 << 24  # bytes handed to zlib at a time


def count(model: nn.Module) -> tuple[int, int]:
    """(parameters, those of them that are not zero). Tied ones count once; what a mask hides counts as zero.

    >>> count(nn.BatchNorm2d(8))  # 8 weights of 1, 8 biases of 0
    (16, 8)
    """
    check_loaded(model)
    return core.count(model, {})


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

    >>> layer = nn.Linear(10, 4)  # 40 weights and 4 biases, 4 bytes each
    >>> with torch.no_grad():
    ...     _ = layer.weight[:, 1:].zero_()  # 4 weights stay: 4 * 4 bytes and 40 bits, and 16 bytes of biases
    >>> stored_bytes(layer, ["dense", "bitmask"])
    {'dense': 176, 'bitmask': 37}
    """
    wanted = known("formats", FORMATS if formats is None else formats, FORMATS)
    check_loaded(model)
    return {name: FORMATS[name](_stored(model)) for name in wanted}


Stored: TypeAlias = Iterable[tuple[Tensor, bool]]  # what a checkpoint holds, and whether pruning may zero it


def _encoded(weights: Callable[[Tensor], int]) -> Callable[[Stored], int]:
    """A format that encodes the weights in some way, and keeps all else dense."""
    return lambda stored: sum(weights(t) if weight else t.nbytes for t, weight in stored)


def _csr(weight: Tensor) -> int:
    rows = len(weight)
    columns, nnz = weight.numel() // max(rows, 1), _nonzero(weight)
    index = 4 if max(columns, nnz) < 2**31 else 8
    return nnz * (weight.itemsize + index) + (rows + 1) * index


def _bitmask(weight: Tensor) -> int:
    return _nonzero(weight) * weight.itemsize + -(-weight.numel() // 8)


def _nonzero(tensor: Tensor) -> int:
    return int(torch.count_nonzero(tensor.detach()))


def _gzip(stored: Stored) -> int:
    packer = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, wbits=31)  # 31: with gzip's header and checksum
    packed = 0
    for tensor, _ in stored:
        raw = tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        packed += sum(len(packer.compress(raw[i : i + _CHUNK])) for i in range(0, len(raw), _CHUNK))
    return packed + len(packer.flush())


FORMATS: dict[str, Callable[[Stored], int]] = {
    "dense": _encoded(lambda weight: weight.nbytes),
    "csr": _encoded(_csr),
    "bitmask": _encoded(_bitmask),
    "gzip": _gzip,
}


def _stored(model: nn.Module) -> Iterator[tuple[Tensor, bool]]:
    """Each tensor a checkpoint of the baked model holds, once, and whether it is a weight that pruning may zero."""
    weights = _prunable_ids(model)
    masks = core.all_masks(model)
    masked = {id(place.tensor): place for place, _ in masks}
    seen = {id(mask.mask) for _, mask in masks}  # baking drops the masks themselves
    for tensor in model.state_dict(keep_vars=True).values():
        if isinstance(tensor, Tensor) and id(tensor) not in seen:
            seen.add(id(tensor))
            place = masked.get(id(tensor))  # one at a time saves memory
            value = tensor if place is None else getattr(place.module, place.attribute)
            yield value.detach(), id(tensor) in weights


def _prunable_ids(model: nn.Module) -> set[int]:
    try:
        return {id(weight) for weight in prunable(model).values()}
    except PruneError:
        return set()  # a model with nothing to prune is still stored


def macs(model: nn.Module, example: Any) -> int:
    """Multiply-accumulates of one sample's forward pass: the sum over its matrix products and convolutions.

    A Linear a -> b takes a*b, a convolution (c_in/groups) * c_out * k_h * k_w a position. Multiplications by
    zero count like any other, because a dense kernel does them: pruned weights lower this number only once
    they are removed. Not counted: what is done element by element (norms, activations), a product with one vector
    alone, nn.Bilinear, and torchvision's deformable convolution.
    `example`: inputs with samples along dimension 0; the first one is run. Raises PruneError if it can't be.

    >>> macs(nn.Linear(300, 100), torch.zeros(64, 300))  # 300 x 100
    30000
    >>> macs(nn.Conv2d(3, 8, 3, padding=1), torch.zeros(1, 3, 16, 16))  # 3 x 8 x 9 at each of 16 x 16 places
    55296
    """
    core.places(model)  # refuses lazy layers, which a forward would make
    inputs = to(cut(example, 1), device_of(model))
    with undisturbed(model), torch.no_grad():
        return _counted(lambda: attempt(model, inputs))[0]


def _counted(run: Callable[[], Any]) -> tuple[int, Any]:
    """The multiply-accumulates of a run, and what it gives."""
    counter = FlopCounterMode(display=False)
    with transparent_kernels(), counter:
        output = run()
    return counter.get_total_flops() // 2, output  # a multiplication and an addition make one


def transparent_kernels() -> ExitStack:
    """Have attention and recurrent layers run as plain operators, which torch's modes can see, not as one kernel.

    Fused, nn.TransformerEncoderLayer, scaled_dot_product_attention and nn.LSTM count as nothing on a CPU, and
    ViT-B/16 as 11.3 instead of 17.6 G.
    """
    return unfused(torch.backends.mkldnn, torch.backends.cudnn)  # mkldnn.flags would warn, of TF32


def peak_memory(model: nn.Module, example: Any, *, batch_size: int | None = None) -> int:
    """The most bytes of activations alive at once in one forward pass without gradients.

    On a GPU: what torch's allocator held at most, beyond what it held before. Elsewhere: the tensors alive
    between operators, attention unfused. That gives the same number on every machine, but misses the
    scratch space within a kernel: oneDNN's reordering can double a single convolution's, in ResNet-18 it is
    nothing. `batch_size` cuts the example. Raises PruneError if the model cannot run on it.

    >>> peak_memory(nn.Linear(8, 100), torch.zeros(2, 8))  # 2 x 100 outputs of 4 bytes
    800
    """
    core.places(model)  # refuses lazy layers, which a forward would make
    device = device_of(model)
    inputs = to(cut(example, batch_size), device)
    with undisturbed(model), torch.no_grad():
        if device.type != "cuda":
            ledger = _Ledger()
            with transparent_kernels(), ledger:
                attempt(model, inputs)
            return ledger.peak
        attempt(model, inputs)  # what the libraries allocate once, and keep, is not the forward's
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        output = attempt(model, inputs)
        peak = torch.cuda.max_memory_allocated(device)
        del output  # alive until the peak was read: it is part of what a forward needs
        return peak - before


class _Ledger(TorchDispatchMode):
    """Books each storage that an operator creates, and writes it off when Python's last reference is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._book((args, kwargs), there_before=True)  # weights, inputs, constants: nobody made them here
        result = func(*args, **(kwargs or {}))
        self._book(result, there_before=False)
        return result

    def _book(self, tensors: Any, *, there_before: bool) -> None:
        for tensor in tree_iter(tensors):
            if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided:
                continue
            storage, address = tensor.untyped_storage(), storage_of(tensor)
            if address in self._known:
                continue  # a view of, or written into, one that is booked
            size = 0 if there_before else storage.nbytes()
            self._known.add(address)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._write_off, address, size).atexit = False

    def _write_off(self, address: int, size: int) -> None:
        self._known.discard(address)
        self.live -= size


@dataclass(frozen=True)
class Call:
    """A layer, and the arguments it was called with."""

    layer: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def kind(self) -> str:
        """The layer's class."""
        return type(self.layer).__name__

    @property
    def own(self) -> tuple[Tensor, ...]:
        """The layer's parameters and buffers."""
        return (*self.layer.parameters(), *self.layer.buffers())

    def run(self) -> Any:
        """The call once more."""
        return self.layer(*self.args, **self.kwargs)

    def work(self) -> tuple[int, int]:
        """MACs, and bytes of the weights, the inputs and the outputs."""
        macs, output = _counted(self.run)
        return macs, sum(t.nbytes for t in (*self.own, *tensors((self.args, self.kwargs, output))))


def layer_calls(model: nn.Module, inputs: Any) -> dict[str, Call]:
    """Every call of a module without children in one forward pass, in order; torch's attention counts as one.

    A second call of the layer "fc" is "fc (2)".
    """
    attention = [m for m in network(model).modules() if isinstance(m, nn.MultiheadAttention)]
    inside = {child for m in attention for child in m.modules() if child is not m}
    leaves = {
        m: path or type(m).__name__
        for path, m in model.named_modules()
        if m not in inside and (m in attention or not any(m.children()))
    }
    found: dict[str, Call] = {}

    def note(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        path = leaves[layer]
        again = sum(name.partition(" ")[0] == path for name in found)
        found[f"{path} ({again + 1})" if again else path] = Call(layer, args, kwargs)

    with hooked(leaves, note):
        attempt(model, inputs)
    return found
