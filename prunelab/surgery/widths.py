"""What a configuration of transformers says of widths, set to what is left; and a guard where it cannot say it."""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..core import PruneError, join
from ..decoders import config_at, configs

WIDTH = re.compile(r"((^|_)(intermediate_size|ffn_dim|d_ff|n_inner|inner_dim|ffn_hidden_size)|^hidden_dim)$")
IGNORED = ("training", "drop", "path_or_name", "nested")  # attributes that change nothing in eval mode
Lines = Mapping[tuple[str, int], Tensor]


def settle(model: nn.Module, lines: Lines, before: nn.Module) -> None:
    """Declare the neurons left in the configuration, if it can say them; and guard `save_pretrained` where it can't.

    The configuration of a Hugging Face model must build what `shrink` made of `before`: a model of it, without values,
    is held against it, but for what `before` was made without (a BertModel's pooler). With uneven widths it keeps what
    it said, and `save_pretrained` refuses and names `save_plan`: `from_pretrained` would start what it finds no weights
    for at random. A model inside one of one's own is treated alike.
    """
    for path, own in _saved("", model):
        inside = join(path, "")
        cut = {(n.removeprefix(inside), dim): line for (n, dim), line in lines.items() if n.startswith(inside)}
        _settle(own, cut, before.get_submodule(path))


def _saved(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The outermost models that `save_pretrained` saves, with their paths."""
    if callable(getattr(type(module), "save_pretrained", None)) and hasattr(config_at(module), "to_dict"):
        yield path, module
        return
    for name, child in module.named_children():
        yield from _saved(join(path, name), child)


def _settle(model: nn.Module, lines: Lines, before: nn.Module) -> None:
    vars(model).pop("save_pretrained", None)
    if _differs(model) is None:
        return
    absent = _absent(before)
    said = [(config, name, getattr(config, name)) for config, name, _ in _widths(model, lines)]
    for config, name, left in _widths(model, lines):
        setattr(config, name, left)
    if _differs(model, absent) is not None:
        for config, name, value in said:
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


def _differs(model: nn.Module, absent: Collection[str] = ()) -> str | None:
    """Where a model of the configuration is another than this one: in a tensor's shape, or in a plain attribute."""
    try:
        fresh = _fresh(model)
    except Exception as error:  # whatever a model's own code raises of a configuration that does not fit
        return f"it cannot be built: {error}"
    ours, theirs = _described(model), _described(fresh)
    names = (name for name in {**ours, **theirs} if name.partition(".")[0] not in absent)
    return next((name for name in names if ours.get(name) != theirs.get(name)), None)


def _fresh(model: Any) -> nn.Module:
    """A model of the configuration, without values."""
    with torch.device("meta"), torch.random.fork_rng([]):
        return type(model)(type(model.config).from_dict(copy.deepcopy(model.config.to_dict())))


def _absent(model: nn.Module) -> set[str]:
    """The children that a model of the configuration has and this one has not."""
    try:
        return {name for name, _ in _fresh(model).named_children()} - {name for name, _ in model.named_children()}
    except Exception:  # as above: then nothing is known
        return set()


def _described(model: nn.Module) -> dict[str, Any]:
    """Shapes of tensors and the plain attributes of modules, by dotted name."""
    told: dict[str, Any] = {name: t.shape for name, t in model.state_dict(keep_vars=True).items()}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            plain = type(value) in (bool, int, float, str)
            if plain and not name.startswith("_") and not any(word in name for word in IGNORED):
                told[f"{path}.{name}"] = value
    return told
