"""Who goes, compared with whom: scores and groups -> exactly as many units as were asked for.

Layer-wise sparsities (uniform, ERK, by sensitivity) are made in `layerwise`, two floors up: it may ask a scan, and a
scan asks `allocate`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeAlias

import torch
from torch import Tensor

from . import units
from .checks import check_count
from .core import AbsoluteOfSum, Group, Keep, Member, PruneError, Scores, at_once, shape
from .layers import check_layout, from_out_in, to_out_in
from .registry import renamed
from .selection import lowest, lowest_where_gone

__getattr__ = renamed(
    __name__,
    {"Fared": "prunelab.pipeline.GroupSparsity"}
    | {"contract": "prunelab.units.contract", "expand": "prunelab.masking.expand"}
    | {name: f"prunelab.pipeline.{name}" for name in ("GroupSparsity", "Report", "report")},
)
SCOPES = ("global", "layer", "row")
REDUCTIONS = ("relative", "mean", "sum")


@dataclass(frozen=True)
class NM:
    """A scope for single weights: of each m consecutive inputs of an output, the n best stay. NM(2, 4) is "2:4".

    Consecutive along the input channels: for a convolution (out, in, kh, kw) that is dimension 1, at every
    kernel position on its own, because sparse tensor cores skip along the dimension they sum over, and their
    kernels lay it out channels-last (so does NVIDIA's ASP). Mishra et al. 2021, arXiv 2104.08378. Where a weight lies
    otherwise (transposed convolutions, experts, Conv1D), along the dimension that counts an output's inputs.

    >>> NM(2, 4).sparsity, str(NM(1, 4)), NM(2, 4).after(0.5)
    (0.5, '1:4', NM(n=3, m=4))
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        whole = all(isinstance(v, int) and not isinstance(v, bool) for v in (self.n, self.m))
        if not whole or not 1 <= self.n <= self.m:
            raise PruneError(f"NM({self.n!r}, {self.m!r}): keep n of each m, whole numbers with 1 <= n <= m")

    @property
    def sparsity(self) -> float:
        """The share that goes: 1 - n/m, neither more nor less."""
        return 1 - self.n / self.m

    def after(self, progress: float) -> NM:
        """The pattern at a share of the way from dense: NM(2, 4) half-way is NM(3, 4)."""
        return NM(self.m - round((self.m - self.n) * progress), self.m)

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"


Scope: TypeAlias = str | NM
Share: TypeAlias = float | Mapping[str, float]  # of all units, or of each group's by its name


def allocate(
    scores: Scores,
    groups: Sequence[Group],
    sparsity: float | Mapping[str, float] | None,
    scope: Scope = "global",
    *,
    within: Keep | None = None,
    reduce: str | None = None,
    floor: int | None = None,
    round_to: int = 1,
) -> Keep:
    """Remove exactly round(sparsity * n) units, the lowest-scored of each comparison group of n; ties by index.

    scope: what a unit is compared with. "global": all units of the model; "layer": those of its own group;
    "row": single weights, those that feed the same output (the first dimension, or as `layers.to_out_in` has it);
    NM(n, m): single weights, n of m stay (the sparsity is then implied: give None, or the same).
    sparsity: or the share of each group by its name, from `layerwise` or by hand; each is then compared within itself,
    and loses exactly round(share * its units).
    within: an earlier result; what it removed stays removed and counts, so that masks stay nested.
    reduce: what becomes of the scores of all a unit's entries that have one (a filter's own weights and the next
    layers' columns that read it): their "sum"; their "mean", which does not favour units of many weights; or
    "relative", the sum over the group's usual sum, so that a unit is judged against its own layer. Where all units of
    a group have as many entries, all three rank alike within it. By default "relative" for structures: under a global
    scope sums empty the narrow early layers and means the wide late ones, whose weights are small by design. Blocks:
    the mean.
    floor: units that every group keeps, whatever they score. By default 1 for structures, whose last unit would
    cut the network in two (experts: as many as a token goes to), and 0 for single weights and blocks. The exact
    count moves on to other groups; where there are none (or the scope is "layer") the nearest reachable sparsity is
    taken, with a warning.
    round_to: structures keep a multiple of so many channels, the best-scored of those that would go filling up
    (a group that is no multiple of it may stay whole). It is done here, not in `shrink`, because who comes
    back is a matter of scores, and because masks and the shrunk model must agree.

    Raises PruneError for a sparsity outside [0, 1), an unknown scope, NaN or missing scores.

    >>> groups = [Group("a", 4, (Member("w"),))]
    >>> scores = {"w": torch.tensor([3.0, 0.5, 2.0, 1.0])}
    >>> allocate(scores, groups, 0.5)
    {'a': tensor([ True, False,  True, False])}
    """
    share = check_asked(sparsity, scope, reduce, floor, round_to)
    if isinstance(share, Mapping):
        share, scope = _of_groups(share, groups), "layer"
    by_output = _by_output(scope)
    values = unit_scores(scores, groups, reduce)
    kept = None if within is None else {g.name: _fitting(within, g, values[g.name]) for g in groups}
    most = {g.name: g.units for g in groups}
    if kept is not None:  # what is gone stays gone, whatever a floor or a multiple would have
        most = dict(zip(kept, map(int, at_once([k.sum() for k in kept.values()])), strict=True))
    if kept is not None and (by_output or floor or any(map(is_structure, groups))):  # or else `lowest` needs no copy
        values, kept = {name: lowest_where_gone(v, kept[name]) for name, v in values.items()}, None
    if by_output:
        assert not isinstance(share, Mapping)  # shares are for layers
        _check_by_output(scores, groups, scope)
        removed = {g.name: _lowest_by_output(scores, g, values[g.name], scope, share) for g in groups}
    else:
        least = {name: min(n, most[name]) for name, n in _least(groups, floor).items()}
        removed = _select(values, share, str(scope), least, kept)
    if round_to > 1:
        removed = {g.name: _rounded(removed[g.name], values[g.name], g, round_to, most[g.name]) for g in groups}
    if within is not None:
        _check_nested(removed, within, share)
    return {name: gone.logical_not_() for name, gone in removed.items()}  # in place: no second copy of a mask


def unit_scores(scores: Scores, groups: Sequence[Group], reduce: str | None = None) -> dict[str, Tensor]:
    """What `allocate` compares: (units,) scores by group, made of the scores of each unit's entries; see there.

    >>> filters = [Group("conv", 2, (Member("w", dim=0),))]
    >>> unit_scores({"w": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}, filters, "sum")
    {'conv': tensor([3., 7.])}
    """
    check_reduce(reduce)
    _check_scored(scores, groups)
    values = {g.name: _unit_scores(scores, g, reduce) for g in groups}
    if len(values) < len(groups):
        raise PruneError("two groups have the same name: give every group its own")
    sums = at_once([v.sum() for v in values.values()])
    for (name, v), total in zip(values.items(), sums, strict=True):
        bad = int(torch.isnan(v).sum()) if math.isnan(total) else 0  # a sum is NaN for inf - inf too
        if bad:
            raise PruneError(f"{bad} of the {v.numel()} scores of {name} are NaN: they cannot be compared")
    return values


def _check_scored(scores: Scores, groups: Sequence[Group]) -> None:
    lacking = [g for g in groups if not g.parts and not any(m.tensor in scores for m in g.members)]
    if lacking:
        first, names = lacking[0], [g.name for g in lacking]
        have = ", ".join(list(scores)[:6])
        how = "leave these groups out" if is_structure(first) else f"leave them out: weights(model, exclude={names})"
        raise PruneError(
            f"no scores for {first.members[0].tensor}, which {first.name} needs; there are {have}, ... Take another "
            f"criterion, or {how}"
        )


def choose(values: Mapping[str, Tensor], groups: Sequence[Group], sparsity: float, scope: str = "global") -> Keep:
    """`allocate` for scores that are the units' own, (units,) by group, as movement learns them.

    >>> choose({"a": torch.tensor([0.3, -1.0])}, [Group("a", 2, (Member("w"),))], 0.5)
    {'a': tensor([ True, False])}
    """
    removed = _select(dict(values), check_sparsity(sparsity), scope, _least(groups, None), None)
    return {name: gone.logical_not_() for name, gone in removed.items()}


def is_structure(group: Group) -> bool:
    """Whether the group's units are slices of tensors or whole modules, which `shrink` can remove.

    >>> is_structure(Group("a", 4, (Member("w"),))), is_structure(Group("conv", 4, (Member("w", dim=0),)))
    (False, True)
    """
    return bool(group.parts) or any(m.dim is not None for m in group.members)


def _least(groups: Sequence[Group], floor: int | None) -> dict[str, int]:
    return {g.name: min(least_of(g) if floor is None else floor, g.units) for g in groups}


def least_of(group: Group) -> int:
    """How many units of a group stay unless another floor is asked for: none of single weights.

    >>> least_of(Group("a", 4, (Member("w"),))), least_of(Group("conv", 4, (Member("w", dim=0),)))
    (0, 1)
    """
    return group.floor if is_structure(group) else 0


def check_reduce(reduce: Any) -> None:
    """PruneError for anything but a known way to make one score of a unit's many, or None.

    >>> check_reduce("max")
    Traceback (most recent call last):
        ...
    prunelab.core.PruneError: reduce is 'max': give one of relative, mean, sum
    """
    if reduce is not None and reduce not in REDUCTIONS:
        raise PruneError(f"reduce is {reduce!r}: give one of {', '.join(REDUCTIONS)}")


def check_asked(sparsity: Any, scope: Any, reduce: Any = None, floor: Any = None, round_to: Any = 1) -> Share:
    """What is asked of `allocate`, checked: the sparsity as a float, or a copy of the share of each group.

    >>> check_asked(0.3, "global"), check_asked(None, NM(2, 4)), check_asked({"conv1": 0.25}, "layer")
    (0.3, 0.5, {'conv1': 0.25})
    >>> check_asked(0.3, "layer", round_to=0)
    Traceback (most recent call last):
        ...
    prunelab.core.PruneError: round_to=0: give a whole number of at least 1
    """
    check_reduce(reduce)
    check_count("round_to", round_to)
    if floor is not None:
        check_count("floor", floor, 0)
    share = _check_shares(sparsity, scope) if isinstance(sparsity, Mapping) else check_target(sparsity, scope)
    if _by_output(scope) and (floor is not None or round_to > 1):
        raise PruneError(f"scope {scope} takes the same from every row: floor and round_to are for global and layer")
    return share


def check_scope(scope: Any) -> None:
    """PruneError for anything but a known scope.

    >>> check_scope("local")
    Traceback (most recent call last):
        ...
    prunelab.core.PruneError: no scope is called 'local'; there is global, layer, row, and NM(n, m)
    """
    if not isinstance(scope, NM) and scope not in SCOPES:
        raise PruneError(f"no scope is called {scope!r}; there is {', '.join(SCOPES)}, and NM(n, m)")


def check_target(sparsity: Any, scope: Any) -> float:
    """The sparsity as a checked float: the given one, or the one that an N:M scope implies.

    >>> check_target(0.3, "global"), check_target(None, NM(2, 4))
    (0.3, 0.5)
    """
    check_scope(scope)
    if not isinstance(scope, NM):
        return check_sparsity(sparsity)
    if sparsity is not None and abs(check_sparsity(sparsity) - scope.sparsity) > 1e-9:
        raise PruneError(
            f"sparsity is {sparsity:g}, but {scope} removes exactly {scope.sparsity:g}: leave the sparsity out "
            "(None), or choose another n and m"
        )
    return scope.sparsity


def check_sparsity(sparsity: Any) -> float:
    """A fraction in [0, 1) as a float, or PruneError that asks what was meant.

    >>> check_sparsity(50)
    Traceback (most recent call last):
        ...
    prunelab.core.PruneError: sparsity is 50, but it is a fraction: did you mean 0.5?
    """
    if isinstance(sparsity, bool) or not isinstance(sparsity, Real):
        raise PruneError(f"sparsity is {sparsity!r}, a {type(sparsity).__name__}: give a fraction such as 0.5")
    sparsity = float(sparsity)
    if math.isnan(sparsity):
        raise PruneError("sparsity is NaN: give a fraction such as 0.5")
    if 1 < sparsity < 100:
        raise PruneError(f"sparsity is {sparsity:g}, but it is a fraction: did you mean {sparsity / 100:g}?")
    if sparsity == 1:
        raise PruneError("sparsity is 1: that would remove everything. Give a fraction below 1, such as 0.99")
    if not 0 <= sparsity < 1:
        raise PruneError(f"sparsity is {sparsity:g}: give a fraction, at least 0 and below 1, such as 0.5")
    return sparsity


def _check_shares(shares: Mapping[str, float], scope: Scope) -> dict[str, float]:
    """A copy of the shares by group, each a fraction, or 1: that empties one group and not the model."""
    check_scope(scope)
    if _by_output(scope):
        raise PruneError(
            f"scope {scope} with a share for each group: give the scope 'layer', in which each is compared"
        )
    return {n: 1.0 if s == 1 and not isinstance(s, bool) else check_sparsity(s) for n, s in shares.items()}


def _by_output(scope: Scope) -> bool:
    return isinstance(scope, NM) or scope == "row"


def _of_groups(shares: Mapping[str, float], groups: Sequence[Group]) -> Mapping[str, float]:
    """The shares, if there is one for every group; PruneError says which is lacking, or of no group."""
    names = [g.name for g in groups]
    astray = [n for n in shares if n not in names]
    lacking = [n for n in names if n not in shares]
    if astray or lacking:
        what = f"there is no group {astray[0]!r}" if astray else f"no share is given for {', '.join(lacking)}"
        raise PruneError(f"{what}: the groups are {', '.join(names)}")
    return shares


def _share_of(share: Share, name: str) -> float:
    return share[name] if isinstance(share, Mapping) else share


def _select(
    values: dict[str, Tensor], share: Share, scope: str, least: dict[str, int], kept: Keep | None
) -> dict[str, Tensor]:
    if scope == "layer":
        wanted = {name: round(_share_of(share, name) * len(v)) for name, v in values.items()}
        counts = {name: min(k, len(values[name]) - least[name]) for name, k in wanted.items()}
        _say_if_short(sum(wanted.values()), sum(counts.values()), least)
        return {name: _lowest({name: v}, counts[name], kept)[name] for name, v in values.items()}
    assert not isinstance(share, Mapping)  # shares are for layers
    k = round(share * sum(len(v) for v in values.values()))
    if not any(least.values()):
        return _lowest(values, k, kept)
    free = {name: _all_but_best(v, least[name]) for name, v in values.items()}
    candidates = [v[free[name]] for name, v in values.items()]
    _say_if_short(k, min(k, sum(map(len, candidates))), least)
    removed = {name: torch.zeros_like(f) for name, f in free.items()}
    for (name, gone), chosen in zip(removed.items(), lowest(candidates, k), strict=True):
        gone[free[name]] = chosen
    return removed


def _lowest(values: dict[str, Tensor], k: int, kept: Keep | None) -> dict[str, Tensor]:
    stays = None if kept is None else [kept[name] for name in values]
    return dict(zip(values, lowest(list(values.values()), k, stays), strict=True))


def _all_but_best(values: Tensor, best: int) -> Tensor:
    """True at every unit but the `best` highest, of which the last of ties stay, as everywhere."""
    free = torch.ones_like(values, dtype=torch.bool)
    free[values.sort(stable=True).indices[len(values) - best :]] = False
    return free


def _say_if_short(wanted: int, possible: int, least: dict[str, int]) -> None:
    if possible < wanted:
        warnings.warn(
            f"{wanted:,} units were to go, but only {possible:,} can: every group keeps at least "
            f"{max(least.values())}. The sparsity reached is the nearest possible; pass floor= for another floor",
            stacklevel=4,
        )


def _rounded(gone: Tensor, values: Tensor, group: Group, round_to: int, most: int) -> Tensor:
    """Bring back the best of what went, until the channels kept are a multiple of round_to, or all that may stay."""
    if not is_structure(group) or group.parts:
        what = "whole modules" if group.parts else "single weights"
        raise PruneError(f"round_to={round_to} rounds counts of channels, but {group.name} holds {what}")
    step = round_to // math.gcd(round_to, group.members[0].block)
    kept = len(gone) - int(gone.sum())
    goal = min(-(-kept // step) * step, most)
    return lowest([values], len(gone) - goal)[0]  # what went was the lowest of its group, so the best of it returns


def _check_by_output(scores: Scores, groups: Sequence[Group], scope: Scope) -> None:
    """PruneError unless the groups are of single weights of which one knows the outputs, in multiples of an NM's m."""
    unfit = []
    for g in groups:
        if is_structure(g) or g.members[0].tile != (1, 1):
            raise PruneError(f'scope {scope} compares single weights, but {g.name} holds structures: use "layer"')
        member, score = g.members[0], scores[g.members[0].tensor]
        check_layout(member.tensor, score.shape, member.layout, f"scope {scope}")
        if isinstance(scope, NM) and (score.dim() < 2 or to_out_in(score, member.layout).shape[1] % scope.m):
            unfit.append(f"{member.tensor} {shape(score)}")
    if unfit:
        assert isinstance(scope, NM)
        names = [u.split()[0] for u in unfit]
        raise PruneError(
            f"{scope} needs inputs (dimension 1 of most weights) in multiples of {scope.m}; not so: "
            f"{', '.join(unfit)}. Leave them dense with functools.partial(granularity.weights, exclude={names})"
        )


def _lowest_by_output(scores: Scores, group: Group, values: Tensor, scope: Scope, share: float) -> Tensor:
    """True at the same share of what feeds each output, or of each m consecutive inputs of it."""
    size, layout = scores[group.members[0].tensor].shape, group.members[0].layout
    table = to_out_in(values.view(size), layout)  # (out, in, ...)
    if isinstance(scope, NM):
        table = table.movedim(1, -1)
    length = scope.m if isinstance(scope, NM) else math.prod(table.shape[1:])
    rows = table.reshape(-1, length) if table.numel() else table.reshape(0, 1)
    gone = _lowest_of_rows(rows, round(share * length)).view(table.shape)
    return from_out_in(gone.movedim(-1, 1) if isinstance(scope, NM) else gone, layout, size).reshape(-1)


def _lowest_of_rows(rows: Tensor, count: int) -> Tensor:
    """True at the `count` lowest of each row, ties in index order: a stable sort's, in a third of its time."""
    if count == 0 or rows.numel() == 0:
        return torch.zeros_like(rows, dtype=torch.bool)
    limit = rows.topk(count, dim=1, largest=False, sorted=False).values.amax(1, keepdim=True)
    gone, tied = rows < limit, rows == limit
    return gone | tied & (tied.cumsum(1) <= count - gone.sum(1, keepdim=True))


def _unit_scores(scores: Scores, group: Group, reduce: str | None) -> Tensor:
    """(units,): one score for each unit, of all its entries over all its members or modules that have scores."""
    if group.parts:
        total, each = units.totals(group, scores)
        if not each.all():
            lacking = next(p.path for p in group.parts if not each[p.unit])
            raise PruneError(f"no scores for anything in {lacking}, which {group.name} needs: take another criterion")
    else:
        scored = [(m, scores[m.tensor]) for m in group.members if m.tensor in scores]
        owned = [_member_scores(m, s, group) for m, s in scored]
        total = owned[0] if len(owned) == 1 else torch.stack(owned).sum(0)
        each = torch.tensor(sum(units.size(m, s) for m, s in scored))
    total = total.abs() if isinstance(scores, AbsoluteOfSum) else total
    how = reduce or ("relative" if is_structure(group) else "mean")
    if how == "mean":
        return total / each if bool((each > 1).any()) else total  # by 1 would be a copy
    usual = float(total[torch.isfinite(total)].abs().mean()) if how == "relative" else 0.0
    return total / usual if usual > 0 else total


def _member_scores(member: Member, score: Tensor, group: Group) -> Tensor:
    owned = units.entries(member, score, group.units)
    if not is_structure(group) and owned.shape[1] == 1:
        return owned[:, 0]
    # In half precision a sum of many overflows, or rounds different units to the same number.
    return owned.sum(1, dtype=torch.promote_types(owned.dtype, torch.float32))


def _fitting(within: Keep, group: Group, values: Tensor) -> Tensor:
    if group.name not in within or within[group.name].shape != values.shape:
        raise PruneError(f"`within` does not fit {group.name} with {group.units} units: it is of other groups")
    return within[group.name].to(values.device)


def _check_nested(removed: dict[str, Tensor], within: Keep, share: Share) -> None:
    returning = at_once([(~gone & ~within[name].to(gone.device)).sum() for name, gone in removed.items()])
    for name, back in zip(removed, map(int, returning), strict=True):
        if back:
            had = float((~within[name]).float().mean())
            raise PruneError(
                f"sparsity {_share_of(share, name):g} would bring {back} units of {name} back: `within` has removed "
                f"{had:.4g} of it already. Ask for more than was removed from any one of the groups that the scope "
                "compares within, or leave `within` out. `prune` takes the masks on the model for it: masking.restore("
                "model, {}) takes them off"
            )
