"""The attention that is known without a run, torch's own and the plainest; and inputs to run any other on."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from .core import Group, Member, PruneError, join, paths

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")  # of the course's ViT, of Llama and its kin
HEADED = re.compile(r"heads?(_dim|_size)?$")  # how modules call the number of their heads, and the width of one


def known(model: nn.Module) -> dict[str, Group]:
    """A group for each attention known here, by its path; PruneError where the heads of one don't divide.

    A unit is a key-value head and the query heads it serves, which follow each other: their rows of queries, keys and
    values, biases included, and the columns that read them.
    """
    found = {}
    for module, path in paths(model).items():
        group = _torch(path, module) if isinstance(module, nn.MultiheadAttention) else _plainest(path, module)
        if group is not None:
            found[path] = group
    return found


def wholly(model: nn.Module, found: Mapping[str, Group]) -> bool:
    """Whether there are known attentions, and no other module says how wide a head is, or how many there are."""
    ours = {id(m) for path in found for m in model.get_submodule(path).modules()}
    others = (m for m in model.modules() if ours.isdisjoint(map(id, m.modules())))
    counted = any(HEADED.search(name) for m in others for name, value in vars(m).items() if isinstance(value, int))
    return bool(found) and not counted


def _torch(path: str, module: nn.MultiheadAttention) -> Group:
    """Torch's own: queries, keys and values are the thirds of one weight, or, for other key sizes, three weights."""
    fused, size = module.in_proj_weight is not None, module.head_dim
    weights = ["in_proj_weight"] * 3 if fused else ["q_proj_weight", "k_proj_weight", "v_proj_weight"]
    rows = torch.arange(len(getattr(module, weights[0]))).view(3 if fused else 1, -1, size)  # (thirds, heads, size)
    members = []
    for i, (weight, more) in enumerate(zip(weights, ("", "bias_k", "bias_v"), strict=True)):
        third = rows[0] + i * rows[0].numel()
        members.append(Member(join(path, weight), 0, size, third if fused else None))
        if module.in_proj_bias is not None:
            members.append(Member(join(path, "in_proj_bias"), 0, size, third))
        if more and getattr(module, more) is not None:
            members.append(Member(join(path, more), 2, size))
    out = Member(join(path, "out_proj.weight"), 1, size)
    return Group(path or "attention", rows.shape[1], (*members, out))


def _plainest(path: str, module: Any) -> Group | None:
    """Four Linear layers in a module that says how wide a head is, and has no other parameters."""
    linears = [module._modules.get(name) for name in PROJECTIONS]
    if not all(isinstance(m, nn.Linear) for m in linears):  # before a getattr: in a module it is slow to find nothing
        return None
    size, own = getattr(module, "head_dim", None), {id(p) for m in linears for p in m.parameters()}
    if not (isinstance(size, int) and size > 0):
        return None
    if any(id(p) not in own for p in module.parameters()):
        return None
    queries, keys, values = (len(m.weight) for m in linears[:3])
    for what, count in (("query", queries), ("key", keys), ("value", values)):
        if count == 0 or count % size:
            raise PruneError(f"{path}: its {count} {what} rows are no whole number of heads of {size} each")
    if queries % keys or values != keys:
        raise PruneError(
            f"{path} has {queries // size} query heads for {keys // size} key heads and {values // size} value heads: "
            "the query heads do not divide into equal groups. Look at num_attention_heads and num_key_value_heads of "
            "its config"
        )
    shared, members = queries // keys * size, []
    for name, block in zip(PROJECTIONS, (shared, size, size), strict=False):
        held = ["weight"] if module.get_submodule(name).bias is None else ["weight", "bias"]
        members += [Member(join(path, f"{name}.{tensor}"), 0, block) for tensor in held]
    return Group(path or "attention", keys // size, (*members, Member(join(path, "o_proj.weight"), 1, shared)))


def example(model: Any) -> dict[str, torch.Tensor]:
    """Inputs made up from the configuration of a model of transformers; PruneError for another."""
    config: Any = getattr(model, "config", None)
    name = str(getattr(model, "main_input_name", ""))
    of: dict[str, Callable[[], torch.Tensor]] = {
        "input_ids": lambda: torch.arange(16).view(2, 8) % model.get_input_embeddings().num_embeddings,
        "pixel_values": lambda: torch.randn(2, config.num_channels, *_pair(config.image_size)),
        "input_values": lambda: torch.randn(2, 4000),
        "input_features": lambda: torch.randn(2, config.num_mel_bins, 2 * config.max_source_positions),
    }
    try:
        made = {name: of[name]()}
        if config.is_encoder_decoder:
            made["decoder_input_ids"] = of["input_ids"]()
    except Exception as error:  # whatever a model of one's own lacks
        raise PruneError(
            f"{type(model).__name__} has no attention layer known here: a torch.nn.MultiheadAttention, or a module "
            f"with a head_dim, Linear layers {', '.join(PROJECTIONS)} and no other parameters. Others are found by a "
            "run: give an example of its inputs"
        ) from error
    return made


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)
