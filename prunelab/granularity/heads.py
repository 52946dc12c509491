"""`heads`: attention heads, each with its rows of queries, keys and values and the columns that read it."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from ..attention import layers
from ..core import Group, Groups, PruneError
from .proof import proven
from .tracing import BY_HAND, on, plain_twin


def heads(model: nn.Module, example: Any = None) -> list[Group]:
    """Attention heads: a group a layer, a unit a head; with grouped queries, a key-value head with its query heads.

    Known are torch.nn.MultiheadAttention (and with it torchvision's ViT), the course's ViT, BERT-like encoders and
    Llama-like decoders of transformers. What a head is made of stays whole: rotary positions pair its dimensions. The
    bias of the output projection belongs to no head, and stays.

    Nothing is traced. With an example, `exact` is found by trying, and what fails without some heads is left out, with
    a warning; without one the groups are exact, as these architectures are. Michel et al. 2019, arXiv 1905.10650.

    Raises PruneError for a model without attention known here, one whose query heads don't divide among its
    key-value heads, one that has a single head a layer, and one that fails without any of them.
    """
    found = [Group(a.path or "attention", a.kv_heads, a.members()) for a in layers(model)]
    if not found:
        raise PruneError(
            f"{type(model).__name__} has no attention layer known here: a torch.nn.MultiheadAttention, or a module "
            "with a head_dim and Linear layers q_proj, k_proj, v_proj, o_proj (or as BERT, DistilBERT name them). "
            f"{BY_HAND}"
        )
    some = [group for group in found if group.units > 1]  # the only head of a layer never leaves
    if not some:
        raise PruneError(f"{type(model).__name__} has one head a layer, and the last head of a layer never leaves")
    return some if example is None else _tried(model, some, example)


def _tried(model: nn.Module, groups: list[Group], example: Any) -> list[Group]:
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.inference_mode(False), torch.random.fork_rng(devices=gpus):
        proof = proven(plain_twin(model), groups, {}, on(model, example))
    missing = "; ".join(f"{name} {why}" for name, why in proof.refuted.items())
    if not proof.groups:
        raise PruneError(f"{type(model).__name__} has no head that could be removed: {missing}. {BY_HAND}")
    if missing:
        warnings.warn(f"left out: {missing}", stacklevel=3)
    return Groups(proof.groups, proof.refuted)
