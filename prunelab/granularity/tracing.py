"""Which channels are tied: Torch-Pruning's dependency graph, read into a union of channel sets."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..attention import layers
from ..batches import tensors, to
from ..core import PruneError, device_of, join, shape
from ..masking import bake
from ..surgery.difference import floating, run
from .ports import Port, parameter_port, ports

BY_HAND = (
    "What can't be traced can be described: a Group(name, units, (Member(tensor, dim), ...)) for every set of "
    "channels that must leave together is all that allocate, expand and shrink need. Or prune a traceable part of "
    "the model on its own, e.g. filters(model.backbone, example)"
)


class Ties:
    """Channels of ports, and which of them can only leave together (a union-find forest)."""

    def __init__(self, found: list[Port]):
        self.ports = found
        self.start: dict[Port, int] = {}
        total = 0
        for port in found:
            self.start[port] = total
            total += port.size
        self.widest = max((p.size for p in found), default=0)
        self.parent = list(range(total))
        self.frozen: set[int] = set()  # channels that must stay

    def find(self, channel: int) -> int:
        """The channel that stands for all that are tied to this one."""
        while self.parent[channel] != channel:
            self.parent[channel] = self.parent[self.parent[channel]]
            channel = self.parent[channel]
        return channel

    def tie(self, a: int, b: int) -> None:
        """The two leave together, or not at all."""
        a, b = self.find(a), self.find(b)
        self.parent[max(a, b)] = min(a, b)

    def sets(self) -> list[dict[Port, list[int]]]:
        """Every set of tied channels that may leave, as port -> its channels."""
        stay = {self.find(c) for c in self.frozen}
        found: dict[int, dict[Port, list[int]]] = {}
        for port in self.ports:
            for channel in range(port.size):
                top = self.find(self.start[port] + channel)
                if top not in stay:
                    found.setdefault(top, {}).setdefault(port, []).append(channel)
        return list(found.values())


def plain_copy(model: nn.Module) -> nn.Module:
    """A copy that can be traced without a trace on the original: no masks, no hooks, gradients on, eval mode."""
    try:
        twin = bake(copy.deepcopy(model))
    except Exception as error:  # whatever a model's own __deepcopy__ raises
        raise PruneError(f"{type(model).__name__} cannot be copied, and is traced as a copy: {error}") from error
    for module in twin.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks):
            hooks.clear()
    for parameter in twin.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return twin.eval()


def trace(twin: nn.Module, example: Any) -> Ties:
    """The tied channels of a plain copy, from one forward pass on the example."""
    _try_out(twin, example)
    # Imported here, not above: whoever never removes a structure need not have it loaded.
    from torch_pruning import DependencyGraph

    graph = DependencyGraph()
    try:
        with _quiet():
            graph.build_dependency(twin, example, forward_fn=_outputs, verbose=False)
            ties = _read(graph, twin)
    except PruneError:
        raise
    except Exception as error:  # the tracer raises whatever it trips over
        raise PruneError(
            f"{type(twin).__name__} cannot be traced: {type(error).__name__}: {error}. {BY_HAND}"
        ) from error
    finally:
        _let_go(graph)
    return ties


@contextmanager
def _quiet() -> Iterator[None]:
    """Without prints and warnings; with a graph to follow, and without the activations that only a backward needs."""
    nothing = torch.autograd.graph.saved_tensors_hooks(lambda _: None, lambda _: torch.empty(0))
    with torch.enable_grad(), nothing, warnings.catch_warnings(), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")
        yield


def _let_go(graph: Any) -> None:
    """Its nodes refer to each other and to the copy, whose memory is due now, not when Python next looks for cycles."""
    for node in list(vars(graph).get("module2node", {}).values()):
        vars(node).clear()
    vars(graph).clear()


def _try_out(twin: nn.Module, example: Any) -> None:
    if example is None:
        raise PruneError(
            "finding filters and neurons takes a run of the model: give an example of its inputs, such as one batch "
            "(a tensor, a tuple for forward(*inputs), a dict for forward(**inputs))"
        )
    try:
        with torch.no_grad():
            run(twin, example)
    except Exception as error:  # a forward of one's own raises what it likes
        given = ", ".join(f"{shape(t)} {t.dtype}" for t in tensors(example)) or type(example).__name__
        raise PruneError(
            f"{type(twin).__name__} cannot run on the example, {given}: {error}. Give inputs as its forward takes "
            "them: a tensor, a tuple for forward(*inputs), a dict for forward(**inputs)"
        ) from error


def _outputs(model: nn.Module, example: Any) -> list[Tensor]:
    """All outputs, in eval mode; those of training too if that runs more layers (GoogLeNet's auxiliary heads)."""
    reached: set[nn.Module] = set()
    hooks = [m.register_forward_hook(lambda m, *_: reached.add(m)) for m in model.modules()]
    found = floating(run(model.eval(), example))
    seen = set(reached)
    if any(m not in seen for m in model.modules() if m._parameters):
        for module in model.modules():
            module.training = next(module.children(), None) is not None  # norms and dropouts stay as in evaluation
        try:
            more = floating(run(model, example))
        except Exception:  # in training it wants something else, such as targets
            more = []
        found += more if reached - seen else []
        model.eval()
    for hook in hooks:
        hook.remove()
    found = [t for t in found if t.grad_fn is not None]
    if not found:
        raise PruneError(
            f"no output of {type(model).__name__} has a gradient, and tracing follows gradients: is there a "
            f"torch.no_grad() or .detach() in its forward? {BY_HAND}"
        )
    return [t * 1 for t in found]  # an operation of its own marks each output


class Index(NamedTuple):
    """A channel at some node of the graph, and the channel of a layer that it came from."""

    idx: int  # the names Torch-Pruning's index mappings expect
    root_idx: int


def _read(graph: Any, twin: nn.Module) -> Ties:
    """Follow every channel that a layer makes through the graph, and tie to it whatever it meets."""
    names = {id(p): n for n, p in twin.named_parameters()}
    bare = [
        parameter_port(names[id(node.module)], node.module, node.pruning_dim)
        for node in graph.module2node.values()
        if isinstance(node.module, nn.Parameter)
    ]
    ties = Ties([*ports(twin), *bare])
    at = {(id(p.module), p.side): p for p in ties.ports}
    _tie_whole_groups(ties, at)
    _tie_shared_tensors(ties)
    _freeze_heads(ties, twin)
    met: dict[tuple[Any, ...], int] = {}  # (node, side, channel there) -> a channel it is tied to
    for port in ties.ports:
        start = ties.start[port]
        node = graph.module2node.get(port.module)
        if port.side == "out" and node is None:  # never run, or inside a layer unknown here
            ties.frozen.update(range(start, start + port.size))
        elif port.side == "out":
            channels = [Index(i, start + i) for i in range(port.size)]
            work = [(node, graph.get_pruner_of_module(port.module).prune_out_channels, channels)]
            while work:
                work += _step(*work.pop(), graph, ties, at, met)
    return ties


def _step(
    node: Any,
    handler: Any,
    channels: list[Index],
    graph: Any,
    ties: Ties,
    at: dict[tuple[int, str], Port],
    met: dict[tuple[Any, ...], int],
) -> list[tuple[Any, Any, list[Index]]]:
    """Channels arrive at a node: tie them to it, and say where those seen here for the first time go next."""
    port = at.get((id(node.module), _side(graph, node.module, handler)))
    stays = port is None and _must_stay(node.module)
    new = []
    for index in channels:
        channel, origin = index
        if stays or not 0 <= channel < (port.size if port else ties.widest):  # beyond: a broadcast, or lost track
            ties.frozen.add(origin)
            continue
        place = id(node), handler.__func__, channel
        if place in met:
            ties.tie(origin, met[place])
            continue
        met[place] = origin
        new.append(index)
        if port is not None:
            ties.tie(origin, ties.start[port] + channel)
    return [(d.target, d.handler, _mapped(d, new)) for d in node.dependencies if new and d.is_triggered_by(handler)]


def _mapped(dependency: Any, channels: list[Index]) -> list[Any]:
    """The channels as the next node counts them: offset by a concatenation, spread by a flattening."""
    for mapping in dependency.index_mapping:
        if mapping is not None:
            channels = mapping(channels)
    return channels


def _side(graph: Any, module: Any, handler: Any) -> str:
    if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
        return "out" if handler == graph.get_pruner_of_module(module).prune_out_channels else "in"
    return "through"


def _must_stay(node: Any) -> bool:
    """Whether channels that get here cannot leave: the model's outputs, and layers with channels unknown to `ports`."""
    if type(node).__name__ == "_OutputOp":
        return True
    return not type(node).__module__.startswith("torch_pruning") and bool(list(node.parameters()))


def _tie_whole_groups(ties: Ties, at: dict[tuple[int, str], Port]) -> None:
    """Grouped layers lose whole groups: a convolution's inputs and outputs of a group, a GroupNorm's channels."""
    for port in ties.ports:
        module, start = port.module, ties.start[port]
        if isinstance(module, nn.GroupNorm):
            each = port.size // module.num_groups
            for channel in range(port.size):
                ties.tie(start + channel, start + channel // each * each)
        elif getattr(module, "groups", 1) > 1:
            out = at[id(module), "out"]
            each, made = port.size // module.groups, out.size // module.groups
            for channel in range(port.size):
                ties.tie(start + channel, ties.start[out] + channel // each * made)


def _freeze_heads(ties: Ties, twin: nn.Module) -> None:
    """What is inside an attention head stays: `granularity.heads` removes whole heads, and less would mix them up."""
    inside = {(name, "out") for a in layers(twin) for r in (a.query, a.key, a.value) for name, *_ in r.places}
    inside |= {(a.out, "in") for a in layers(twin)}
    for port in ties.ports:
        if (join(port.layer, "weight"), port.side) in inside:
            ties.frozen.update(range(ties.start[port], ties.start[port] + port.size))


def _tie_shared_tensors(ties: Ties) -> None:
    """Layers that share a weight share its channels."""
    first: dict[tuple[int, int], Port] = {}
    for port in ties.ports:
        for attribute, dim, _ in port.owned:
            tensor = getattr(port.module, attribute) if attribute else port.module
            other = first.setdefault((id(tensor), dim), port)
            for channel in range(port.size) if other is not port else ():
                ties.tie(ties.start[port] + channel, ties.start[other] + channel)


def on(model: nn.Module, example: Any) -> Any:
    """The example on the model's device; made anew if inference mode made it, which autograd refuses."""
    return _plain(to(example, device_of(model)))


def _plain(nest: Any) -> Any:
    if isinstance(nest, Tensor):
        return nest.clone() if nest.is_inference() else nest.detach()
    if isinstance(nest, dict):
        return {k: _plain(v) for k, v in nest.items()}
    if isinstance(nest, (tuple, list)):
        return type(nest)(_plain(v) for v in nest)
    return nest
