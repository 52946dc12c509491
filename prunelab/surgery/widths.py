"""What a configuration of transformers says of widths, set to what is left; and a guard where it cannot say it."""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..core import PruneError
from ..decoders import config_at, configs

WIDTH = re.compile(  # not that of the experts, which stay as wide
    r"^(?!moe_)(.*_)?(intermediate_size|ffn_dim|d_ff|n_inner|inner_dim|ffn_hidden_size|(mlp|expansion)_ratio)$|^hidden_dim$"
)
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
    if not builds(model) and not says(model, _widths(model, lines)):
        vars(model)["save_pretrained"] = refuse


def says(model: nn.Module, told: list[tuple[Any, str, float]], inside: Collection[str] = ("",)) -> bool:
    """Set what is left, (configuration, name, number) each, if a model of the configuration is then as this one."""
    before = {id(config): (config, dict(vars(config))) for config, *_ in told}
    try:
        for config, name, left in told:
            setattr(config, name, left)
        if builds(model, inside):
            return True
    except AttributeError:  # what a configuration works out by itself, as Falcon's the width of a head
        pass
    for config, values in before.values():
        vars(config).clear()
        vars(config).update(values)
    return False


def refuse(*args: Any, **kwargs: Any) -> None:
    """What `save_pretrained` is on a model that its configuration does not describe."""
    raise PruneError(
        "the configuration of this model cannot say what was cut of it, and from_pretrained would start parts of it at "
        "random: save it with pl.save_plan(folder, groups, keep, model), and rebuild it with pl.load_plan"
    )


def _widths(model: nn.Module, lines: Lines) -> list[tuple[Any, str, float]]:
    """Configurations, their widths of MLPs, and the one size that is left of these where all was cut alike."""
    left = []
    for (tensor, _), line in lines.items():
        for config, name, value in told_around(model, tensor.rpartition(".")[0], WIDTH):
            if name.endswith("ratio"):
                left.append((config, name, type(value)(value * int(line.sum()) / len(line))))
            elif value in (len(line), None):
                left.append((config, name, int(line.sum())))
    return agreed(left)


def agreed(told: Iterable[tuple[Any, str, float]]) -> list[tuple[Any, str, float]]:
    """Of (configuration, name, number) each, those whose number is always the same; each once."""
    numbers: dict[tuple[int, str], set[float]] = {}
    owner = {}
    for config, name, number in told:
        owner[id(config)] = config
        numbers.setdefault((id(config), name), set()).add(number)
    return [(owner[at], name, left.pop()) for (at, name), left in numbers.items() if len(left) == 1]


def told_around(model: nn.Module, path: str, pattern: re.Pattern[str]) -> Iterator[tuple[Any, str, Any]]:
    """Configurations around a path, and what they say under names of a pattern, but of the other side of the model."""
    other = "encoder_" if "decoder" in path.split(".") else "decoder_"
    for config in configs(model, path):
        for name in (*vars(config), *getattr(config, "attribute_map", {})):
            if pattern.search(name) and not name.startswith(other):
                yield config, name, getattr(config, name)


def builds(model: nn.Module, inside: Collection[str] = ("",)) -> bool:
    """Whether a model of the configuration has tensors of the same shapes and the same plain attributes, at paths."""
    try:
        with torch.device("meta"), torch.random.fork_rng([]):
            config: Any = model.config
            fresh = type(model)(type(config).from_dict(copy.deepcopy(config.to_dict())))
        return all(_described(model.get_submodule(p)) == _described(fresh.get_submodule(p)) for p in inside)
    except Exception:  # whatever a model's own code raises of a configuration that does not fit
        return False


def _described(model: nn.Module) -> dict[str, Any]:
    """Shapes of tensors and the plain attributes of modules, by dotted name."""
    told: dict[str, Any] = {name: t.shape for name, t in model.state_dict(keep_vars=True).items()}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            plain = type(value) in (bool, int, float, str)
            if plain and not name.startswith("_") and not any(word in name for word in IGNORED):
                told[f"{path}.{name}"] = value
    return told
