"""`experts`: whole experts of a mixture, each with its entries of the router."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..core import Group, Member, NothingFound, Part, PruneError
from ..mixtures import Mixture, mixtures
from .registry import register


@register("experts")
def experts(model: nn.Module, example: Any = None) -> list[Group]:
    """Experts of mixtures: a group a mixture, a unit an expert and its entries of the router's tensors.

    Found where a module called `experts`, of fused (experts, ., .) weights (Mixtral, Qwen-MoE, gpt-oss, DeepSeek-V3,
    OLMoE of transformers) or a list of modules, lies beside a router. As many stay as a token goes to (`floor`). Shared
    experts, which every token passes, are none of these. `example` is not needed.

    Not exact: without an expert its tokens go to the next best, but one of zeros keeps its place among the chosen.
    What would be the same is -inf in the router's logits, and a mask is zeros. Compare shrunk models, not masked ones.

    Raises PruneError for a model without experts, experts whose router is not known, a router that compares groups of
    equal size, and a model that needs all its experts.
    """
    found, unknown = mixtures(model)
    if unknown:
        raise PruneError(
            f"{unknown[0]}: beside it is no single module whose tensors have an entry for each expert, with a top_k: "
            "how tokens are routed to these experts is not known"
        )
    if not found:
        raise NothingFound(
            f"{type(model).__name__} has no mixture of experts: a module called experts, a list or one with fused "
            "weights (experts, ., .), beside a router"
        )
    for mixture in found:
        if mixture.routing_groups > 1:
            raise PruneError(
                f"{mixture.router} compares {mixture.routing_groups} groups of experts, all of one size: single ones "
                "can't leave. Those of models with n_group=1 can"
            )
    if all(m.count <= m.floor for m in found):
        raise PruneError(f"{found[0].router} needs all {found[0].count} experts of {found[0].path}: none can leave")
    buffers = {name for name, _ in model.named_buffers()}
    return [_group(mixture, buffers) for mixture in found]


def _group(mixture: Mixture, buffers: set[str]) -> Group:
    members = tuple(Member(name, 0, learned=name not in buffers) for name in mixture.tensors)
    separate = range(mixture.count) if mixture.separate else ()
    parts = tuple(Part(f"{mixture.path}.{unit}", unit) for unit in separate)
    return Group(mixture.path, mixture.count, members, exact=False, parts=parts, floor=mixture.floor)
