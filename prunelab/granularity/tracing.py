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
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from .. import layers
from ..core import PruneError, copied, device_of, masks_on, paths, places, shape
from ..data import mapped, tensors, to
from ..masking import bake
from ..running import run, unfused
from . import operators
from .operators import varying

BY_HAND = (
    "What can't be traced can be described: a Group(name, units, (Member(tensor, dim), ...)) for every set of "
    "channels that must leave together is all that allocate, expand and shrink need. Or prune a traceable part of "
    "the model on its own, e.g. filters(model.backbone, example)"
)
COMPUTES_A_WEIGHT = (WeightNorm, SpectralNorm, prune.BasePruningMethod)
COLLECTS = "transformers."
KEEPS_TYPE = set(
    "relu silu sigmoid hardswish hardsigmoid hardtanh gelu tanh add mul clamp leaky_relu rsqrt _safe_softmax".split()  # noqa: SIM905
)
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
    makes: str = ""  # the kind of layer, if this is where it makes its channels


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


class Where(list[str]):
    """The paths of the modules that run, the innermost last: the one that failed, if one did."""

    entered = ""  # the one that started last


@dataclass
class Shadow(TorchDispatchMode):
    """Follows ids through a run; see the module's docstring. With `meta`, on tensors that have shapes and no values."""

    meta: bool = False
    rules: dict[str, Any] = field(default_factory=lambda: operators.RULES)
    ports: list[Port] = field(default_factory=list)
    edges: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    frozen: list[tuple[np.ndarray, str]] = field(default_factory=list)
    averaged: list[np.ndarray] = field(default_factory=list)
    guesses: list[tuple[np.ndarray, str]] = field(default_factory=list)
    split: set[int] = field(default_factory=set)  # ids of rows that a view laid side by side, as heads are
    heads: dict[int, str] = field(default_factory=dict)  # numbers of heads -> the module that multiplies them
    laid: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # ids, and those that they were laid out over
    grouped: dict[str, Tensor] = field(default_factory=dict)  # convolution whose groups leave -> an id of each
    by_place: set[str] = field(default_factory=set)  # convolutions of which a place in every group leaves
    where: Where = field(default_factory=lambda: Where([""]))
    total: int = 1
    paused: bool = False

    def __post_init__(self) -> None:
        super().__init__()
        self.carried: Any = {} if self.meta else WeakIdKeyDictionary()  # what has no values may as well be kept
        self.bare: dict[str, Tensor] = {}
        self.opaque: dict[str, str] = {}
        self.seen: set[int] = set()

    def number(self, name: str, dim: int, size: int, layer: str, **more: Any) -> Tensor:
        """Numbers of its own for one dimension."""
        self.ports.append(Port(name, dim, self.total, size, layer, **more))
        self.total += size
        return torch.arange(self.total - size, self.total)

    def of(self, tensor: Any) -> list[Tensor]:
        """The ids of a tensor: one tensor for each set of dimensions along which they vary."""
        return self.carried.get(tensor, []) if isinstance(tensor, Tensor) else []

    def put(self, out: Tensor | Sequence[Tensor], ids: list[Tensor]) -> None:
        """What a tensor, or each of several, carries from now on."""
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            self.carried[tensor] = [i for i in ids if varying(i)]

    def tie(self, a: Tensor, b: Tensor) -> None:
        """The ids that meet leave together; what meets 0 stays."""
        a, b = (a, b) if a.shape == b.shape else torch.broadcast_tensors(a, b)
        one, other = a.reshape(-1).numpy(), b.reshape(-1).numpy()
        if len(one) > 4096:
            one, other = np.divmod(np.unique(one << 32 | other), 1 << 32)
        if not (one.all() and other.all()):
            moving = (one > 0) & (other > 0)
            stay = torch.from_numpy(np.maximum(one, other)[~moving])
            self.freeze("meets the model's input or a constant", stay)
            one, other = one[moving], other[moving]
        self.edges.append((one, other))

    def freeze(self, why: str, *some: Tensor) -> None:
        """These channels stay."""
        self.frozen += [(ids.reshape(-1).numpy(), self._placed(why)) for ids in some]

    def average(self, *some: Tensor) -> None:
        """Something averages over these channels, zeros included."""
        self.averaged += [ids.reshape(-1).numpy() for ids in some]

    def guess(self, ids: Tensor, what: str) -> None:
        """What the code may have written as a number or worked out from the shape: taken for the latter, and tried."""
        self.guesses.append((ids.reshape(-1).numpy(), self._placed(what)))

    def _placed(self, why: str) -> str:
        return f"{why} in {self.where[-1]}" if self.where[-1] else why

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator, then do to the ids what it did to the entries."""
        kwargs = kwargs or {}
        given = list(tensors((args, kwargs)))
        meta = [t.is_meta for t in given]
        if self.meta and any(meta) and (not all(meta) or kwargs.get("device") is not None):
            args, kwargs = self._on_meta(func, args, kwargs)
            given = list(tensors((args, kwargs)))
        out = _shaped(func, args, given) if self.meta and "dtype" not in kwargs else None
        out = func(*args, **kwargs) if out is None else out
        if not self.paused:
            self.seen.update(map(id, given))
            if any(self.of(t) for t in given):
                operators.follow(self, func, out, given, args, kwargs)
        return out

    def _on_meta(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The arguments with constants that the model made, which have values, stripped of them."""
        written = args[0] if func.overloadpacket.__name__.endswith("_") else None
        if isinstance(written, Tensor) and not written.is_meta:
            for tensor in tensors((args, kwargs)):
                self.freeze("is written into a constant", *self.of(tensor))
        args, kwargs = mapped(lambda t: t if t.is_meta else t.to("meta"), (args, kwargs))
        return args, kwargs | ({"device": torch.device("meta")} if kwargs.get("device") is not None else {})


def _shaped(func: Any, args: Any, given: list[Tensor]) -> Any:
    """What the commonest operators give on the meta device, without torch's own, slower, way there; None of others."""
    name = func.overloadpacket.__name__
    x = given[0] if given else None
    if x is None or not (x.is_meta and x.is_floating_point()) or any(t.dtype != x.dtype for t in given):
        return None
    if name == "native_batch_norm" and x.is_contiguous():
        return torch.empty_like(x), x.new_empty(0), x.new_empty(0)
    if name == "native_layer_norm" and x.shape[-len(args[1]) :] == tuple(args[1]):
        stats = *x.shape[: -len(args[1])], *[1] * len(args[1])
        return torch.empty_like(x), x.new_empty(stats), x.new_empty(stats)
    if name.rstrip("_") not in KEEPS_TYPE:
        return None
    if name.endswith("_"):
        return x
    if len(given) == 1:
        return torch.empty_like(x)
    return x.new_empty(np.broadcast_shapes(*(t.shape for t in given))) if x.is_contiguous() else None


def trace(model: nn.Module, example: Any, rules: dict[str, Any] = operators.RULES) -> Trace:
    """What leaves together in a model, from one run of a twin; by the rules of `operators` or of `headwise`.

    On meta tensors, which have shapes and no values: nothing is computed. A model whose forward asks for values runs
    for real.
    """
    if example is None:
        raise PruneError(
            "finding filters and neurons takes a run of the model: give an example of its inputs, such as one batch "
            "(a tensor, a tuple for forward(*inputs), a dict for forward(**inputs))"
        )
    try:
        return _traced(plain_twin(model, meta=True), mapped(_emptied, example), rules)
    except Exception:  # whatever a forward raises that meets a tensor without values
        twin = plain_twin(model)
        _try_out(twin, example)
    try:
        return _traced(twin, example, rules)
    except Exception as error:
        raise PruneError(
            f"{type(model).__name__} cannot be traced: {type(error).__name__}: {error}. {BY_HAND}"
        ) from error


def _try_out(twin: nn.Module, example: Any) -> None:
    try:
        with plainly():
            run(twin, example)
    except Exception as error:  # a forward of one's own raises what it likes
        given = ", ".join(f"{shape(t)} {t.dtype}" for t in tensors(example)) or type(example).__name__
        raise PruneError(
            f"{type(twin).__name__} cannot run on the example, {given}: {str(error) or type(error).__name__}. Give "
            "inputs as its forward takes them: a tensor, a tuple for forward(*inputs), a dict for forward(**inputs)"
        ) from error


def plain_twin(model: nn.Module, meta: bool = False) -> nn.Module:
    """The same modules around the same parameters and copies of the buffers, or around meta tensors in their place.

    In eval mode, masks baked in, and without hooks, but those that are part of what the model computes: an old
    weight_norm's, or one by which transformers collects.
    """
    try:
        if any(map(masks_on, paths(model))):
            model = bake(copy.deepcopy(model))
        twin = copied(model, _instead(model, meta))
    except Exception as error:  # whatever a model's own __deepcopy__ raises
        raise PruneError(f"{type(model).__name__} cannot be copied, and is traced as a copy: {error}") from error
    for module in paths(twin):
        for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks):
            for key, hook in list(hooks.items()) if hooks else ():
                if not (isinstance(hook, COMPUTES_A_WEIGHT) or getattr(hook, "__module__", "").startswith(COLLECTS)):
                    del hooks[key]
    return twin.eval()


def _instead(model: nn.Module, meta: bool) -> dict[int, Any]:
    """What a twin has in place of the model's tensors, by their ids."""
    memo: dict[int, Any] = {id(p): _emptied(p) if meta else p for p in model.parameters()}
    memo |= {id(b): _emptied(b) if meta else b.clone() for b in model.buffers()}
    for module in paths(model):  # what an old weight_norm left, or a forward kept, is no leaf and can't be copied
        for value in vars(module).values():
            if isinstance(value, Tensor):
                memo.setdefault(id(value), value.detach().clone())
    return memo


def _traced(model: nn.Module, example: Any, rules: dict[str, Any]) -> Trace:
    by_place: set[str] = set()
    while True:
        shadow = Shadow(all(t.is_meta for t in (*model.parameters(), *tensors(example))), rules, by_place=by_place)
        _follow(shadow, model, example)
        found = _sets(shadow)
        tied = {path for path, ids in shadow.grouped.items() if len(np.unique(found.label[ids])) == 1}
        if not tied:
            return found
        by_place = by_place | tied


def _follow(shadow: Shadow, model: nn.Module, example: Any) -> None:
    for module, path in paths(model).items():
        if why := _opaque(module):
            shadow.opaque[path] = why
        if size := operators.bare_channels(module):
            shadow.bare[path] = shadow.number(path, 0, size, path, learned=False, bare=True)
        if isinstance(module, RECURRENT):
            vars(module)["forward"] = _unseen(shadow, module)
    kept = _number(shadow, model)
    with plainly(), shadow:
        for out in passes(model, example, shadow.where):
            for tensor in _within(out, set()):
                shadow.freeze("is the model's output", *shadow.of(tensor))
    for tensor in kept:
        if id(tensor) not in shadow.seen:
            shadow.freeze("did not run on the example", *shadow.of(tensor))


def _emptied(tensor: Tensor) -> Tensor:
    """The same on the meta device: a shape, and no values."""
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def plainly() -> ExitStack:
    """Kernels that show what they do: no fused attention, nothing compiled, no gradients, no output."""
    with ExitStack() as stack:
        stack.enter_context(unfused())
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(warnings.catch_warnings())
        stack.enter_context(redirect_stdout(StringIO()))
        warnings.simplefilter("ignore")
        return stack.pop_all()


def _number(shadow: Shadow, model: nn.Module) -> list[Tensor]:
    """Number every dimension of every parameter and buffer; what is computed from others stays."""
    kept: dict[int, Tensor] = {}
    for place in places(model):
        tensor, layer = place.tensor, place.name.rpartition(".")[0]
        if id(tensor) in kept or not tensor.is_floating_point():
            continue
        kept[id(tensor)] = tensor
        learned = isinstance(tensor, nn.Parameter)
        kind, at = (operators.makes(place.module) if place.attribute == "weight" else None) or ("", None)
        ids = []
        for dim in range(2 if kind in ("convolution", "depthwise") else tensor.dim()):
            size = tensor.shape[dim]
            if size > 1:
                makes = kind if dim == at else ""
                own = shadow.number(place.name, dim, size, layer, learned=learned, makes=makes)
                ids.append(operators.along(own, dim, tensor.dim()))
        shadow.put(tensor, ids)
        if layer in shadow.opaque:
            shadow.freeze(shadow.opaque[layer], *ids)
    return list(kept.values())


def _opaque(module: nn.Module) -> str | None:
    """Why a layer's tensors stay as they are, whatever meets them."""
    if isinstance(module, RECURRENT):
        return f"is a {type(module).__name__}, whose gates stay whole"
    made = next(iter(layers.made_by(module).values()), None)
    return made and f"is made anew in every forward by {made} first"


def _unseen(shadow: Shadow, module: nn.Module) -> Callable[..., Any]:
    """A recurrent layer's forward, at whose inside nobody looks: what it reads stays."""
    forward = module.forward

    def running(*args: Any, **kwargs: Any) -> Any:
        for tensor in tensors((args, kwargs)):
            shadow.freeze(f"is read by a {type(module).__name__}", *shadow.of(tensor))
        shadow.seen.update(map(id, module.parameters()))
        shadow.paused = True
        try:
            return forward(*args, **kwargs)
        finally:
            shadow.paused = False

    return running


def passes(model: nn.Module, inputs: Any, where: Where) -> Iterator[Any]:
    """What the model returns in eval mode; and in training mode if that runs more layers (GoogLeNet's other heads)."""
    reached: set[nn.Module] = set()
    modules = paths(model)
    before = {module: vars(module).get("forward") for module in modules}
    try:
        for module, path in modules.items():  # in the time that hooks take, one could run a small network
            vars(module)["forward"] = _noted(module, path, where, reached)
        yield run(model, inputs)
        if all(m in reached for m in modules if m._parameters and not isinstance(m, RECURRENT)):
            return
        for module in modules:
            module.training = next(module.children(), None) is not None  # norms and dropouts stay as in evaluation
        try:
            out = run(model, inputs)
        except Exception:  # in training it wants something else, such as targets
            return
        finally:
            model.eval()
        yield out
    finally:
        for module, forward in before.items():
            vars(module).pop("forward") if forward is None else vars(module).update(forward=forward)


def _noted(module: nn.Module, path: str, where: Where, reached: set[nn.Module]) -> Callable[..., Any]:
    forward = module.forward

    def running(*args: Any, **kwargs: Any) -> Any:
        reached.add(module)
        depth = len(where)
        where.append(path)
        where.entered = path
        out = forward(*args, **kwargs)
        del where[depth:]
        return out

    running.__wrapped__ = forward  # type: ignore[attr-defined]  # for those who look at its signature
    return running


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
    stays = _first_said(label, [(np.zeros(1, int), "is constant"), *shadow.frozen])
    assumed = _first_said(label, shadow.guesses)
    inexact = set(_first_said(label, [(ids, "") for ids in shadow.averaged]))
    heads = {int(label[number]): where for number, where in reversed(shadow.heads.items())}
    return Trace(shadow.ports, label, stays, inexact, assumed, shadow.opaque, heads)


def _first_said(label: np.ndarray, notes: list[tuple[np.ndarray, str]]) -> dict[int, str]:
    """The first note on numbers of each set."""
    first = np.full(label.max() + 1, -1)
    for at in reversed(range(len(notes))):
        first[label[notes[at][0]]] = at
    return {which: notes[first[which]][1] for which in np.nonzero(first >= 0)[0].tolist()}


def _components(shadow: Shadow) -> np.ndarray:
    from scipy.sparse import coo_array  # not above: together they take a tenth of the time to import torch
    from scipy.sparse.csgraph import connected_components

    # int32: scipy 1.11 gives nothing, or an error, for indices of 64 bits
    ends = tuple(np.concatenate([[0], *each]).astype(np.int32) for each in zip(([], []), *shadow.edges, strict=True))
    graph = coo_array((np.ones(len(ends[0]), np.int8), ends), shape=(shadow.total, shadow.total))
    found: np.ndarray = connected_components(graph, directed=False)[1]
    return found


def _laid(shadow: Shadow, label: np.ndarray, small: Tensor, large: Tensor) -> None:
    """What is laid out over others leaves with them if they are of one set, and stays if they are of several."""
    one, other = (x.reshape(-1).numpy() for x in torch.broadcast_tensors(small, large))
    pairs = np.unique(np.stack([one, label[other]]), axis=1)
    numbers, sets = np.unique(pairs[0], return_counts=True)
    alone = np.isin(one, numbers[sets == 1]) & (one > 0) & (other > 0)
    shadow.edges.append((one[alone], other[alone]))


def on(model: nn.Module, example: Any) -> Any:
    """The example on the model's device; made anew if inference mode made it, which tracing refuses."""
    return mapped(lambda t: t.clone() if t.is_inference() else t.detach(), to(example, device_of(model)))
