"""Whole modules leave: a list gets shorter, and what stood elsewhere is replaced by something that adds nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, cast

from torch import Tensor, nn

from .. import units
from ..core import Group, Keep, Part, PruneError
from ..decoders import config_of


class Absent(nn.Module):
    """Stands where a module was removed, on a residual stream: whatever comes in, it adds nothing."""

    def __init__(self, outputs: int = 1):
        super().__init__()
        self.outputs = outputs

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        x = next(a for a in (*args, *kwargs.values()) if isinstance(a, Tensor))
        nothing = x.new_zeros(())
        return nothing if self.outputs == 1 else (nothing, *[None] * (self.outputs - 1))

    def extra_repr(self) -> str:
        return "removed"


def gone(groups: Sequence[Group], keep: Keep) -> list[Part]:
    """The parts whose unit is not kept."""
    parts = [(part, units.kept_of(group, keep)) for group in groups for part in group.parts]
    return [part for part, kept in parts if not kept[part.unit]]


def remove(model: nn.Module, parts: Sequence[Part]) -> None:
    """Take the parts out of the model, in place, and set what its configuration says of its depth."""
    listed = [p for p in parts if isinstance(_parent(model, p.path), nn.ModuleList)]
    for part in parts:
        if part not in listed:
            parent, name = _parent(model, part.path), part.path.rpartition(".")[2]
            setattr(parent, name, Absent(part.outputs))
    for path in dict.fromkeys(_list_of(p) for p in listed):
        _shorten(model, path, {_index(p) for p in listed if _list_of(p) == path})
    if parts:
        _renumber(model)


def renamed(name: str, parts: Sequence[Part]) -> str | None:
    """What a tensor of the whole model is called when the parts have left; None if it left with them."""
    if any(name.startswith(f"{part.path}.") for part in parts):
        return None
    for above in dict.fromkeys(_list_of(part) for part in parts):
        index, _, tail = name.removeprefix(f"{above}.").partition(".")
        if name.startswith(f"{above}.") and index.isdigit():
            return f"{above}.{int(index) - sum(_list_of(p) == above and _index(p) < int(index) for p in parts)}.{tail}"
    return name


def _list_of(part: Part) -> str:
    return part.path.rpartition(".")[0]


def _index(part: Part) -> float:
    """The place of the part in its list; infinite where it is no entry of one."""
    last = part.path.rpartition(".")[2]
    return int(last) if last.isdigit() else math.inf


def _parent(model: nn.Module, path: str) -> nn.Module:
    return model.get_submodule(path.rpartition(".")[0])


def _shorten(model: nn.Module, path: str, without: set[float]) -> None:
    """A list without some entries; and so with every list of the configuration that says one thing for each entry."""
    layers = model.get_submodule(path)
    assert isinstance(layers, nn.ModuleList)
    before, stay = len(layers), [i for i in range(len(layers)) if i not in without]
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, nn.ModuleList(layers[i] for i in stay))
    config = config_of(model)
    inner = any(part.isdigit() for part in path.split("."))  # a list within a layer, such as its experts
    if inner or getattr(config, "num_hidden_layers", None) != before:
        return
    lists = [k for k, v in vars(config).items() if isinstance(v, (list, tuple)) and len(v) == before]
    new = {k: type(vars(config)[k])(vars(config)[k][i] for i in stay) for k in lists}
    config.num_hidden_layers = len(stay)
    for key, value in new.items():
        setattr(config, key, value)
    for module in cast("Iterator[Any]", model.modules()):  # Qwen and others remember whether any layer slides
        if isinstance(getattr(module, "has_sliding_layers", None), bool):
            module.has_sliding_layers = "sliding_attention" in (config.layer_types or ())


def _renumber(model: nn.Module) -> None:
    """Number the attentions that are left 0, 1, ...: each finds its part of the cache by it, the mask by number 0."""
    holders = [m for m in _numbered(model) if any(isinstance(c, nn.Linear) for c in m.children())]
    if [m.layer_idx for m in holders] == list(range(len(holders))):
        return
    kinds = getattr(config_of(model), "layer_types", None) or ()
    if len(set(kinds)) > 1 and len(holders) < len(kinds):
        raise PruneError(
            f"{type(model).__name__} mixes kinds of attention ({', '.join(sorted(set(kinds)))}), and its cache goes by "
            "their order: single attentions can't be removed from it. Remove whole layers, or MLPs"
        )
    for number, module in enumerate(holders):
        module.layer_idx = number


def _numbered(model: nn.Module) -> Iterator[Any]:
    return (m for m in model.modules() if type(getattr(m, "layer_idx", None)) is int)
