"""How much memory a forward pass needs beyond the weights and the inputs."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from ..batches import to
from ..core import device_of
from .conditions import attempt, cut, undisturbed
from .operations import transparent_kernels


def peak_memory(model: nn.Module, example: Any, *, batch_size: int | None = None) -> int:
    """The most bytes of activations alive at once in one forward pass without gradients.

    On a GPU: what torch's allocator held at most, beyond what it held before. Elsewhere: the tensors alive
    between operators, attention unfused. That gives the same number on every machine, but misses the
    scratch space within a kernel: oneDNN's reordering can double a single convolution's, in ResNet-18 it is
    nothing. `batch_size` cuts the example. Raises PruneError if the model cannot run on it.
    """
    device = device_of(model)
    inputs = to(cut(example, batch_size), device)
    with undisturbed(model), torch.no_grad():
        return _on_gpu(model, inputs, device) if device.type == "cuda" else _by_tensor(model, inputs)


def _on_gpu(model: nn.Module, inputs: Any, device: torch.device) -> int:
    attempt(model, inputs)  # what the libraries allocate once, and keep, is not the forward's
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    output = attempt(model, inputs)
    peak = torch.cuda.max_memory_allocated(device)
    del output  # alive until the peak was read: it is part of what a forward needs
    return peak - before


def _by_tensor(model: nn.Module, inputs: Any) -> int:
    ledger = _Ledger()
    with transparent_kernels(), ledger:
        attempt(model, inputs)
    return ledger.peak


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
            storage = tensor.untyped_storage()
            if storage._cdata in self._known:
                continue  # a view of, or written into, one that is booked
            size = 0 if there_before else storage.nbytes()
            self._known.add(storage._cdata)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._write_off, storage._cdata, size).atexit = False

    def _write_off(self, address: int, size: int) -> None:
        self._known.discard(address)
        self.live -= size
