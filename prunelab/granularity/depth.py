"""`mlps`, `attentions`, `layers`: whole modules of a Llama-like decoder; and the neurons of its gated MLPs.

Explicit functions, no tracing: a block adds to the residual stream what its attention and its MLP make, so each of
them can leave without a trace, and masked and removed are the same. `example` is not needed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ..core import Group, Member, Part, PruneError, join, places
from ..decoders import MLP, Block, blocks


def mlps(model: nn.Module, example: Any = None) -> list[Group]:
    """Entire MLPs: one group, a unit for each. The norm before it leaves with it, where nothing else reads it.

    Raises PruneError for a model that is no Llama-like decoder, and for one with a single MLP left.
    """
    return [_wholes("mlps", blocks(model), lambda b: b.mlp, lambda b: b.mlp_norm)]


def attentions(model: nn.Module, example: Any = None) -> list[Group]:
    """Entire attentions: one group, a unit for each. What a token learns of the others, it learns here.

    The norm before it leaves with it, where nothing else reads it. Errors as of `mlps`.
    """
    return [_wholes("attentions", blocks(model), lambda b: b.attention, lambda b: b.attention_norm, outputs=2)]


def layers(model: nn.Module, example: Any = None) -> list[Group]:
    """Entire decoder blocks: one group, a unit for each. The last one never leaves (`floor=1`). Errors as of `mlps`."""
    return [_wholes("layers", blocks(model), lambda b: b.path)]


def glu_neurons(model: nn.Module, example: Any = None) -> list[Group]:
    """Neurons of gated MLPs: a group an MLP, a unit its gate row, its up row (with biases) and its down column."""
    found = [(b.mlp, b.module.get_submodule("mlp")) for b in blocks(model) if b.mlp is not None]
    if not found:
        raise PruneError(f"{type(model).__name__} has no MLP left, and so no neurons")
    return [_gated(path, mlp) for path, mlp in found]


def _gated(path: str, mlp: nn.Module) -> Group:
    gate, up, down = (mlp.get_submodule(name) for name in MLP)
    # By `places`, not `named_parameters`: a mask that is on would change the weights' names.
    rows = [join(name, p.attribute) for name, m in (("gate_proj", gate), ("up_proj", up)) for p in places(m)]
    members = [Member(join(path, row), 0) for row in rows] + [Member(join(path, "down_proj.weight"), 1)]
    assert isinstance(down, nn.Linear)
    return Group(path, down.in_features, tuple(members))


def _wholes(
    name: str,
    found: list[Block],
    path: Callable[[Block], str | None],
    norm: Callable[[Block], str | None] | None = None,
    outputs: int = 1,
) -> Group:
    """One group, a unit for each block that has such a part; a norm that serves it alone is in the same unit."""
    there = [(b, own) for b in found if (own := path(b)) is not None]
    if len(there) < 2:
        raise PruneError(f"the model has {len(there)} of its {name} left, and the last one never leaves")
    parts: list[Part] = []
    for unit, (block, own) in enumerate(there):
        parts.append(Part(own, unit, outputs))
        before = norm(block) if norm else None
        if before is not None:
            parts.append(Part(before, unit))
    return Group(name, len(there), (), parts=tuple(parts))
