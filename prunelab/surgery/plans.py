"""A shrunk model in files: which units stayed (JSON), and its weights (safetensors). Nothing that can execute code."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from .. import units
from ..core import Group, Keep, Member, Part, PruneError, find, mask_of, named, paths, places, shape
from ..files import LARGEST, alone, made, read_json, read_whole, sweep, tensors_in, write_whole
from ..text import size
from .removal import gone, renamed
from .shrinking import shrink

# The first is written. 2 had no checksum of itself, and 1 said where a run of entries begins.
FORMATS = ("prunelab plan 3", "prunelab plan 2", "prunelab plan 1")
PLAN = "plan.json"
FEW = 1 << 20  # units, of a model that may be the wrong one: it is said what does not fit
WEIGHTS = re.compile(r"weights-[0-9a-f]{12}\.safetensors")


def save_plan(path: str | os.PathLike[str], groups: Sequence[Group], keep: Keep, model: nn.Module) -> Path:
    """Save a shrunk model as a folder: `plan.json`, the units that stayed, beside its weights in safetensors.

    `groups` and `keep` as given to `shrink`, `model` what it returned (trained further, perhaps). Files are
    written whole or not at all: a folder saved before stays valid until the new plan is complete. Then the weights
    that the old plan named go, with the drafts of killed writers, and no other file. Others who save into the folder
    wait their turn. Returns the folder. Raises PruneError if the model is not what these groups and keep leave, or
    still wears masks, and if a file that is not a plan's is in the way.
    """
    folder = Path(path)
    _check_shrunk(groups, keep, model)
    data = save_tensors(_state(model))
    digest = hashlib.sha256(data).hexdigest()
    weights = f"weights-{digest[:12]}.safetensors"  # named by content: the old plan keeps its own until replaced
    plan = {
        "format": FORMATS[0],
        "model": type(model).__name__,
        "weights": weights,
        "bytes": len(data),
        "sha256": digest,
    }
    described = [_described(g, keep) for g in groups]
    plan["plan_sha256"] = _own_digest(plan | {"groups": described})
    lines = ",\n  ".join(map(json.dumps, described))
    text = json.dumps(plan, indent=1)[:-2] + f',\n "groups": [\n  {lines}\n ]\n}}\n'
    if len(text) > LARGEST:
        raise PruneError(
            f"the plan would have {size(len(text))}, and `load_plan` reads {size(LARGEST)} at most, so that no file "
            "fills the memory: save the model whole, with torch.save"
        )
    _check_place(folder)
    with alone(folder / PLAN):
        sweep(folder, WEIGHTS.pattern)  # of whatever age: only a killed writer leaves this block before its draft
        before = named_weights(folder)
        write_whole(folder / weights, data)
        write_whole(folder / PLAN, text.encode())
        if before not in (None, weights):
            (folder / before).unlink(missing_ok=True)
    return folder


def _check_place(folder: Path) -> None:
    """Make the folder; PruneError, before anything is written, if a plan can't be put there."""
    try:
        found = read_json(folder / PLAN)
    except (OSError, ValueError):  # none, or a damaged one
        found = {"format": FORMATS[0]}
    if not isinstance(found, dict) or not str(found.get("format")).startswith("prunelab plan "):
        raise PruneError(f"{folder / PLAN} is no plan of prunelab's: move it away, or give another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise PruneError(f"the plan can't be saved at {folder}, where a file is: give a folder") from error


def named_weights(folder: Path) -> str | None:
    """The file that a folder's plan says its weights lie in; None without a plan that `save_plan` wrote."""
    try:
        raw = read_json(folder / PLAN)
        name = raw["weights"] if raw["format"] in FORMATS else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return name if isinstance(name, str) and WEIGHTS.fullmatch(name) else None


def load_plan(path: str | os.PathLike[str], fresh_model: nn.Module) -> nn.Module:
    """Rebuild a saved model: a shrunk copy of `fresh_model` (the architecture as it was) with the saved weights.

    The fresh model is left as it is. Raises PruneError for missing or damaged files, and for a plan of another
    model, naming the first tensor that differs.

    >>> from prunelab import granularity, shrink
    >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> groups = granularity.neurons(net, torch.zeros(1, 3))
    >>> keep = {groups[0].name: torch.tensor([True, False, False, True])}
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     save_plan(folder, groups, keep, shrink(net, groups, keep)) == Path(folder)
    ...     load_plan(folder, net)[0].out_features
    True
    2
    """
    folder = Path(path)
    most = max(FEW, sum(t.numel() for t in named(fresh_model).values()) + len(paths(fresh_model)))
    plan, saved = _read_both(folder, most)
    groups, keep = plan["groups"], plan["keep"]
    try:
        small = shrink(fresh_model, groups, keep)
    except (PruneError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise PruneError(f"{folder} is not a plan of this {type(fresh_model).__name__}: {error}") from error
    own = _state(small)
    _check_same(saved, own, f"{folder} (a {plan['model']})", type(fresh_model).__name__)
    with torch.no_grad():
        for name, tensor in _tensors(small).items():
            tensor.copy_(saved[name])
    return small


def _own_digest(plan: dict[str, Any]) -> str:
    """The checksum of all that a plan says, but for the checksum."""
    told = {name: value for name, value in plan.items() if name != "plan_sha256"}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _described(group: Group, keep: Keep) -> dict[str, Any]:
    kept = units.kept_of(group, keep).nonzero().squeeze(1).tolist()
    told = {"name": group.name, "units": group.units, "exact": group.exact, "kept": kept}
    owned: dict[str, Sequence[Member | Part]] = {"members": group.members, "parts": group.parts, "norms": group.norms}
    return told | {what: _without_defaults(things) for what, things in owned.items() if things or what == "members"}


def _without_defaults(things: Sequence[Member | Part]) -> list[dict[str, Any]]:
    """As plain values; of an index, which says the block as well, the table."""
    told = []
    for thing in things:
        values = {f.name: v for f in fields(thing) if (v := getattr(thing, f.name)) is not f.default and v != f.default}
        if isinstance(values.get("index"), Tensor):
            values["index"] = values.pop("index").tolist()
            values.pop("block", None)
        told.append(values)
    return told


def _check_shrunk(groups: Sequence[Group], keep: Keep, model: nn.Module) -> None:
    masked = [p.name for p in places(model) if mask_of(p.module, p.attribute) is not None]
    if masked:
        raise PruneError(f"the model wears masks, on {masked[0]} and perhaps others: bake(model) first")
    tensors = named(model)
    parts = gone(groups, keep)
    _check_removed(groups, parts, tensors, model)
    for group in groups:
        kept = units.kept_of(group, keep)
        for member in group.members:
            name = renamed(member.tensor, parts)
            if name is None:
                continue
            tensor = find(tensors, name)
            if member.dim is None:
                raise PruneError(f"{group.name} holds single weights: a plan is of structures, such as filters")
            size, least = tensor.shape[member.dim], int(kept.sum()) * member.block
            if size < least or (member.index is None and size > least):  # without an index it is the whole dimension
                raise PruneError(
                    f"{member.tensor} {shape(tensor)} is not what these groups and keep leave of it, {least} of "
                    f"{group.units * member.block} along dimension {member.dim}: give the model that shrink returned"
                )


def _check_removed(groups: Sequence[Group], parts: list[Part], tensors: dict[str, Tensor], model: nn.Module) -> None:
    """PruneError if a module that should have left is still there, or one that should have stayed is not."""
    for part in (p for g in groups for p in g.parts):
        name = renamed(f"{part.path}.", [p for p in parts if p != part])
        if name is None or (part in parts and part.path.rpartition(".")[2].isdigit()):
            continue  # it went with a module around it; or with its place in a list, which the length tells
        there = any(units.inside([name[:-1]], tensors).values())
        if there is (part in parts):
            what = "still there" if there else "not there"
            raise PruneError(
                f"{part.path} is {what} in this {type(model).__name__}: give the model that shrink returned"
            )
    for above in {p.path.rpartition(".")[0] for p in parts if p.path.rpartition(".")[2].isdigit()}:
        _check_length(above, [p for g in groups for p in g.parts], parts, tensors)


def _check_length(above: str, every: list[Part], parts: list[Part], tensors: dict[str, Tensor]) -> None:
    """PruneError if a list has as many entries as before: then its first ones stand where the kept ones should."""
    listed = [p for p in every if p.path.rpartition(".")[0] == above and p.path.rpartition(".")[2].isdigit()]
    had = max(max(int(p.path.rpartition(".")[2]) + 1, p.of) for p in listed)
    left = sum(p in parts for p in listed)
    now = renamed(f"{above}.", parts)  # None of a list within a module that left
    entries = {n.removeprefix(now).partition(".")[0] for n in tensors if now and n.startswith(now)}
    if now and len(entries) != had - left:
        raise PruneError(
            f"{above} has {len(entries)} entries, and these groups and keep leave {had - left} of {had}: give the "
            "model that shrink returned"
        )


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """What a state dict holds, tied tensors once."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):
            raise PruneError(f"{name} of {type(model).__name__} is a {type(tensor).__name__}: only tensors are saved")
        if id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor
    return found


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: t.detach().cpu().contiguous() for name, t in _tensors(model).items()}


def _read_both(folder: Path, most: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A plan and its weights; both anew if another plan has come meanwhile, for then the old weights have gone."""
    plan = _read_plan(folder / PLAN, most)
    while True:
        try:
            return plan, _read_weights(folder / plan["weights"], plan)
        except PruneError:
            before, plan = plan, _read_plan(folder / PLAN, most)
            if plan["sha256"] == before["sha256"]:
                raise


def _read_plan(path: Path, most: int) -> dict[str, Any]:
    """The plan for a model of so many entries and modules: no number in it can mean more than there is."""
    try:
        raw = read_json(path)
        if not isinstance(raw, dict) or raw.get("format") not in FORMATS:
            given = raw.get("format") if isinstance(raw, dict) else type(raw).__name__
            raise PruneError(f"{path} is no plan this version can read: its format is {given!r}, not {FORMATS[0]!r}")
        _check_amount(raw["groups"], raw["format"], most)
        groups = tuple(_group_of(g, raw["format"], most) for g in raw["groups"])
        keep = {g["name"]: _keep_of(g) for g in raw["groups"]}
        told = {name: made(str, raw[name]) for name in ("model", "weights", "sha256")}
        if Path(told["weights"]).name != told["weights"] or "\0" in told["weights"]:
            raise ValueError(f"the weights are said to lie at {told['weights']!r}")
        if raw["format"] == FORMATS[0] and raw["plan_sha256"] != _own_digest(raw):
            raise ValueError("its checksum is not that of its text")
        return {**told, "bytes": made(int | None, raw.get("bytes")), "groups": groups, "keep": keep}
    except PruneError:
        raise
    except FileNotFoundError as error:
        raise PruneError(f"there is no {path}: give the folder that save_plan returned") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise PruneError(f"{path} is damaged or incomplete ({why}): save the plan again, or copy it anew") from error


def _check_amount(groups: Sequence[dict[str, Any]], version: str, most: int) -> None:
    """ValueError if all groups together have more than the model, before memory is taken for any of them."""
    total = 0
    for raw in groups:
        count, blocks = made(int, raw["units"]), [1]  # what says which units stay
        if version == FORMATS[-1]:  # and the entries that `_members_of` makes
            blocks += [made(int, m.get("block", 1)) for m in (*raw.get("members", []), *raw.get("norms", []))]
        total += count * sum(blocks)
        if not 1 <= min(count, *blocks) <= total <= most:
            raise ValueError(f"{count:,} units of {max(blocks):,} entries in group {raw['name']} can't be this model's")


def _group_of(raw: dict[str, Any], version: str, most: int) -> Group:
    count = made(int, raw["units"])
    members, norms = (_members_of(raw.get(key, []), count, version) for key in ("members", "norms"))
    parts = made(tuple[Part, ...], raw.get("parts", []))
    numbers = [count, *(n for m in (*members, *norms) for n in (m.block, *m.tile)), *(p.outputs for p in parts)]
    if not 1 <= min(numbers) <= max(numbers) <= most or not all(0 <= p.passes <= p.outputs <= most for p in parts):
        raise ValueError(f"a number of group {raw['name']} is none of this model's")
    return Group(made(str, raw["name"]), count, members, made(bool, raw["exact"]), parts, norms)


def _members_of(raw: Sequence[dict[str, Any]], count: int, version: str) -> tuple[Member, ...]:
    found = []
    for told in raw:
        values = dict(told)
        if version == FORMATS[-1]:  # a run of blocks from an offset on, perhaps of a part of the dimension
            first, block = values.pop("offset", 0), values.get("block", 1)
            values["index"] = [list(range(first + u * block, first + (u + 1) * block)) for u in range(count)]
        if values.get("index") is not None:
            values["index"] = torch.tensor(values["index"], dtype=torch.int64).view(count, -1)
        found.append(made(Member, values))
    return tuple(found)


def _keep_of(raw: dict[str, Any]) -> Tensor:
    kept = torch.zeros(raw["units"], dtype=torch.bool)
    indices = made(list, raw["kept"])
    if not all(type(i) is int and 0 <= i < raw["units"] for i in indices) or len(set(indices)) != len(indices):
        raise ValueError(f"the kept units of {raw['name']} are not among its {raw['units']}")
    kept[indices] = True
    return kept


def _read_weights(path: Path, plan: dict[str, Any]) -> dict[str, Tensor]:
    try:
        data = read_whole(path, plan["bytes"])
    except OSError as error:
        raise PruneError(f"the weights of the plan, {path}, cannot be read: {error}. Copy the whole folder") from error
    if hashlib.sha256(data).hexdigest() != plan["sha256"]:
        raise PruneError(f"{path} ({len(data):,} bytes) is damaged or cut short: its checksum is not the plan's")
    try:
        return tensors_in(data)
    except ValueError as error:
        raise PruneError(f"{path} is damaged: {error}. Save the plan again, or copy the folder anew") from error


def _check_same(saved: dict[str, Tensor], own: dict[str, Tensor], ours: str, theirs: str) -> None:
    """PruneError naming the first tensor in which a plan and a model differ."""
    for name in (*own, *(n for n in saved if n not in own)):
        said, got = (f"{t[name].dtype} {shape(t[name])}" if name in t else "nothing" for t in (saved, own))
        if said != got:
            raise PruneError(f"{ours} is not a plan of this {theirs}: {name} is {said} in the plan, {got} in the model")
