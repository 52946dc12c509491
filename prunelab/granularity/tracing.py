"""Which channels leave together, found by running the network's shape on channel numbers.

Every entry of a parameter gets a number a dimension: its channel there. The model runs once, and every tensor carries
*ids*, whole numbers that broadcast to its shape and say which channel an entry belongs to (0: none, it stays). What
only moves entries is done to the ids by the same operator, and so is exact for any reshape; what combines entries ties
the ids that meet; a product ties them along the dimension it sums over; an operator that nobody knows freezes what it
touches, by name. The rules are in `operators`. `scipy.sparse.csgraph.connected_components` makes the sets: no loop over
channels, no graph of our own.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils import _pytree as pytree
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from .. import layers
from ..batches import mapped, tensors, to
from ..core import PruneError, copied, device_of, mask_of, places, shape
from ..masking import bake
from ..surgery.difference import run
from . import operators
from .operators import varying

BY_HAND = (
    "What can't be traced can be described: a Group(name, units, (Member(tensor, dim), ...)) for every set of "
    "channels that must leave together is all that allocate, expand and shrink need. Or prune a traceable part of "
    "the model on its own, e.g. filters(model.backbone, example)"
)
COMPUTES_A_WEIGHT = (WeightNorm, SpectralNorm, prune.BasePruningMethod)
KEEPS_TYPE = set("relu silu sigmoid hardswish hardsigmoid hardtanh gelu tanh add mul clamp leaky_relu".split())  # noqa: SIM905
RECURRENT = (nn.RNNBase, nn.RNNCellBase)


@dataclass(frozen=True)
class Port:
    """A dimension of a tensor, or of a norm without parameters: the numbers `first` to `first + size` are its own."""

    name: str
    dim: int
    first: int
    size: int
    layer: str
    learned: bool
    bare: bool = False  # a norm without parameters


@dataclass
class Trace:
    """What a run showed: ports, which numbers leave together, why some stay, what norms average over."""

    ports: list[Port]
    label: np.ndarray  # number -> its set
    stays: dict[int, str]  # set -> why it stays
    inexact: set[int]
    assumed: dict[int, str]  # set -> what was taken for granted, for the proof to try
    opaque: dict[str, str]  # layer -> why its tensors stay as they are
    heads: dict[int, str] = field(default_factory=dict)  # set -> the module that multiplies its heads


@dataclass
class Shadow(TorchDispatchMode):
    """Follows ids through a run; see the module's docstring. With `meta`, on tensors that have shapes and no values."""

    meta: bool = False
    rules: dict[str, Any] = field(default_factory=lambda: operators.RULES)
    ports: list[Port] = field(default_factory=list)
    edges: list[np.ndarray] = field(default_factory=list)
    frozen: list[tuple[np.ndarray, str]] = field(default_factory=list)
    averaged: list[np.ndarray] = field(default_factory=list)
    guesses: list[tuple[np.ndarray, str]] = field(default_factory=list)
    split: set[int] = field(default_factory=set)  # ids of rows that a view laid side by side, as heads are
    heads: dict[int, str] = field(default_factory=dict)  # numbers of heads -> the module that multiplies them
    laid: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # ids, and those that they were laid out over
    where: list[str] = field(default_factory=lambda: [""])  # the modules that are running
    total: int = 1
    paused: bool = False

    def __post_init__(self) -> None:
        super().__init__()
        self.carried: Any = WeakIdKeyDictionary()
        self.bare: dict[str, Tensor] = {}
        self.opaque: dict[str, str] = {}
        self.seen: set[int] = set()

    def number(self, name: str, dim: int, size: int, layer: str, learned: bool, bare: bool = False) -> Tensor:
        """Numbers of its own for one dimension."""
        self.ports.append(Port(name, dim, self.total, size, layer, learned, bare))
        self.total += size
        return torch.arange(self.total - size, self.total)

    def of(self, tensor: Any) -> list[Tensor]:
        """The ids of a tensor: one tensor for each set of dimensions along which they vary."""
        return self.carried.get(tensor, []) if isinstance(tensor, Tensor) else []

    def put(self, tensor: Tensor, ids: list[Tensor]) -> None:
        """What a tensor carries from now on."""
        self.carried[tensor] = [i for i in ids if varying(i)]

    def tie(self, a: Tensor, b: Tensor) -> None:
        """The ids that meet leave together; what meets 0 stays."""
        one, other = (x.reshape(-1).numpy() for x in torch.broadcast_tensors(a, b))
        if len(one) > 4096:
            one, other = np.unique(np.stack([one, other]), axis=1)
        fixed = (one == 0) | (other == 0)
        if fixed.any():
            self.freeze(np.maximum(one, other)[fixed], "meets the model's input or a constant")
        moving = ~fixed & (one != other)
        if moving.any():
            self.edges.append(np.stack([one[moving], other[moving]]))

    def freeze(self, ids: Any, why: str) -> None:
        """These channels stay."""
        flat = ids if isinstance(ids, np.ndarray) else ids.reshape(-1).numpy()
        self.frozen.append((flat, self._placed(why)))

    def average(self, ids: Tensor) -> None:
        """Something averages over these channels, zeros included."""
        self.averaged.append(ids.reshape(-1).numpy())

    def guess(self, ids: Tensor, what: str) -> None:
        """What the code may have written as a number or worked out from the shape: taken for the latter, and tried."""
        self.guesses.append((ids.reshape(-1).numpy(), self._placed(what)))

    def _placed(self, why: str) -> str:
        return f"{why} in {self.where[-1]}" if self.where[-1] else why

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator, then do to the ids what it did to the entries."""
        kwargs = kwargs or {}
        given = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        meta = [t.is_meta for t in given]
        if self.meta and any(meta) and (not all(meta) or kwargs.get("device") is not None):
            args, kwargs = self._on_meta(func, args, kwargs)
            given = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        out = _shaped(func, args, given) if self.meta else None
        out = func(*args, **kwargs) if out is None else out
        if not self.paused:
            self.seen.update(map(id, given))
            if any(self.of(t) for t in given):
                with no_dispatch():
                    operators.follow(self, func, out, given, args, kwargs)
        return out

    def _on_meta(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The arguments with constants that the model made, which have values, stripped of them."""
        written = args[0] if func.overloadpacket.__name__.endswith("_") else None
        if isinstance(written, Tensor) and not written.is_meta:
            for tensor in pytree.tree_leaves((args, kwargs)):
                for ids in self.of(tensor):
                    self.freeze(ids, "is written into a constant")
        args, kwargs = pytree.tree_map_only(Tensor, lambda t: t if t.is_meta else t.to("meta"), (args, kwargs))
        return args, kwargs | ({"device": torch.device("meta")} if kwargs.get("device") is not None else {})


def _shaped(func: Any, args: Any, given: list[Tensor]) -> Any:
    """What the commonest operators give on the meta device, without torch's own, slower, way there; None of others."""
    name = func.overloadpacket.__name__
    if name == "native_batch_norm":
        return torch.empty_like(args[0]), args[0].new_empty(0), args[0].new_empty(0)
    if name.rstrip("_") not in KEEPS_TYPE or len({(t.dtype, t.device) for t in given}) > 1 or not args[0].is_meta:
        return None
    if name.endswith("_"):
        return args[0]
    size = torch.broadcast_shapes(*(t.shape for t in given))
    return torch.empty_like(given[0]) if given[0].shape == size else given[0].new_empty(size)


def trace(twin: nn.Module, example: Any, rules: dict[str, Any] = operators.RULES) -> Trace:
    """What leaves together in a plain twin, from one run on the example; by the rules of `operators` or `headwise`.

    On meta tensors, which have shapes and no values: nothing is computed. A model whose forward asks for values runs
    for real.
    """
    if example is None:
        raise PruneError(
            "finding filters and neurons takes a run of the model: give an example of its inputs, such as one batch "
            "(a tensor, a tuple for forward(*inputs), a dict for forward(**inputs))"
        )
    try:
        return _traced(twin, example, True, rules)
    except Exception:  # whatever a forward raises that meets a tensor without values
        _try_out(twin, example)
    try:
        return _traced(twin, example, False, rules)
    except Exception as error:
        raise PruneError(
            f"{type(twin).__name__} cannot be traced: {type(error).__name__}: {error}. {BY_HAND}"
        ) from error


def _try_out(twin: nn.Module, example: Any) -> None:
    try:
        with plainly():
            run(twin, example)
    except Exception as error:  # a forward of one's own raises what it likes
        given = ", ".join(f"{shape(t)} {t.dtype}" for t in tensors(example)) or type(example).__name__
        raise PruneError(
            f"{type(twin).__name__} cannot run on the example, {given}: {error}. Give inputs as its forward takes "
            "them: a tensor, a tuple for forward(*inputs), a dict for forward(**inputs)"
        ) from error


def plain_twin(model: nn.Module) -> nn.Module:
    """The same modules around the same parameters, in eval mode, without hooks, masks baked in; buffers are copies."""
    try:
        if any(mask_of(p.module, p.attribute) is not None for p in places(model)):
            model = bake(copy.deepcopy(model))
        twin = _around(model, {id(p): p for p in model.parameters()})
    except Exception as error:  # whatever a model's own __deepcopy__ raises
        raise PruneError(f"{type(model).__name__} cannot be copied, and is traced as a copy: {error}") from error
    for module in twin.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks):
            for key in [k for k, hook in hooks.items() if not _is_of_the_model(hook)]:
                del hooks[key]
    return twin.eval()


def _is_of_the_model(hook: Any) -> bool:
    """Whether a hook is part of what a model computes: an old weight_norm's, or one by which transformers collects."""
    return isinstance(hook, COMPUTES_A_WEIGHT) or str(getattr(hook, "__module__", "")).startswith("transformers.")


def _around(model: nn.Module, parameters: dict[int, Any]) -> nn.Module:
    """A copy of the modules, with these tensors in place of the parameters."""
    memo = dict(parameters)
    for module in model.modules():  # what an old weight_norm left, or a forward kept, is no leaf and can't be copied
        for value in vars(module).values():
            if isinstance(value, Tensor) and id(value) not in memo:
                memo[id(value)] = value.detach().clone()
    return copied(model, memo)


def _traced(twin: nn.Module, example: Any, meta: bool, rules: dict[str, Any]) -> Trace:
    own = {id(t): t for t in (*twin.parameters(), *(twin.buffers() if meta else ()))}
    if meta:
        own = {key: _emptied(t) for key, t in own.items()}
        example = mapped(_emptied, example)
    model = _around(twin, own)
    shadow = Shadow(meta, rules)
    kept = _number(shadow, model)
    _watch(shadow, model)
    with plainly(), shadow:
        for out in passes(model, example):
            _freeze_outputs(shadow, out)
    for _, tensor in kept:
        if id(tensor) not in shadow.seen:
            for ids in shadow.of(tensor):
                shadow.freeze(ids, "did not run on the example")
    return _sets(shadow)


def _emptied(tensor: Tensor) -> Tensor:
    """The same on the meta device: a shape, and no values."""
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


@contextmanager
def plainly() -> Iterator[None]:
    """Kernels that show what they do: no fused attention, nothing compiled, no gradients, no output."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    eager = torch.compiler.set_stance("force_eager")
    try:
        with (
            torch.no_grad(),
            sdpa_kernel(SDPBackend.MATH),
            eager,
            warnings.catch_warnings(),
            redirect_stdout(StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _number(shadow: Shadow, model: nn.Module) -> list[tuple[str, Tensor]]:
    """Number every dimension of every parameter and buffer; what is computed from others stays."""
    kept: list[tuple[str, Tensor]] = []
    seen: set[int] = set()
    shadow.opaque = {path: why for path, module in model.named_modules() if (why := _opaque(module))}
    for place in places(model):
        tensor, layer = place.tensor, place.name.rpartition(".")[0]
        if id(tensor) in seen or not tensor.is_floating_point():
            continue
        seen.add(id(tensor))
        kept.append((place.name, tensor))
        learned = isinstance(tensor, nn.Parameter)
        ids = []
        for dim in range(2 if operators.is_convolution(place) else tensor.dim()):
            size = tensor.shape[dim]
            if size > 1:
                own = shadow.number(place.name, dim, size, layer, learned)
                ids.append(own.reshape([-1 if d == dim else 1 for d in range(tensor.dim())]))
        shadow.put(tensor, ids)
        if layer in shadow.opaque:
            for own in ids:
                shadow.freeze(own, shadow.opaque[layer])
    return kept


def _opaque(module: nn.Module) -> str | None:
    """Why a layer's tensors stay as they are, whatever meets them."""
    if isinstance(module, RECURRENT):
        return f"is a {type(module).__name__}, whose gates stay whole"
    made = next(iter(layers.made_by(module).values()), None)
    return made and f"is made anew in every forward by {made} first"


def _watch(shadow: Shadow, model: nn.Module) -> None:
    """Say where the run is; number the channels of norms without parameters; look at no recurrent layer's inside."""

    def enter(path: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            shadow.where.append(path)
            if isinstance(module, RECURRENT):
                for tensor in (t for t in tensors((args, kwargs)) for _ in shadow.of(t)):
                    for ids in shadow.of(tensor):
                        shadow.freeze(ids, f"is read by a {type(module).__name__}")
                shadow.seen.update(map(id, module.parameters()))
                shadow.paused = True

        return hook

    def leave(module: nn.Module, *_: Any) -> None:
        shadow.where.pop()
        shadow.paused = shadow.paused and not isinstance(module, RECURRENT)

    for path, module in model.named_modules():
        module.register_forward_pre_hook(enter(path), with_kwargs=True, prepend=True)
        module.register_forward_hook(leave, always_call=True)
        size = operators.bare_channels(module)
        if size:
            shadow.bare[path] = shadow.number(path, 0, size, path, learned=False, bare=True)


def passes(model: nn.Module, inputs: Any) -> Iterator[Any]:
    """What the model returns in eval mode; and in training mode if that runs more layers (GoogLeNet's other heads)."""
    reached: set[nn.Module] = set()
    hooks = [m.register_forward_pre_hook(lambda m, _: reached.add(m)) for m in model.modules()]
    yield run(model, inputs)
    for hook in hooks:
        hook.remove()
    if all(m in reached for m in model.modules() if m._parameters and not isinstance(m, RECURRENT)):
        return
    for module in model.modules():
        module.training = next(module.children(), None) is not None  # norms and dropouts stay as in evaluation
    try:
        out = run(model, inputs)
    except Exception:  # in training it wants something else, such as targets
        return
    finally:
        model.eval()
    yield out


def _freeze_outputs(shadow: Shadow, out: Any) -> None:
    for tensor in _within(out, set()):
        for ids in shadow.of(tensor):
            shadow.freeze(ids, "is the model's output")


def _within(nest: Any, met: set[int]) -> Iterator[Tensor]:
    """Every tensor of a result, in objects of one's own too; not in caches, which grow and shrink with their layers."""
    if isinstance(nest, Tensor):
        yield nest
    elif id(nest) not in met and not isinstance(nest, (str, bytes, int, float, nn.Module, type(None))):
        met.add(id(nest))
        inner = nest.values() if hasattr(nest, "values") else nest if isinstance(nest, (tuple, list)) else ()
        if not inner and hasattr(nest, "__dict__") and not type(nest).__name__.endswith("Cache"):
            inner = vars(nest).values()
        for value in inner:
            yield from _within(value, met)


def _sets(shadow: Shadow) -> Trace:
    label = _components(shadow)
    for small, large in shadow.laid:
        _laid(shadow, label, small, large)
    if shadow.laid:
        label = _components(shadow)
    stays: dict[int, str] = {int(label[0]): "is constant"}
    for ids, why in shadow.frozen:
        for which in np.unique(label[ids]):
            stays.setdefault(int(which), why)
    assumed: dict[int, str] = {}
    for ids, what in shadow.guesses:
        for which in np.unique(label[ids]):
            assumed.setdefault(int(which), what)
    inexact = {int(w) for ids in shadow.averaged for w in np.unique(label[ids])}
    heads = {int(label[number]): where for number, where in reversed(shadow.heads.items())}
    return Trace(shadow.ports, label, stays, inexact, assumed, shadow.opaque, heads)


def _components(shadow: Shadow) -> np.ndarray:
    from scipy.sparse import coo_array  # not above: together they take a tenth of the time to import torch
    from scipy.sparse.csgraph import connected_components

    edges = np.concatenate([np.zeros((2, 1), np.int64), *shadow.edges], axis=1)
    graph = coo_array((np.ones(edges.shape[1], np.int8), tuple(edges)), shape=(shadow.total, shadow.total))
    found: np.ndarray = connected_components(graph, directed=False)[1]
    return found


def _laid(shadow: Shadow, label: np.ndarray, small: Tensor, large: Tensor) -> None:
    """What is laid out over others leaves with them if they are of one set, and stays if they are of several."""
    one, other = (x.reshape(-1).numpy() for x in torch.broadcast_tensors(small, large))
    pairs = np.unique(np.stack([one, label[other]]), axis=1)
    numbers, sets = np.unique(pairs[0], return_counts=True)
    alone = np.isin(one, numbers[sets == 1]) & (one > 0) & (other > 0)
    shadow.edges.append(np.stack([one[alone], other[alone]]))


def on(model: nn.Module, example: Any) -> Any:
    """The example on the model's device; made anew if inference mode made it, which tracing refuses."""
    return mapped(lambda t: t.clone() if t.is_inference() else t.detach(), to(example, device_of(model)))
