"""What attention layers and their configs declare of their heads, set to what is left of them."""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..attention import known
from ..core import Group, Keep, PruneError, paths
from ..decoders import config_at
from .multihead import PrunedMultiheadAttention
from .widths import agreed, says, told_around

COUNT = re.compile(r"^(?!linear|mamba).*heads?$")  # not those of what is no attention
WIDTH = re.compile(r"(?<!all_)head_?(dim|size)$")
SIZE = re.compile(r"^(?!hidden|.*(?<!all_)head_?(dim|size)).*(dim|size|width|embed)")
QUERIES = ("in_proj_weight", "in_proj_bias", "q_proj_weight", "q_proj_bias")  # of torch's own
REPEATS = re.compile(r"(key_value|kv)_groups$|n_rep$")


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


def settle(model: nn.Module, groups: Sequence[Group], keep: Keep, lines: Mapping[Any, Tensor]) -> set[str]:
    """Set what attentions, and their configurations, declare of heads; the names of the tensors that these are in.

    A module right above a cut projection that counts as many heads as the group has, or a multiple, counts those left,
    and its sizes (`all_head_size`, `embed_dim`, `split_size`) are those of what was cut in it. A configuration follows
    if all its layers have the same count, and it says how wide a head is; else each layer has a copy of it that does.
    There `from_pretrained` refuses the weights, and `load_plan` rebuilds the model.
    """
    at = {path: module for module, path in paths(model).items()}
    for encoder in (m for m in at.values() if isinstance(m, nn.TransformerEncoder)):
        if any(isinstance(m, PrunedMultiheadAttention) for m in encoder.modules()):
            encoder.use_nested_tensor = False  # it asked its layers when it was made; only their old kernels take nests
    known(model)  # refuses less than a head
    done: set[str] = set()
    cut: dict[str, dict[str, int]] = {}
    told = []
    for group in groups:
        own = {m.tensor for m in group.members}
        rows = {m.tensor for m in group.members if m.dim == 0 and m.tensor.endswith(QUERIES)}
        for path, inside in _holders(own).items():
            holder: Any = at[path] if path in at else model.get_submodule(path)  # which takes its time
            if isinstance(holder, nn.MultiheadAttention) and rows & inside:
                done |= own  # its heads left, and it has been told
            declared = _declared(holder)
            kept = int(keep[group.name].sum())
            counts = {n: v * kept // group.units for n, v in declared.items() if v % group.units == 0}
            if counts:
                done |= own
                cut[path] = counts
                around = [(c, n, v) for c, n, v in told_around(model, path, COUNT) if type(v) is int]
                told += [(c, n, v * kept // group.units) for c, n, v in around if v % group.units == 0]
                told += [(c, "head_dim", width) for c, *_ in around for width in _width(holder)]
                _declare(holder, declared, counts, [line for (name, _), line in lines.items() if name in inside])
    if cut:
        _configure(model, cut, agreed(told))
    return done


def _holders(names: Collection[str]) -> dict[str, set[str]]:
    """The modules right above the layers of some tensors, and these layers themselves, each with its tensors."""
    found: dict[str, set[str]] = {}
    for name in sorted(names):
        layer = name.rpartition(".")[0]
        for path in {layer, layer.rpartition(".")[0]}:
            found.setdefault(path, set()).add(name)
    return found


def _declared(holder: Any) -> dict[str, int]:
    """How many heads an attention says that it has, by itself or, if it counts nothing else, by its configuration."""
    if not any("head" in name for name in vars(holder)) or isinstance(holder, nn.MultiheadAttention):
        return {}
    both = (config_at(holder), holder)
    return {n: v for h in both if h is not None for n, v in vars(h).items() if type(v) is int and COUNT.search(n)}


def _width(holder: Any) -> list[int]:
    """How wide an attention says that a head is, if it does."""
    return [v for n, v in vars(holder).items() if WIDTH.search(n) and type(v) is int][:1]


def _declare(holder: Any, before: Mapping[str, int], counts: Mapping[str, int], lines: Sequence[Tensor]) -> None:
    sizes = {len(line): int(line.sum()) for line in lines}
    for name, value in list(vars(holder).items()):
        if type(value) is not int:
            continue
        if name in counts:
            setattr(holder, name, counts[name])
        elif SIZE.search(name) and value in sizes:
            setattr(holder, name, sizes[value])
        elif REPEATS.search(name):
            setattr(holder, name, _repeats({**before, **counts}) or value)


def _repeats(counts: Mapping[str, int]) -> int:
    """How many query heads share a key-value head; 0 if that is not told."""
    shared = next((v for n, v in counts.items() if "kv" in n or "key_value" in n), 0)
    return next((v // shared for n, v in counts.items() if shared and "kv" not in n and "key_value" not in n), 0)


def _configure(model: nn.Module, cut: Mapping[str, dict[str, int]], told: list[tuple[Any, str, float]]) -> None:
    """Set the counts in the configurations, if they then build these attentions; else in a copy for each layer."""
    every = [path for path, m in model.named_modules() if _declared(m)]
    if any(says(model, some, every) for some in ([t for t in told if t[1] != "head_dim"], told)):
        return
    for path, counts in cut.items():
        holder: Any = model.get_submodule(path)
        if config_at(holder) is not None:
            holder.config = copy.copy(holder.config)
            vars(holder.config).update({n: v for n, v in counts.items() if n in vars(holder.config)})
