"""The anatomy of a Llama-like decoder: its blocks, each with an attention and a gated MLP on one residual stream.

Found by structure, not by name of the model: Llama, Mistral, Qwen, Gemma and SmolLM are built alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from .core import PruneError

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Block:
    """One decoder block and the dotted paths of its parts; None for a part that has been removed.

    The norms are those right before the attention and the MLP, if the block has these two and no others.
    """

    path: str
    module: nn.Module
    attention: str | None
    mlp: str | None
    attention_norm: str | None
    mlp_norm: str | None


def blocks(model: nn.Module) -> list[Block]:
    """The decoder blocks in order; PruneError for a model that has none."""
    path = stack(model)
    if path is None:
        raise PruneError(
            f"{type(model).__name__} has no Llama-like decoder blocks: a list of blocks, each with an attention of "
            f"{', '.join(ATTENTION)} and an MLP of {', '.join(MLP)}. Other networks: granularity.filters and neurons"
        )
    layers = model.get_submodule(path)
    assert isinstance(layers, nn.ModuleList)
    return [_block(f"{path}.{i}", layer) for i, layer in enumerate(layers)]


def stack(model: nn.Module) -> str | None:
    """The path of the list that holds the decoder blocks, or None."""
    lists = [(path, m) for path, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)]
    return next((path for path, m in lists if all(map(_is_block, m)) and any(map(_has_linear, m))), None)


def is_decoder(model: nn.Module) -> bool:
    """Whether the model is built of Llama-like decoder blocks."""
    return stack(model) is not None


def config_of(model: nn.Module) -> Any:
    """The Hugging Face configuration of the decoder, or None."""
    config: Any = getattr(model, "config", None)
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config


def _is_block(layer: nn.Module) -> bool:
    """An attention and an MLP, of which one or the other may have been removed."""
    there = {name for name, _ in layer.named_children()}
    anatomy = {"self_attn": ATTENTION, "mlp": MLP}
    return anatomy.keys() <= there and all(_lacks_none(layer, *part) for part in anatomy.items())


def _has_linear(layer: nn.Module) -> bool:
    return any(isinstance(m, nn.Linear) for m in layer.modules())


def _lacks_none(layer: nn.Module, name: str, parts: Sequence[str]) -> bool:
    part = layer.get_submodule(name)
    return not list(part.children()) or all(isinstance(getattr(part, p, None), nn.Linear) for p in parts)


def _block(path: str, layer: nn.Module) -> Block:
    there = {name: f"{path}.{name}" for name in ("self_attn", "mlp") if list(layer.get_submodule(name).children())}
    norms = [name for name, m in layer.named_children() if name.endswith("norm")]
    usual = norms == ["input_layernorm", "post_attention_layernorm"]
    before = [f"{path}.{name}" for name in norms] if usual else [None, None]
    return Block(path, layer, there.get("self_attn"), there.get("mlp"), *before)
