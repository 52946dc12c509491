"""Is a group right? Try it: mask half of its units, remove them, and compare what the layers behind them compute.

Both runs see the same disturbed weights, laid in operator by operator, so that the model itself is never touched and
never copied. Where a norm or a mean counts channels that are gone from one of the runs, and where values decide what
happens next (the best boxes, a threshold), the second run takes the figures of the first: what is left to differ is
the mapping of channels, and that is what is tried.
"""

from __future__ import annotations

import collections
import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from ..core import Group, Keep, PruneError, device_of, named, places
from ..data import mapped
from ..running import apart, floating, seed_dice
from ..surgery.shrinking import Lines, cuts, shrink
from .operators import REDUCED, SUMS, made_at, said
from .tracing import Where, passes, plain_twin, plainly

TOLERANCE = 1e-4  # float32 rounding stays below 1e-5, what is not exact is above 1e-3
ROUGH = 0.05  # of a model that runs in half precision only
SAMPLE = 8192  # entries of each product that are compared
PRODUCTS = {"mm", "bmm", "addmm", "baddbmm", "convolution", "mv", "deform_conv2d"}
DECISIONS = {
    "topk", "sort", "argmax", "argmin", "nonzero", "nms", "gt", "ge", "lt", "le", "eq", "ne", "_local_scalar_dense",
    "bincount",
}  # fmt: skip
AVERAGES = REDUCED - SUMS
NORMS = {"native_layer_norm", "native_group_norm", "_fused_rms_norm", "native_batch_norm"}
SOFTMAX = {"_softmax", "_safe_softmax"}
FOLLOWED = DECISIONS | AVERAGES | NORMS | SOFTMAX


def proven(
    model: nn.Module, groups: Sequence[Group], assumed: Mapping[str, str], example: Any
) -> tuple[list[Group], dict[str, str]]:
    """The groups that hold, `exact` only where that was seen, and of the others, by name, why not.

    All are tried at once, with two forwards; if that fails, those are found that it fails for.
    """
    if not groups:
        return [], {}
    trial = Trial(plain_twin(model), example)
    kept = list(groups)
    unsure: list[Group] = []
    while kept and (why := trial.failure(kept)):
        inside = next(filter(None, ([g for g in kept if _inside(g, place)] for place in trial.places)), [])
        blamed = [g for g in inside or kept if g.name in assumed] or inside or kept
        if len(inside or blamed) == 1:
            trial.why[blamed[0].name] = why
        else:
            unsure += blamed  # some of them may hold after all
        kept = [g for g in kept if g not in blamed]
    kept = trial.largest(kept, unsure)
    refuted = {g.name: _told(trial.why.get(g.name, ""), assumed.get(g.name)) for g in groups if g not in kept}
    return [replace(g, exact=g.exact and g.name in trial.seen) for g in groups if g in kept], refuted


def _told(why: str, assumed: str | None) -> str:
    return f"was tried, and {why}" + (f" ({assumed})" if assumed else "")


def _inside(group: Group, path: str) -> bool:
    return bool(path) and any(m.tensor.startswith(f"{path}.") for m in group.members)


@dataclass
class Trial:
    """Masked and shrunk beside each other, for any selection of the groups."""

    twin: nn.Module
    example: Any
    why: dict[str, str] = field(default_factory=dict)  # group -> why it failed alone
    seen: set[str] = field(default_factory=set)  # groups behind which something was compared in the last good run
    places: tuple[str, ...] = ()  # where the last bad run may have gone astray: the module entered last, the one failed
    left: int = 16  # trials of some groups again, of those that failed together

    def largest(self, base: list[Group], more: list[Group]) -> list[Group]:
        """The base with as many more groups as hold together, halving what fails."""
        if not more:
            return base
        self.left -= 1
        if self.left < 0:
            self.why.update(dict.fromkeys((g.name for g in more), "failed together with others, too many to try alone"))
            return base
        why = self.failure([*base, *more])
        if not why:
            return [*base, *more]
        if len(more) == 1:
            self.why[more[0].name] = why
            return base
        half = len(more) // 2
        return self.largest(self.largest(base, more[:half]), more[half:])

    def failure(self, groups: list[Group]) -> str:
        """What is wrong with the shrunk model, and `places`; or nothing, and `seen` is up to date."""
        keep = _half(groups)
        try:
            lines = cuts(self.twin, groups, keep)
            small = shrink(self.twin, groups, keep).eval()
        except PruneError as error:
            return str(error)
        whole = named(self.twin)
        for wide in (True, False):  # half precision is too coarse to compare in, where the model runs without it
            try:
                before = self._run(self.twin, whole, lines, None, wide)
                break
            except Exception as error:
                if not wide:
                    raise PruneError(f"{type(self.twin).__name__} cannot run on the example: {error}") from error
        try:
            after = self._run(small, whole, lines, before, wide)
        except Exception as error:  # whatever a forward raises on sizes it does not expect
            return f"the model fails without some of its channels: {(str(error) or type(error).__name__)[:150]}"
        return self._compared(groups, before, after, TOLERANCE if wide else ROUGH)

    def _run(
        self, model: nn.Module, whole: Mapping[str, Tensor], lines: Lines, other: Replay | None, wide: bool
    ) -> Replay:
        rows = {name: line for (name, dim), line in lines.items() if dim == 0}
        replay = Replay(_values(model, whole, lines, other is None, wide), other, rows)
        inputs = mapped(lambda t: t.float() if wide and t.is_floating_point() else t, self.example)
        where = Where([""])
        try:
            with plainly(), replay:
                seed_dice(0, device_of(model))  # a forward that draws lots draws the same ones
                for out in passes(model, inputs, where):
                    if not replay.known:  # what training mode repeats it may disturb, by dropping paths
                        replay.products["", "", 0] = _sample(floating(out))
                        replay.known = {name for name, _, _ in replay.products}
        finally:
            self.places = where.entered, where[-1]
        return replay

    def _compared(self, groups: list[Group], before: Replay, after: Replay, tolerance: float) -> str:
        compared = set()
        for key, one in before.products.items():
            other = after.products.get(key)
            if other is None or one.shape != other.shape or not one.numel() or not bool(one.isfinite().all()):
                continue
            if key[0] and bool((one[-1] != other[-1]).any()):  # of more boxes, say
                continue
            one, other = (t[:-1] if key[0] else t for t in (one, other))
            gap = apart([one], [other])
            if not gap <= tolerance:
                where = f"{key[0]} computes" if key[0] else "the outputs are"
                self.places = (key[0].rpartition(".")[0],)
                return f"without some of its channels {where} something else (by {gap:.0e} of the largest)"
            compared.add(key[0])
        self.seen = _behind(self.twin, groups, compared)
        return ""


def _behind(twin: nn.Module, groups: Sequence[Group], compared: set[str]) -> set[str]:
    """The groups that a compared product reads, itself or by way of other groups."""
    reads = {g.name: {m.tensor for m in g.members if made_at(twin, m.tensor) not in (None, m.dim)} for g in groups}
    makes = {g.name: {m.tensor for m in g.members if made_at(twin, m.tensor) == m.dim} for g in groups}
    seen: set[str] = set()
    more = {name for name, tensors in reads.items() if tensors & compared}
    while more:
        seen |= more
        known = set().union(*(makes[name] for name in more))
        more = {name for name, tensors in reads.items() if name not in seen and tensors & known}
    return seen


@dataclass
class Replay(TorchDispatchMode):
    """A run with other values for the parameters, which notes what products make; or follows another such run."""

    values: Mapping[int, tuple[str, Callable[[], Tensor]]]
    other: Replay | None
    rows: Mapping[str, Tensor]  # of parameters that lose some: which of the other run's stay
    products: dict[tuple[str, str, int], Tensor] = field(default_factory=dict)  # parameter, operator, call -> a sample
    told: dict[tuple[str, int], tuple[Any, Any]] = field(default_factory=dict)  # operator, call -> shape given, result
    calls: collections.Counter[str] = field(default_factory=collections.Counter)
    known: set[str] = field(default_factory=set)  # the parameters whose products the pass in eval mode has noted
    names: Any = field(default_factory=WeakIdKeyDictionary)  # what was made of a parameter alone -> its name

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The operator on the values, or what the other run got."""
        names: list[str] = []  # of the tensors that go in; "" for those that are not made of parameters alone
        args, kwargs = mapped(lambda t: self._value(t, names), (args, kwargs or {}))
        name = func.overloadpacket.__name__.rstrip("_")
        out = func(*args, **kwargs)
        if name == "bernoulli":  # what a dropout draws, in the pass in training mode
            out.fill_(1)
        elif name == "native_dropout":
            out = args[0].clone(), torch.ones_like(args[0], dtype=torch.bool)
        if name in PRODUCTS and any(names):
            key = min(filter(None, names), key=lambda n: n.endswith("bias"))
            self.calls[key] += 1
            if key not in self.known:
                self.products[key, name, self.calls[key]] = _moments(out, 1 if "conv" in name else -1)
        elif name in FOLLOWED:
            self.calls[name] += 1
            out = self._followed(name, args[0], said(func, args, kwargs), out, names[0] if names else "")
        if len(set(names)) == 1 and names[0] and isinstance(out, Tensor):
            self.names[out] = names[0]
        return out

    def _value(self, tensor: Tensor, names: list[str]) -> Tensor:
        if id(tensor) in self.values:
            name, value = self.values[id(tensor)]
            names.append(name)
            return value()
        names.append(self.names.get(tensor, ""))
        return tensor

    def _followed(self, name: str, x: Any, given: dict[str, Any], out: Any, made_of: str) -> Any:
        """The result; or that of the other run where channels are missing from an average, or values decide."""
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return out
        key = name, self.calls[name]
        if self.other is None:
            kept = x.logsumexp(given["dim"], True) if name in SOFTMAX else out[1:] if name in NORMS else out
            self.told[key] = x.shape, kept
            return out
        if key not in self.other.told:
            return out
        size, told = self.other.told[key]
        if made_of in self.rows and size != x.shape:  # statistics of a weight that is standardised, row by row
            rows = self.rows[made_of]
            told = mapped(lambda t: t[rows.to(t.device)] if t.shape[:1] == rows.shape else t, told)
        if name in NORMS or name in SOFTMAX:
            return out if size == x.shape else _renormed(name, x, given, out, told)
        first, theirs = (o[0] if isinstance(o, (tuple, list)) else o for o in (out, told))
        if name in DECISIONS:
            return _redecided(x, given.get("dim", -1), out, told) if size == x.shape else out
        alike = isinstance(first, Tensor) and isinstance(theirs, Tensor) and first.shape == theirs.shape
        return told if alike and size != x.shape else out


def _renormed(name: str, x: Tensor, given: dict[str, Any], out: Any, told: Any) -> Any:
    """A norm with the statistics of the other run; as it is where whole groups or heads went, with theirs."""
    if name in SOFTMAX:
        return (x - told).exp() if told.shape == out.sum(given["dim"], True).shape else out
    if told[0].shape != out[1].shape or not given.get("training", True):
        return out
    stats, w, b = told, given.get("weight"), given.get("bias")
    if name in ("native_batch_norm", "native_group_norm"):
        view = [1, -1, *[1] * (x.dim() - 2)]
        w, b = (t if t is None else t.view(view) for t in (w, b))
        each = x.shape[1] // given.get("group", x.shape[1])
        stats = [t.repeat_interleave(each, -1).reshape(-1, x.shape[1], *view[2:]) for t in told]
    made = x * stats[0] if name == "_fused_rms_norm" else (x - stats[0]) * stats[1]
    return (made.contiguous() * (1 if w is None else w) + (0 if b is None else b), *told)


def _redecided(x: Tensor, dim: int, out: Any, told: Any) -> Any:
    """The other run's choice; the values chosen are one's own."""
    if not isinstance(out, (tuple, list)):
        return told
    indices = told[1]
    return x.gather(dim, indices), indices


def _moments(made: Tensor, channel: int) -> Tensor:
    """Mean and root mean square of each channel, and how many numbers it has: in whatever order a layer lays them."""
    rows = made.detach().movedim(channel, -1).reshape(-1, made.shape[channel]).double()
    count = rows.new_full((1, rows.shape[1]), len(rows))
    return torch.cat([rows.mean(0, True), rows.square().mean(0, True).sqrt(), count]).cpu()


def _sample(made: Sequence[Tensor]) -> Tensor:
    """Some thousand entries of what was made, spread over all of it."""
    flat = [t.detach().flatten() for t in made if t.is_floating_point()]
    some = [f[:: max(1, len(f) // SAMPLE) | 1].double() for f in flat]
    return torch.cat(some).cpu() if some else torch.empty(0)


def _values(
    model: nn.Module, whole: Mapping[str, Tensor], lines: Lines, masked: bool, wide: bool
) -> dict[int, tuple[str, Callable[[], Tensor]]]:
    """For every parameter and buffer, by id: its name, and a function to its disturbed values, masked or cut."""
    found: dict[int, tuple[str, Callable[[], Tensor]]] = {}
    own: dict[str, list[tuple[int, Tensor]]] = {}
    for (name, dim), line in lines.items():
        own.setdefault(name, []).append((dim, line))
    for place in places(model):
        tensor = place.tensor
        if id(tensor) not in found and tensor.is_floating_point():
            value = functools.partial(_value, place.name, whole[place.name], own.get(place.name, ()), masked, wide)
            found[id(tensor)] = place.name, value
    return found


def _value(name: str, whole: Tensor, lines: Sequence[tuple[int, Tensor]], masked: bool, wide: bool) -> Tensor:
    values = _disturbed(name, whole.detach().float() if wide else whole.detach())
    for dim, line in lines:
        line = line.to(values.device)
        if masked:
            values = values * line.view([-1 if d == dim else 1 for d in range(values.dim())])
        else:
            values = values.index_select(dim, line.nonzero().squeeze(1))
    return values


def _disturbed(name: str, values: Tensor) -> Tensor:
    """With other numbers where a fresh network has zeros and ones (biases, norms, layer scales), which hide errors."""
    vector = max(values.shape, default=0) == values.numel()
    if not values.numel() or (not vector and float(values.max()) > float(values.min())):
        return values
    dice = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    values = values * (torch.rand(values.shape, generator=dice) + 0.5).to(values)
    if float(values.abs().mean()) < 0.01:
        values = values + (torch.randn(values.shape, generator=dice) / 10).to(values)
    return values


def _half(groups: Sequence[Group]) -> Keep:
    """Half of each, or somewhat less: what is as wide as another by chance alone must not stay so. (Heads may.)"""
    dice = torch.Generator().manual_seed(0)
    fewer = ((g, i % (g.units // 4 + 1) if g.members[0].block == 1 else 0) for i, g in enumerate(groups))
    return {g.name: torch.randperm(g.units, generator=dice) < (g.units + 1) // 2 - n for g, n in fewer}
