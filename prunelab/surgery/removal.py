"""Whole modules leave: a list gets shorter, and what stood elsewhere is replaced by something that adds nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from .. import units
from ..core import Group, Keep, Part, PruneError, join
from ..decoders import config_of, configs, stacks

LAYER_NUMBERS = ("layer_idx", "layer_id", "layer_number", "block_idx")
PER_LAYER = re.compile("layer|pattern|window|types|per_block")  # lists of a configuration with an entry for each layer
NUMBERS_OF_LAYERS = ("mlp_only_layers", "attn_layer_indices")  # lists of the layers that are of a kind
NUMBERS_OF_FIRST = ("first_k_dense_replace",)  # how many of the first layers are of a kind


class Absent(nn.Module):
    """Stands where a module was removed, on a residual stream: whatever comes in, it adds nothing."""

    in_proj_bias = None  # torch's encoder asks its attention, and then takes no kernel that would read its weights

    def __init__(self, removed: nn.Module, outputs: int = 1, passes: int = 0):
        super().__init__()
        self.outputs, self.passes = outputs, passes
        plain = {n: v for n, v in vars(removed).items() if type(v) in (bool, int, float, str) and n != "layer_idx"}
        vars(self).update({n: v for n, v in plain.items() if n not in vars(self)})  # what the block asks it about

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        x = next(a for a in (*args, *kwargs.values()) if isinstance(a, Tensor))
        nothing = args[self.passes] if self.passes else torch.zeros_like(x)
        # T5's attentions hand on the table of positions that they were given
        rest = (kwargs.get("position_bias"), *[None] * (self.outputs - 2))
        return nothing if self.outputs == 1 else (nothing, *rest)

    def extra_repr(self) -> str:
        return "removed"


def gone(groups: Sequence[Group], keep: Keep) -> list[Part]:
    """The parts whose unit is not kept."""
    parts = [(part, units.kept_of(group, keep)) for group in groups for part in group.parts]
    return [part for part, kept in parts if not kept[part.unit]]


def remove(model: nn.Module, parts: Sequence[Part]) -> None:
    """Take the parts out of the model, in place, and set what its configuration says of its depth."""
    listed = [p for p in parts if _is_list(_parent(model, p.path))]
    for part in parts:
        if part not in listed:
            parent, name = _parent(model, part.path), part.path.rpartition(".")[2]
            setattr(parent, name, Absent(parent.get_submodule(name), part.outputs, part.passes))
            if isinstance(parent, nn.TransformerEncoderLayer):
                parent.activation_relu_or_gelu = 0  # as it says of itself where its one kernel for all does not fit
    lists = sorted(dict.fromkeys(map(_list_of, listed)), key=lambda path: -path.count("."))
    for path in lists:  # the inner ones first: they move when an outer one is cut
        _shorten(model, path, [p.path.rpartition(".")[2] for p in listed if _list_of(p) == path])
    if parts:
        _renumber(model)


def renamed(name: str, parts: Sequence[Part]) -> str | None:
    """What a tensor of the whole model is called when the parts have left; None if it left with them."""
    went = {part.path for part in parts}
    path, words = "", []
    for word in name.split("."):
        gone_before = sum(join(path, str(i)) in went for i in range(int(word))) if word.isdigit() else 0
        words.append(str(int(word) - gone_before) if gone_before else word)
        path = join(path, word)
        if path in went:
            return None
    return ".".join(words)


def _list_of(part: Part) -> str:
    return part.path.rpartition(".")[0]


def _parent(model: nn.Module, path: str) -> nn.Module:
    return model.get_submodule(path.rpartition(".")[0])


def _is_list(module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList) or type(module) is nn.Sequential


def _shorten(model: nn.Module, path: str, without: Sequence[str]) -> None:
    """A list without some entries, and so with what the configurations around it say of its entries."""
    entries = dict(model.get_submodule(path).named_children())
    stay = [i for i, name in enumerate(entries) if name not in without]
    left = {name: m for name, m in entries.items() if name not in without}
    chain = type(model.get_submodule(path)) is nn.Sequential
    made = nn.Sequential(*left.values()) if chain else nn.ModuleList(left.values())
    if not all(name.isdigit() for name in entries):  # torchvision's names stay with their entries
        vars(made)["_modules"] = left
    holder: Any = _parent(model, path)
    setattr(holder, path.rpartition(".")[2], made)
    for count in [n for n, v in vars(holder).items() if n.endswith("layers") and v == len(entries)]:
        setattr(holder, count, len(stay))
    for config in configs(model, path):
        _declare(config, path, len(entries), stay, config is getattr(model, "config", None))
    for module in cast("Iterator[Any]", model.modules()):  # Qwen and others remember whether any layer slides
        if isinstance(getattr(module, "has_sliding_layers", None), bool):
            module.has_sliding_layers = "sliding_attention" in (config_of(model).layer_types or ())


def _declare(config: Any, path: str, before: int, stay: list[int], outermost: bool) -> None:
    """Set the depth, and the lists that say one thing for each layer, in a configuration that knows of the list."""
    stages = [int(part) for part in path.split(".") if part.isdigit()]
    if stages:  # a list within a stage, or, such as its experts, within a layer
        depths = getattr(config, "depths", None)
        if depths is not None and len(depths) > stages[-1] and depths[stages[-1]] == before:
            config.depths = [len(stay) if i == stages[-1] else depth for i, depth in enumerate(depths)]
        return
    side = "decoder" if "decoder" in path.split(".") else "encoder"
    sided = [name for name in (f"{side}_layers", f"num_{side}_layers") if hasattr(config, name)]
    shared = hasattr(config, "decoder_layers") or hasattr(config, "num_decoder_layers")
    usual = () if side == "decoder" and shared and outermost else ("num_hidden_layers", "num_layers", "n_layer")
    known = [name for name in (*sided, *usual) if getattr(config, name, None) == before]
    values = vars(config) if known else {}
    lists = {k: v for k, v in values.items() if isinstance(v, (list, tuple)) and PER_LAYER.search(k)}
    new = {k: type(v)(v[i] for i in stay) for k, v in lists.items() if len(v) == before}
    new |= {k: [stay.index(i) for i in values[k] if i in stay] for k in NUMBERS_OF_LAYERS if values.get(k)}
    new |= {k: sum(i < values[k] for i in stay) for k in NUMBERS_OF_FIRST if values.get(k)}
    kinds = list(getattr(config, "layer_types", None) or ()) if known else []
    for name in known:
        setattr(config, name, len(stay))
    for name, value in new.items():
        setattr(config, name, value)
    stages = list(getattr(config, "stage_names", None) or ()) if known else []
    if len(stages) == before + 1:  # of a backbone: its stem, and the layers that it can give the outputs of
        left = [stages[0], *(stages[i + 1] for i in stay)]
        given = [left.index(name) for name in config.out_features if name in left]
        config.stage_names = stages[: len(left)]
        config.set_output_features_output_indices(None, given or [len(stay)])
    if kinds and list(config.layer_types or ()) != [kinds[i] for i in stay]:
        raise PruneError(
            f"{path} would keep layers of {', '.join(kinds[i] for i in stay)}, and its {type(config).__name__} derives "
            f"from a layer's number that they are {', '.join(config.layer_types)}: remove others, or whole periods"
        )


def _renumber(model: nn.Module) -> None:
    """Number what is left in each stack 0, 1, ...: attentions find their part of the cache by it.

    Where one of a kind was taken out of a block, those of its kind are counted, else the blocks.
    """
    kinds = getattr(config_of(model), "layer_types", None) or ()
    for path in stacks(model):
        entries = list(model.get_submodule(path).children())
        places = dict.fromkeys(name for m in entries for name, inner in m.named_modules() if _numbers(inner))
        for place in places:
            found = [dict(m.named_modules()).get(place) for m in entries]
            counted = any(isinstance(m, Absent) for m in found)
            if counted and len(set(kinds)) > 1 and hasattr(config_of(model), "use_cache"):
                raise PruneError(
                    f"{type(model).__name__} mixes kinds of attention ({', '.join(sorted(set(kinds)))}), and its cache "
                    "goes by their order: single attentions can't be removed from it. Remove whole layers, or MLPs"
                )
            left = [m for m in found if not isinstance(m, Absent)] if counted else found
            for number, module in enumerate(left):
                for name in _numbers(module):
                    setattr(module, name, number)


def _numbers(module: Any) -> list[str]:
    """The attributes by which a module knows the number of its layer."""
    return [n for n in LAYER_NUMBERS if type(vars(module).get(n)) is int] if module is not None else []
