"""Mixtures of experts: where they lie, with the router that sends tokens to them, and what declares their number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .core import join, named, paths

COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")
TOP_K = ("top_k", "num_experts_per_tok")
ROUTING_GROUPS = ("num_group", "n_group")


@dataclass(frozen=True)
class Mixture:
    """`count` experts at `path`, of which the router beside them sends each token to `top_k`.

    The experts are fused, an entry each along dimension 0 of their module's own tensors, or, if `separate`, a list of
    modules. The router has such an entry for each expert in every tensor of its own.
    """

    path: str
    count: int
    top_k: int
    router: str
    separate: bool
    tensors: tuple[str, ...]  # the names of those with an entry for each expert, in the experts and in the router
    holders: tuple[nn.Module, nn.Module, nn.Module]  # that may declare numbers: around both, the experts, the router

    @property
    def routing_groups(self) -> int:
        """How many groups of experts the router compares before it chooses experts; 0 if it knows none."""
        return declared(self.holders, ROUTING_GROUPS) or 0

    @property
    def floor(self) -> int:
        """How many experts the router needs: the `top_k`, and the two best of a group where it compares groups."""
        return max(self.top_k, 2 if self.routing_groups else 1)


def mixtures(model: nn.Module) -> tuple[list[Mixture], list[str]]:
    """Every mixture of experts, in the model's order; and the paths of experts that no router is known to feed."""
    around = [(path, block) for block, path in paths(model).items() if block._modules.get("experts") is not None]
    own: dict[str, dict[str, Tensor]] = {}  # each module's own tensors, by its path
    for name, tensor in named(model).items() if around else ():
        own.setdefault(name.rpartition(".")[0], {})[name] = tensor
    found, unknown = [], []
    for path, block in around:
        name = join(path, "experts")
        count = _count(block.get_submodule("experts"), own.get(name, {}))
        if count:
            mixture = _mixture(path, block, count, own)
            found += [] if mixture is None else [mixture]
            unknown += [name] if mixture is None else []
    return found, unknown


def _count(experts: nn.Module, own: dict[str, Tensor]) -> int:
    """How many modules a list holds, or entries each of a module's three-dimensional tensors; 0 without either."""
    if isinstance(experts, nn.ModuleList):
        return len(experts)
    return max((len(tensor) for tensor in own.values() if tensor.dim() == 3), default=0)


def _mixture(path: str, block: nn.Module, count: int, own: dict[str, dict[str, Tensor]]) -> Mixture | None:
    """The experts in a module, if a single other module in it has an entry for each of them."""
    experts = block.get_submodule("experts")
    fused = own.get(join(path, "experts"), {})
    beside = {name: own.get(join(path, name), {}) for name, _ in block.named_children() if name != "experts"}
    routers = [name for name, held in beside.items() if held and all(_entries(t) == count for t in held.values())]
    if len(routers) != 1 or any(_entries(t) != count for t in fused.values()):
        return None
    holders = block, experts, block.get_submodule(routers[0])
    top_k = declared(holders, TOP_K)
    if top_k is None:
        return None
    tensors = (*fused, *beside[routers[0]])
    router = join(path, routers[0])
    separate = isinstance(experts, nn.ModuleList)
    return Mixture(join(path, "experts"), count, top_k, router, separate, tensors, holders)


def _entries(tensor: Tensor) -> int:
    return len(tensor) if tensor.dim() else 0


def declared(holders: tuple[Any, ...], names: tuple[str, ...]) -> int | None:
    """The first of some numbers that a module declares, as its own attribute or in its config."""
    configs = [c for h in holders if (c := getattr(h, "config", None)) is not None]
    found = (getattr(holder, name, None) for holder in (*holders, *configs) for name in names)
    return next((value for value in found if isinstance(value, int)), None)
