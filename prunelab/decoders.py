"""The anatomy of a Transformer: its stacks of blocks, and of each block the attentions and the MLP.

Found by structure, not by the name of the model. A stack is a list of modules that are built alike; in a block, a
module that projects queries, keys or values is an attention, and the other matrices are its MLP.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from .core import NothingFound, PruneError, join, network
from .layers import CONV1D, layer_of

QKV = re.compile(r"^((W?qkv|[qkv]|kv|query|key|value)(_.*)?|c_attn)$")
GATED = {"gate_proj", "up_proj", "down_proj"}
Path = str


@dataclass(frozen=True)
class Block:
    """One block of the stack at `stack`, and the paths of the modules that make each attention, and the MLP.

    Without its modules a part adds nothing to the stream. A part that is not there, or no more, has none.
    """

    path: Path
    module: nn.Module
    stack: Path
    attentions: tuple[tuple[Path, ...], ...]
    mlp: tuple[Path, ...]

    def parts(self, what: str) -> list[tuple[Path, ...]]:
        """The parts called "layers" (the block itself), "mlps" or "attentions"; each is the paths of its modules."""
        if what == "attentions":
            return list(self.attentions)
        return [(self.path,)] if what == "layers" else [self.mlp] if self.mlp else []


def blocks(model: nn.Module) -> list[Block]:
    """The blocks in order, stack after stack; of a model that writes about pictures or sound, its language part's.

    Raises PruneError for a model that has none, shares one among its layers, or wears adapters (LoRA).
    """
    check_adapters(model)
    found = [(path, list(model.get_submodule(path).named_children())) for path in stacks(model)]
    if not found:
        raise NothingFound(
            f"{type(model).__name__} has no blocks: a list of modules that are built alike, with attentions or Linear "
            "layers in them. Other networks: granularity.filters and neurons"
        )
    calls = getattr(config_of(model), "num_hidden_layers", None)
    if sum(len(entries) for _, entries in found) == 1 and isinstance(calls, int) and calls > 1:
        path, entries = found[0]
        raise PruneError(f"{path}.{entries[0][0]} is shared by {calls} layers: they leave together, or not at all")
    return [_block(path, f"{path}.{name}", m) for path, entries in found for name, m in entries]


def check_adapters(model: nn.Module) -> None:
    """PruneError for a model that wears adapters (LoRA), whose weights are added to those of others."""
    for path, module in network(model).named_modules():
        if "lora_A" in module._modules:
            raise PruneError(f"{path} wears a LoRA adapter: merge it before anything is cut: model.merge_and_unload()")


def stacks(model: nn.Module) -> list[Path]:
    """The paths of the lists that hold the blocks: the innermost lists with attentions, if there are any."""
    lists = {path: m for path, m in network(model).named_modules() if "experts" not in path.split(".") and _is_stack(m)}
    attentive = [path for path, m in lists.items() if any(map(is_attention, m.modules()))]
    some = attentive or list(lists)
    innermost = [path for path in some if not any(other.startswith(f"{path}.") for other in some)]
    config: Any = getattr(model, "config", None)
    if hasattr(config, "text_config") and getattr(model, "can_generate", lambda: False)():
        return [p for p in innermost if any(c is config.text_config for c in configs(model, p)[:1])] or innermost
    return innermost


def is_decoder(model: nn.Module) -> bool:
    """Whether the model is built of blocks whose MLPs are all gated as Llama's, and nothing else."""
    try:
        mlps = [block.mlp for block in blocks(model) if block.mlp]
    except PruneError:
        return False
    return bool(mlps) and all(len(mlp) == 1 and _gated(model.get_submodule(mlp[0])) for mlp in mlps)


def config_of(model: nn.Module) -> Any:
    """The Hugging Face configuration of the decoder, or None."""
    config = config_at(model)
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config


def config_at(module: Any) -> Any:
    """A module's own configuration, or None; a dict under that name, as other libraries have, is none."""
    config = getattr(module, "config", None)
    return config if hasattr(config, "__dict__") else None


def configs(model: nn.Module, path: Path) -> list[Any]:
    """The configurations of the modules around a path, as far as there are such, the nearest first, each once."""
    around = [model]
    for name in path.split("."):
        if name in around[-1]._modules:
            around.append(around[-1].get_submodule(name))
    return list({id(c): c for m in reversed(around) if (c := config_at(m)) is not None}.values())


def is_attention(module: nn.Module) -> bool:
    """Whether the module itself projects queries, keys or values."""
    return isinstance(module, nn.MultiheadAttention) or any(
        QKV.match(name) and _is_matrix(m) for name, m in module.named_children()
    )


def is_norm(module: nn.Module) -> bool:
    """Whether the module is a norm, by the name of its class: many have one of their own."""
    return "norm" in type(module).__name__.lower() and not list(module.children())


def _is_matrix(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or layer_of(module) is CONV1D


def _has_matrix(module: nn.Module) -> bool:
    return any(_is_matrix(m) or any(p.dim() == 3 for p in m.parameters(recurse=False)) for m in module.modules())


def _is_stack(module: nn.Module) -> bool:
    """A list of modules of one class, or most of whose children are called the same (Jamba takes turns)."""
    entries = list(module.children()) if isinstance(module, nn.ModuleList) or type(module) is nn.Sequential else []
    names = [{name for name, _ in entry.named_children()} for entry in entries]
    if not all(names) or not any(map(_has_matrix, entries)):
        return False
    same = set.intersection(*names), set.union(*names)
    return len({type(entry) for entry in entries}) == 1 or 2 * len(same[0]) > len(same[1])


def _gated(mlp: nn.Module) -> bool:
    own = {name: m for name, m in mlp.named_children() if list(m.parameters())}
    return own.keys() == GATED and all(isinstance(m, nn.Linear) for m in own.values())


def _block(stack: Path, path: Path, module: nn.Module) -> Block:
    parts = {join(path, name): m for name, m in _split("", module)}
    lone = [p for p, m in parts.items() if _is_matrix(m)]
    attentions, rest = [], []
    for p, m in parts.items():
        if any(map(is_attention, m.modules())):
            top = f"{path}.{p.removeprefix(f'{path}.').split('.')[0]}."
            attentions.append((p, *(other for other in lone if other.startswith(top))))
    taken = {p for attention in attentions for p in attention}
    for p, m in parts.items():
        if p not in taken and not any(isinstance(c, nn.Conv1d) for c in m.modules()):  # such as a state space has
            rest.append(p)
    convolves = any(isinstance(c, nn.Conv2d) for c in module.children())  # ConvNeXt: all of it is one branch
    return Block(path, module, stack, tuple(attentions), () if convolves and set(rest) <= set(lone) else tuple(rest))


def _split(path: Path, module: nn.Module) -> Iterator[tuple[Path, nn.Module]]:
    """The largest modules in a block that have matrices, and no norm of the stream: that one stays."""
    if path and not _has_stream_norm(module):
        yield from [(path, module)] if _has_matrix(module) else []
        return
    for name, child in module.named_children():
        yield from _split(join(path, name), child)


def _has_stream_norm(module: nn.Module) -> bool:
    """A norm beside at most one matrix; beside several it is the part's own."""
    children = list(module.children())
    return sum(map(_is_matrix, children)) < 2 and any(is_norm(m) or _has_stream_norm(m) for m in children)
