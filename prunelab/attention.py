"""Where the heads of a model's attention layers lie: the one place that knows Transformers, by their modules."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .core import Member, PruneError, join, network

# The names of the four projections: ours, Llama and its kin, ViT; CLIP and Bart; DistilBERT; BERT and RoBERTa.
PROJECTIONS = (
    ("q_proj", "k_proj", "v_proj", "o_proj"),
    ("q_proj", "k_proj", "v_proj", "out_proj"),
    ("q_lin", "k_lin", "v_lin", "out_lin"),
    ("query", "key", "value", "output.dense"),
)
HEADED = re.compile(r"heads?(_dim|_size)?$")  # how modules call the number of their heads, and the width of one
BESIDE = ("output.dense",)  # lies beside the module of the other three, not in it


@dataclass(frozen=True)
class Rows:
    """The `size` rows of a projection: in which tensors (a weight, a bias), along which dimension, from where on."""

    size: int
    places: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class AttentionLayer:
    """One attention layer: the rows that make queries, keys and values, and the columns that read the heads' outputs.

    Query head h owns rows h*head_dim to (h+1)*head_dim of the queries, and the same columns of `out`. With grouped
    queries each key-value head serves `group` query heads, which follow each other.
    """

    path: str
    module: nn.Module
    head_dim: int
    query: Rows
    key: Rows
    value: Rows
    out: str  # the name of the output projection's weight

    @property
    def heads(self) -> int:
        """How many query heads the layer has."""
        return self.query.size // self.head_dim

    @property
    def kv_heads(self) -> int:
        """How many key-value heads: fewer than `heads` with grouped queries."""
        return self.key.size // self.head_dim

    @property
    def group(self) -> int:
        """How many query heads share a key-value head."""
        return self.heads // self.kv_heads

    def members(self) -> tuple[Member, ...]:
        """What leaves with a key-value head: its rows, those of its query heads, and the columns that read them."""
        blocks = ((self.query, self.group * self.head_dim), (self.key, self.head_dim), (self.value, self.head_dim))
        made = []
        for rows, block in blocks:
            own = torch.arange(self.kv_heads * block).view(self.kv_heads, block)
            for name, dim, start in rows.places:
                third = name.endswith(("in_proj_weight", "in_proj_bias"))
                made.append(Member(name, dim, block, own + start if third else None))
        return (*made, Member(self.out, 1, self.group * self.head_dim))


def layers(model: nn.Module) -> list[AttentionLayer]:
    """Every attention layer known here, in the model's order; PruneError where the heads of one don't divide."""
    modules = dict(network(model).named_modules())
    found = []
    for path, module in modules.items():
        layer = _torch(path, module) if isinstance(module, nn.MultiheadAttention) else _projected(modules, path)
        if layer is not None:
            _check(layer)
            found.append(layer)
    return found


def _torch(path: str, module: nn.MultiheadAttention) -> AttentionLayer:
    """Torch's own: queries, keys and values are the thirds of one weight, or, for other key sizes, three weights."""
    fused = module.in_proj_weight is not None
    weights = ["in_proj_weight"] * 3 if fused else ["q_proj_weight", "k_proj_weight", "v_proj_weight"]
    size = len(getattr(module, weights[0])) // (3 if fused else 1)
    parts = []
    for i, (weight, more) in enumerate(zip(weights, (None, "bias_k", "bias_v"), strict=True)):
        places = [(join(path, weight), 0, i * size if fused else 0)]
        if module.in_proj_bias is not None:
            places.append((join(path, "in_proj_bias"), 0, i * size))
        if more and getattr(module, more) is not None:
            places.append((join(path, more), 2, 0))
        parts.append(Rows(size, tuple(places)))
    query, key, value = parts
    return AttentionLayer(path, module, module.head_dim, query, key, value, join(path, "out_proj.weight"))


def _projected(modules: Mapping[str, nn.Module], path: str) -> AttentionLayer | None:
    """Four Linear layers of one of the namings above, in a module that says how wide a head is."""
    module = modules[path]
    sizes = (getattr(module, a, None) for a in ("head_dim", "attention_head_size"))
    head_dim = next((size for size in sizes if isinstance(size, int) and size > 0), None)
    for *qkv, out in PROJECTIONS if head_dim else ():
        names = [*(join(path, name) for name in qkv), join(_home(path, out), out)]
        linears = {name: m for name in names if isinstance(m := modules.get(name), nn.Linear)}
        if head_dim and len(linears) == len(names) and _nothing_else(module, linears.values(), head_dim):
            query, key, value = (_rows(name, linears[name]) for name in names[:3])
            return AttentionLayer(path, module, head_dim, query, key, value, join(names[3], "weight"))
    return None


def _home(path: str, out: str) -> str:
    return path.rpartition(".")[0] if out in BESIDE else path


def _rows(name: str, linear: nn.Linear) -> Rows:
    held = ["weight"] if linear.bias is None else ["weight", "bias"]
    return Rows(len(linear.weight), tuple((join(name, tensor), 0, 0) for tensor in held))


def _nothing_else(module: nn.Module, linears: Iterable[nn.Module], head_dim: int) -> bool:
    """Whether the module holds nothing more but norms of queries and keys that all heads share, as Qwen3 has them."""
    own = {id(p) for linear in linears for p in linear.parameters()}
    more = {name: p for name, p in module.named_parameters() if id(p) not in own}
    return all(p.shape == (head_dim,) and name in ("q_norm.weight", "k_norm.weight") for name, p in more.items())


def wholly(model: nn.Module) -> bool:
    """Whether all that may be attention is known here: every module that says how wide a head is, or how many."""
    known = {id(m) for a in layers(model) for m in a.module.modules()}
    others = (m for m in model.modules() if known.isdisjoint(map(id, m.modules())))
    return not any(HEADED.search(name) for m in others for name, value in vars(m).items() if isinstance(value, int))


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
            "with a head_dim and Linear layers q_proj, k_proj, v_proj, o_proj (or as BERT, DistilBERT name them), and "
            "nothing else that counts heads. Others are found by a run: give an example of its inputs"
        ) from error
    return made


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


def _check(layer: AttentionLayer) -> None:
    for what, rows in (("query", layer.query), ("key", layer.key), ("value", layer.value)):
        if rows.size == 0 or rows.size % layer.head_dim:
            raise PruneError(
                f"{layer.path}: its {rows.size} {what} rows are no whole number of heads of {layer.head_dim} each"
            )
    if layer.heads % layer.kv_heads or layer.value.size != layer.key.size:
        raise PruneError(
            f"{layer.path} has {layer.heads} query heads for {layer.kv_heads} key heads and "
            f"{layer.value.size // layer.head_dim} value heads: the query heads do not divide into equal groups. Look "
            "at num_attention_heads and num_key_value_heads of its config"
        )
