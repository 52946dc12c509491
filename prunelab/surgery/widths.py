"""What a configuration of transformers says of widths, set to what is left; and a guard where it cannot say it."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..core import PruneError, join
from ..decoders import config_at, configs

WIDTH = re.compile(  # not that of the experts, which stay as wide
    r"^(?!moe_)(.*_)?(intermediate_size|ffn_dim|d_ff|n_inner|inner_dim|ffn_hidden_size|(mlp|expansion)_ratio)$|^hidden_dim$"
)
PLAIN = (bool, int, float, str)
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
    if builds(model):
        return
    if not says(model, _widths(model, lines), absent=_absent(before)):
        vars(model)["save_pretrained"] = refuse


def says(
    model: nn.Module,
    told: list[tuple[Any, str, float]],
    inside: Collection[str] = ("",),
    absent: Collection[str] = (),
) -> bool:
    """Set what is left, (configuration, name, number) each, if a model of the configuration is then as this one."""
    before = {id(config): (config, dict(vars(config))) for config, *_ in told}
    try:
        for config, name, left in told:
            setattr(config, name, left)
        if builds(model, inside, absent):
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


def builds(model: nn.Module, inside: Collection[str] = ("",), absent: Collection[str] = ()) -> bool:
    """Whether a model of the configuration has tensors of the same shapes and the same plain attributes, at paths.

    The children named `absent` are left out.
    """
    try:
        fresh = _fresh(model)
        for path in inside:
            ours, theirs = _described(model.get_submodule(path)), _described(fresh.get_submodule(path))
            names = (name for name in {**ours, **theirs} if name.partition(".")[0] not in absent)
            if any(ours.get(name) != theirs.get(name) for name in names):
                return False
    except Exception:  # whatever a model's own code raises of a configuration that does not fit
        return False
    return True


def _fresh(model: Any) -> nn.Module:
    """A model of the configuration as it would be saved, without values: to be read only."""
    kinds: tuple[Any, Any] = type(model), type(model.config)
    return _of_text(*kinds, json.dumps(model.config.to_dict()))


@functools.lru_cache(maxsize=8)
def _of_text(kind: Any, config: Any, text: str) -> nn.Module:
    from transformers.initialization import no_init_weights

    with torch.device("meta"), torch.random.fork_rng([]), no_init_weights():
        return kind(config.from_dict(json.loads(text)))


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
            if type(value) in PLAIN and not name.startswith("_") and not any(word in name for word in IGNORED):
                told[f"{path}.{name}"] = value
    return told
