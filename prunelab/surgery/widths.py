"""What a configuration of transformers says of widths, set to what is left; and a guard where it cannot say it."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..core import PruneError
from ..decoders import config_at, configs

WIDTH = re.compile(r"((^|_)(intermediate_size|ffn_dim|d_ff|n_inner|inner_dim|ffn_hidden_size)|^hidden_dim)$")
IGNORED = ("training", "drop", "path_or_name", "nested")  # attributes that change nothing in eval mode
Lines = Mapping[tuple[str, int], Tensor]


def settle(model: nn.Module, lines: Lines) -> None:
    """Declare the neurons left in the configuration, if it can say them; and guard `save_pretrained` where it can't.

    The configuration of a Hugging Face model must build what `shrink` made: a model of it, without values, is held
    against it. With uneven widths it keeps what it said, and `save_pretrained` refuses and names `save_plan`:
    `from_pretrained` would start what it finds no weights for at random.
    """
    if not callable(getattr(type(model), "save_pretrained", None)) or not hasattr(config_at(model), "to_dict"):
        return
    vars(model).pop("save_pretrained", None)
    if _differs(model) is None:
        return
    before = [(config, name, getattr(config, name)) for config, name, _ in _widths(model, lines)]
    for config, name, left in _widths(model, lines):
        setattr(config, name, left)
    if _differs(model) is not None:
        for config, name, value in before:
            setattr(config, name, value)
        vars(model)["save_pretrained"] = refuse


def refuse(*args: Any, **kwargs: Any) -> None:
    """What `save_pretrained` is on a model that its configuration does not describe."""
    raise PruneError(
        "the configuration of this model cannot say what was cut of it, and from_pretrained would start parts of it at "
        "random: save it with pl.save_plan(folder, groups, keep, model), and rebuild it with pl.load_plan"
    )


def _widths(model: nn.Module, lines: Lines) -> list[tuple[Any, str, int]]:
    """Configurations, their widths of MLPs, and the one size that is left of these where all was cut alike."""
    left: dict[tuple[int, str], set[int]] = {}
    owner: dict[int, Any] = {}
    for (tensor, _), line in lines.items():
        path = tensor.rpartition(".")[0]
        for config in configs(model, path):
            owner[id(config)] = config
            for name in _named_widths(config, path):
                if getattr(config, name) in (len(line), None):
                    left.setdefault((id(config), name), set()).add(int(line.sum()))
    return [(owner[number], name, sizes.pop()) for (number, name), sizes in left.items() if len(sizes) == 1]


def _named_widths(config: Any, path: str) -> Iterator[str]:
    other = "encoder_" if "decoder" in path.split(".") else "decoder_"
    names = (*vars(config), *getattr(config, "attribute_map", {}))
    yield from (n for n in names if WIDTH.search(n) and not n.startswith(other))


def _differs(model: nn.Module) -> str | None:
    """Where a model of the configuration is another than this one: in a tensor's shape, or in a plain attribute."""
    try:
        with torch.device("meta"), torch.random.fork_rng([]):
            config: Any = model.config
            fresh = type(model)(type(config).from_dict(copy.deepcopy(config.to_dict())))
    except Exception as error:  # whatever a model's own code raises of a configuration that does not fit
        return f"it cannot be built: {error}"
    ours, theirs = _described(model), _described(fresh)
    return next((name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)), None)


def _described(model: nn.Module) -> dict[str, Any]:
    """Shapes of tensors and the plain attributes of modules, by dotted name."""
    told: dict[str, Any] = {name: t.shape for name, t in model.state_dict(keep_vars=True).items()}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            plain = type(value) in (bool, int, float, str)
            if plain and not name.startswith("_") and not any(word in name for word in IGNORED):
                told[f"{path}.{name}"] = value
    return told
