"""`mlps`, `attentions`, `layers`: whole modules of a Transformer; and the neurons of gated MLPs.

A block adds to the stream what its attention and its MLP make, so each of them can leave. What its place then does is
tried in every block, on the example: with zeros in the part, and without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..core import Group, Groups, Member, NothingFound, Part, PruneError, join, places
from ..decoders import Block, blocks, is_norm
from ..running import attempt, entering, hooked, leaving, uncached, undisturbed, while_in
from ..surgery.removal import Absent
from .registry import register
from .tracing import on


@register("mlps")
def mlps(model: nn.Module, example: Any = None) -> Groups:
    """Entire MLPs, or mixtures of experts: a group a stack of blocks, a unit for each.

    A norm that serves it alone leaves with it. Each is tried on the example, on the model's own `dummy_inputs` without
    one: what fails or computes something else without the MLP than with zeros in it stays, and `stays` of the result
    says so. A stack keeps its last; one with a single MLP has no group.

    Raises PruneError for a model without blocks or MLPs that could go, with LoRA, or with layers that share weights,
    and if there is no example to try them on.

    >>> from prunelab import zoo
    >>> [group.units for group in mlps(zoo.vit(depth=3), torch.zeros(1, 1, 16, 16))]
    [3]
    """
    return _wholes("mlps", "MLP", model, example)


@register("attentions")
def attentions(model: nn.Module, example: Any = None) -> Groups:
    """Entire attentions, self and cross: a group a stack. What a token learns of the others, it learns here.

    Otherwise as `mlps`. In T5 that of block 0 stays: it holds the table of relative positions for all.

    >>> from prunelab import zoo
    >>> [group.units for group in attentions(zoo.vit(depth=3), torch.zeros(1, 1, 16, 16))]
    [3]
    """
    return _wholes("attentions", "attention", model, example)


@register("layers")
def layers(model: nn.Module, example: Any = None) -> Groups:
    """Entire blocks: a group a stack (of an encoder-decoder, a tower, a stage), a unit for each. Errors as of `mlps`.

    `exact` where a block of zeros passes on what comes in. Behind a norm of the sum (BERT, BART) it would not: there
    compare shrunk models, not masked ones. T5's block 0 stays, as in `attentions`.

    >>> from prunelab import zoo
    >>> [group.units for group in layers(zoo.vit(depth=3), torch.zeros(1, 1, 16, 16))]
    [3]
    """
    return _wholes("layers", "layer", model, example)


def glu_neurons(model: nn.Module, example: Any = None) -> list[Group]:
    """Neurons of gated MLPs: a group an MLP, a unit its gate row, its up row (with biases) and its down column."""
    found = [block.mlp[0] for block in blocks(model) if block.mlp]
    if not found:
        raise NothingFound(f"{type(model).__name__} has no MLP left, and so no neurons")
    return [_gated(path, model.get_submodule(path)) for path in found]


def _gated(path: str, mlp: nn.Module) -> Group:
    # By `places`, not `named_parameters`: a mask that is on would change the weights' names.
    rows = [join(n, p.attribute) for n in ("gate_proj", "up_proj") for p in places(mlp.get_submodule(n))]
    members = [Member(join(path, row), 0) for row in rows] + [Member(join(path, "down_proj.weight"), 1)]
    down = mlp.get_submodule("down_proj")
    assert isinstance(down, nn.Linear)
    return Group(path, down.in_features, tuple(members))


@dataclass
class Trial:
    """What came of a part when it was tried: what leaves with it, or why it stays; and whether zeros do the same."""

    block: Block
    paths: tuple[str, ...]
    parts: list[tuple[str, int, int]] = field(default_factory=list)  # of each module its path, outputs, and `passes`
    exact: bool = True
    stays: str = ""


def _wholes(what: str, noun: str, model: nn.Module, example: Any) -> Groups:
    found = blocks(model)
    strange = [f"{b.path}.{name}" for b in found for name, _ in b.module.named_children() if "per_layer" in name]
    if strange:
        raise PruneError(f"{strange[0]} reads per-layer inputs, which are counted off by layer: its {what} can't leave")
    trials = [Trial(block, paths) for block in found for paths in block.parts(what)]
    if not trials:
        raise NothingFound(f"{type(model).__name__} has no {noun} in its blocks")
    _try(model, trials, example)
    paths = list(dict.fromkeys(trial.block.stack for trial in trials))
    groups = Groups(stays={".".join(t.paths[:1]): t.stays for t in trials if t.stays})
    for path in paths:
        own = [t for t in trials if t.block.stack == path]
        leaving = [t for t in own if not t.stays]
        if len(leaving) > 1 or (leaving and len(own) > 1):
            longer = len(own) if own[-1].stays and what == "layers" else 0
            groups.append(_group(_name(path, paths, what), leaving, longer))
        else:
            groups.stays |= {t.paths[0]: f"is the last of its {what}, which never leaves" for t in leaving}
    if not groups:
        why = "; ".join(f"{path} {reason}" for path, reason in list(groups.stays.items())[:3])
        raise PruneError(f"{type(model).__name__} has {len(trials)} of its {what} left, and none can leave: {why}")
    return groups


def _name(path: str, paths: Sequence[str], what: str) -> str:
    """As `what` if there is one stack, else with the path of the module that holds the stack, if that is enough."""
    above = [p.rpartition(".")[0] for p in paths]
    return what if len(paths) == 1 else join(path if len(set(above)) < len(paths) else path.rpartition(".")[0], what)


def _group(name: str, trials: list[Trial], of: int) -> Group:
    parts = tuple(replace(Part(path, unit, *rest), of=of) for unit, t in enumerate(trials) for path, *rest in t.parts)
    return Group(name, len(trials), (), all(t.exact for t in trials), parts)


def _try(model: nn.Module, trials: list[Trial], example: Any) -> None:
    """Run the model once, and each of its blocks with and without its parts."""
    inputs = getattr(model, "dummy_inputs", None) if example is None else example
    if inputs is None:
        raise PruneError(f"what the blocks of this {type(model).__name__} do without a part is tried: give an example")
    at = {trial.block.module: trial.block for trial in trials}
    ran: list[nn.Module] = []

    def judge(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ran.append(module)
        for trial in trials:
            if trial.block.module is module:
                _judge(model, trial, args, kwargs)

    with hooked(at, judge), undisturbed(model), uncached(model), torch.no_grad():
        attempt(model, on(model, inputs))
    for module, block in at.items():
        times = ran.count(module)
        if times != 1:
            raise PruneError(f"{block.path} runs {times} times on the example: give one on which each block runs once")
    _keep_needed(trials)


def _keep_needed(trials: list[Trial]) -> None:
    """What holds a table that the others of its stack read stays: T5's first block, and its self-attention.

    So does the only block of a stack with an attention: the positions in the cache are counted by it.
    """
    for trial in trials:
        attending = [t for t in trials if t.block.stack == trial.block.stack and t.block.attentions]
        if attending == [trial] and trial.paths == (trial.block.path,):
            trial.stays = "is the only block of its stack with an attention"
        tables = [m for path in trial.paths for m in _inside(trial, path).modules() if isinstance(m, nn.Embedding)]
        others = [t for t in trials if t.block.stack == trial.block.stack and t.block is not trial.block]
        if tables and others and not any(isinstance(m, nn.Embedding) for t in others for m in t.block.module.modules()):
            trial.stays = "holds a table of relative positions that the blocks after it read"


def _inside(trial: Trial, path: str) -> nn.Module:
    return trial.block.module.get_submodule(path.removeprefix(trial.block.path).removeprefix("."))


def _judge(model: nn.Module, trial: Trial, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Compare the block as it would be without the part to what it is with zeros in it."""
    x = entering(args, kwargs)

    def run() -> Tensor:
        return leaving(trial.block.module.forward(*args, **kwargs))

    if trial.paths == (trial.block.path,):
        if run().shape != x.shape:
            trial.stays = "gives something of another shape than it is given"
        with _zeroed([trial.block.module]):
            trial.exact = _same(run(), x)
        trial.parts = [(trial.block.path, 1, 0)]
        return
    modules = {path: model.get_submodule(path) for path in trial.paths}
    heard: dict[nn.Module, tuple[int, int]] = {}
    with _zeroed(modules.values()), _listened(modules.values(), heard):
        zeros = run()
    told = [(path, *heard.get(module, (1, 0))) for path, module in modules.items()]
    if not _fits(model, told, run, zeros):
        trial.stays = "cannot leave: without it its block fails, or computes something else than with zeros in it"
        return
    for name, module in trial.block.module.named_modules():
        path = join(trial.block.path, name)
        if is_norm(module) and list(module.parameters()) and not any(path.startswith(f"{p}.") for p in trial.paths):
            with _zeroed([*modules.values(), module]):
                alike = _same(run(), zeros)
            if alike and _fits(model, [*told, (path, 1, 0)], run, zeros):
                told.append((path, 1, 0))
    trial.parts = told


def _fits(model: nn.Module, told: Sequence[tuple[str, int, int]], run: Any, zeros: Tensor) -> bool:
    try:
        with _without(model, told):
            return _same(run(), zeros)
    except Exception:  # whatever the block's own code raises without a part that it needs
        return False


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether they differ by less than 1e-5 of the largest value."""
    return one.shape == other.shape and bool((one - other).abs().max() <= 1e-5 * other.abs().max())


def _zeroed(modules: Iterable[nn.Module]) -> ExitStack:
    """Zeros in all of these for the length of a block."""
    with ExitStack() as stack:
        for p in (p for m in modules for p in m.parameters()):
            stack.callback(setattr, p, "data", p.data)
            p.data = torch.zeros_like(p.data)
        return stack.pop_all()


def _without(model: nn.Module, told: Sequence[tuple[str, int, int]]) -> ExitStack:
    """What adds nothing in place of some modules for the length of a block."""
    with ExitStack() as stack:
        for path, *rest in told:
            above, _, name = path.rpartition(".")
            parent, module = model.get_submodule(above), model.get_submodule(path)
            stack.callback(setattr, parent, name, module)
            setattr(parent, name, Absent(module, *rest))
        return stack.pop_all()


def _listened(modules: Iterable[nn.Module], heard: dict[nn.Module, tuple[int, int]]) -> ExitStack:
    """Notes of each module how many things it gives, and which of its positional inputs it passes on as it is."""

    def note(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        passed = [i for i, a in enumerate(args) if i and isinstance(a, Tensor) and _same(leaving(out), a)]
        heard[module] = max(len(out), 2) if isinstance(out, tuple) else 1, passed[0] if passed else 0

    return while_in(m.register_forward_hook(note) for m in modules)
