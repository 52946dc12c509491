"""What attention layers and their configs declare of their heads, set to what is left of them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn

from ..attention import AttentionLayer, layers
from ..core import PruneError
from .multihead import PrunedMultiheadAttention


def multihead(m: Any, name: str) -> None:
    """Torch's MultiheadAttention becomes one whose heads need not add up to its width."""
    if type(m) not in (nn.MultiheadAttention, PrunedMultiheadAttention):
        raise PruneError(
            f"shrink cut {name}, of a {type(m).__name__}: a subclass of MultiheadAttention with a forward of its own, "
            "whose sizes are unknown. Teach shrink with surgery.shrinking.DECLARED"
        )
    queries = m.q_proj_weight if m.in_proj_weight is None else m.in_proj_weight
    rows = len(queries) // (1 if m.in_proj_weight is None else 3)
    sizes = [m.out_proj.weight.shape[1], *(() if m.in_proj_bias is None else (len(m.in_proj_bias) // 3,))]
    if rows % m.head_dim or any(size != rows for size in sizes):
        raise PruneError(
            f"shrink cut {name}: {rows} rows of queries are left, and {sizes[0]} columns that read them. Heads leave "
            f"whole, with {m.head_dim} rows of queries, keys, values, their biases, and as many columns of out_proj: "
            "take granularity.heads"
        )
    m.num_heads = rows // m.head_dim
    m.embed_dim = queries.shape[1]
    m.kdim, m.vdim = (m.embed_dim if w is None else w.shape[1] for w in (m.k_proj_weight, m.v_proj_weight))
    m._qkv_same_embed_dim = False
    m.__class__ = PrunedMultiheadAttention


def settle(model: nn.Module, touched: Collection[nn.Module]) -> None:
    """Head counts of the layers whose projections were cut, and of configs all of whose layers have the same count.

    A config that cannot say it keeps what it said of the original: with uneven layers, with a head size that it derives
    from the width (BERT's), or where its own rules refuse the count. There `from_pretrained` refuses the weights, and
    `load_plan` rebuilds the model.
    """
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder) and any(
            isinstance(m, PrunedMultiheadAttention) for m in module.modules()
        ):
            module.use_nested_tensor = (
                False  # it asked its layers when it was made, and only their old kernels take nests
            )
    every = layers(model)
    cut = [a for a in every if any(m in touched for m in a.module.modules())]
    for layer in cut:
        _declare(layer.module, layer)
    for config in {id(c): c for a in cut if (c := getattr(a.module, "config", None)) is not None}.values():
        alike = [a for a in every if getattr(a.module, "config", None) is config]
        if len({(a.heads, a.kv_heads) for a in alike}) == 1 and isinstance(getattr(config, "head_dim", None), int):
            before = _declare(config, alike[0])
            try:
                config.validate()
            except Exception:  # whatever a config's own rules raise: width that is no multiple of the heads, mostly
                for attribute, value in before.items():
                    setattr(config, attribute, value)


def _declare(holder: Any, layer: AttentionLayer) -> dict[str, int]:
    """Set whatever counts of heads the holder declares, and say what they were."""
    heads = dict.fromkeys(("num_heads", "n_heads", "num_attention_heads"), layer.heads)
    counts = {**heads, "num_key_value_heads": layer.kv_heads, "all_head_size": layer.heads * layer.head_dim}
    before = {name: value for name in counts if isinstance(value := getattr(holder, name, None), int)}
    for name in before:
        setattr(holder, name, counts[name])
    return before
