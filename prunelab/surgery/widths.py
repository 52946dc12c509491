"""What gated MLPs and their configuration declare of their width, set to what is left of it."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..decoders import MLP, config_of


def settle(model: nn.Module) -> None:
    """Declare the neurons left in each gated MLP; in the configuration too, if all MLPs have as many.

    With uneven widths the configuration keeps the width it had: `from_pretrained` then refuses the weights, and
    `load_plan` rebuilds the model.
    """
    gated: list[Any] = [m for m in model.modules() if all(isinstance(getattr(m, p, None), nn.Linear) for p in MLP)]
    for mlp in gated:
        if hasattr(mlp, "intermediate_size"):
            mlp.intermediate_size = mlp.down_proj.in_features
    left = {mlp.down_proj.in_features for mlp in gated}
    config = config_of(model)
    if len(left) == 1 and isinstance(getattr(config, "intermediate_size", None), int):
        config.intermediate_size = left.pop()
