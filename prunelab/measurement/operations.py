"""How much arithmetic a forward pass takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..batches import to
from ..core import device_of
from .conditions import attempt, cut, undisturbed


def macs(model: nn.Module, example: Any) -> int:
    """Multiply-accumulates of one sample's forward pass: the sum over its matrix products and convolutions.

    A Linear a -> b takes a*b, a convolution (c_in/groups) * c_out * k_h * k_w a position. Multiplications by
    zero count like any other, because a dense kernel does them: pruned weights lower this number only once
    they are removed. Not counted: what is done element by element (norms, activations), and nn.Bilinear.
    `example`: inputs with samples along dimension 0; the first one is run. Raises PruneError if it can't be.
    """
    inputs = to(cut(example, 1), device_of(model))
    counter = FlopCounterMode(display=False)
    with undisturbed(model), torch.no_grad(), transparent_kernels(), counter:
        attempt(model, inputs)
    return counter.get_total_flops() // 2  # a multiplication and an addition make one


@contextmanager
def transparent_kernels() -> Iterator[None]:
    """Have attention and recurrent layers run as plain operators, which torch's modes can see, not as one kernel.

    Fused, nn.TransformerEncoderLayer, scaled_dot_product_attention and nn.LSTM count as nothing on a CPU, and
    ViT-B/16 as 11.3 instead of 17.6 G.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    libraries: tuple[Any, ...] = (torch.backends.mkldnn, torch.backends.cudnn)
    enabled = [library.enabled for library in libraries]
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        for library in libraries:
            library.enabled = False
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for library, was in zip(libraries, enabled, strict=True):
            library.enabled = was
