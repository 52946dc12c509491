"""A training run in a file: written whole or not at all, and resumed to the very same weights."""

from __future__ import annotations

import json
import os
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn
from torch.optim import Optimizer

from ..checks import check_count
from ..core import PruneError, lookup_all
from ..files import made, plain, write_whole
from ..measurement import Evaluation
from .run import History, Run, Snapshot, digest, random_state, stepped

FORMAT = "prunelab run 3"
MASK, MASKED = (re.compile(rf"parametrizations\.([^.]+)\.{end}$") for end in (r"0\.mask", "original"))
OF_THE_SCHEDULE = {
    "params",
    "lr",
    "initial_lr",
    "max_lr",
    "min_lr",
    "betas",
    "momentum",
    "base_momentum",
    "max_momentum",
}


@dataclass(frozen=True)
class Checkpoint:
    """Save a training run to `path` every so many steps, and go on from the file where there is one.

    It is one safetensors file with facts as JSON in its header, and a hash of it all: weights, masks, optimizer,
    random state, place in the data, history. A kill loses at most `every` steps. Delete the file to begin anew.
    """

    path: str | os.PathLike[str]
    every: int = 100

    def __post_init__(self) -> None:
        check_count("every", self.every)
        if not Path(self.path).parent.is_dir():
            raise PruneError(
                f"the checkpoint {self.path} can't be written: there is no folder {Path(self.path).parent}"
            )

    def due(self, run: Run) -> bool:
        """Whether to save now; after the last step that waits until its epoch is validated."""
        return run.done % self.every == 0 and run.done < run.total

    def save(self, run: Run) -> None:
        """Replace the file by the run as it stands: at no moment is half of it there."""
        tensors, facts = _packed(run)
        content = _apart(tensors)
        told = _json({**facts, "format": FORMAT})
        write_whole(Path(self.path), to_bytes(content, {"prunelab": told, "sha256": sealed(told, content)}))

    def resume(self, run: Run) -> bool:
        """Put a fresh run where the saved one stood; False if there is no file.

        Raises PruneError, with the model as it was, for a damaged file and for that of another run. All of it is
        looked at before anything is changed: a hash finds damage, and not what someone wrote on purpose.
        """
        run.settings["weights and masks it began with"] = digest(run.safe.state)  # of two runs given one path
        if not Path(self.path).exists():
            return False
        tensors, facts = _read(Path(self.path))
        for what, mine in run.settings.items():
            theirs = facts.settings.get(what)
            if theirs != mine:
                there, here = (textwrap.shorten(str(x), 200) for x in (theirs, mine))
                raise PruneError(
                    f"the checkpoint {self.path} is another run's. {what}: there {there}, here {here}."
                    " Delete the file to begin anew, or give another path"
                )
        try:
            _unpack(run, tensors, facts)
        except Exception as error:
            raise PruneError(f"the checkpoint {self.path} is damaged ({error}): delete it to begin anew") from error
        return True


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, each with a storage of its own, as the file format asks; copied only if need be."""
    found: dict[str, Tensor] = {}
    taken: set[int] = set()
    for key, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        if tensor.untyped_storage().data_ptr() in taken or tensor.untyped_storage().nbytes() != tensor.nbytes:
            tensor = tensor.clone()
        taken.add(tensor.untyped_storage().data_ptr())
        found[key] = tensor
    return found


def _packed(run: Run) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The run as named tensors, and all the rest of it."""
    now, optimizer, history = Snapshot.of(run.model), run.optimizer.state_dict(), run.history
    slots = {f"{index}.{key}": v for index, values in optimizer["state"].items() for key, v in values.items()}
    tensors = {
        **_under("model", now.state),
        **_under("safe", run.safe.state),
        **_under("optimizer", {key: v for key, v in slots.items() if isinstance(v, Tensor)}),
        **_under("epoch", run.epoch),
        "random": random_state(run.model),
        "losses": torch.tensor(history.losses, dtype=torch.float64),
    }
    facts = {
        "settings": run.settings,
        "position": run.position,
        "masked": {"model": now.masked, "safe": run.safe.masked},
        "groups": optimizer["param_groups"],
        "numbers": {key: v for key, v in slots.items() if not isinstance(v, Tensor)},
        "valid": [asdict(result) for result in history.valid],
        "start": history.start and asdict(history.start),
        "seconds": history.seconds,
    }
    return tensors, facts


@dataclass(frozen=True)
class Worn:
    """The names of the tensors that wear masks."""

    model: tuple[str, ...]
    safe: tuple[str, ...]


@dataclass(frozen=True)
class Facts:
    """What a file says besides its tensors."""

    format: str
    settings: dict[str, str]
    position: int
    masked: Worn
    groups: tuple[dict[str, Any], ...]
    numbers: dict[str, Any]
    valid: tuple[Evaluation, ...]
    start: Evaluation | None
    seconds: float


def _unpack(run: Run, tensors: Mapping[str, Tensor], facts: Facts) -> None:
    """Put the run where the file says; an error of any kind, with the model as it is, if the file can't be of it."""
    losses, epoch = tensors["losses"], _out_of("epoch", tensors)
    if losses.dtype != torch.float64 or not losses.isfinite().all() or not 0 < len(losses) <= run.total:
        raise ValueError("its losses are none")
    if not 0 <= facts.position <= len(losses):
        raise ValueError(f"it stands at batch {facts.position}")
    named = _out_of("model", tensors), _out_of("safe", tensors)
    for state, masked in zip(named, (facts.masked.model, facts.masked.safe), strict=True):
        _check_state(run.model, state, masked)
    _check_dice(run, epoch, tensors["random"])
    stepped(run.rates, len(losses))
    _load(run.optimizer, _out_of("optimizer", tensors), facts)
    Snapshot(named[0], facts.masked.model).put_back(run.model)
    run.safe = Snapshot(named[1], facts.masked.safe)
    run.position, run.epoch, run.resumed = facts.position, epoch, tensors["random"]
    run.history = History(losses.tolist(), list(facts.valid), facts.seconds, facts.start)


def _check_state(model: nn.Module, state: Mapping[str, Tensor], masked: Sequence[str]) -> None:
    """ValueError or PruneError unless it is a state of this model in these masks, finite where it shows."""
    masks = {MASK.sub(r"\1", name): t for name, t in state.items() if MASK.search(name)}
    own, theirs = ({MASKED.sub(r"\1", name): t for name, t in s.items() if not MASK.search(name)}
                   for s in (model.state_dict(), state))  # fmt: skip
    if [(n, t.dtype, t.shape) for n, t in sorted(own.items())] != [
        (n, t.dtype, t.shape) for n, t in sorted(theirs.items())
    ]:
        raise ValueError("its weights are another model's")
    everywhere = {p.name: p.tensor for shared in lookup_all(model, masked).values() for p in shared}
    fit = all(m.dtype == torch.bool and m.shape == everywhere[n].shape for n, m in masks.items() if n in everywhere)
    if (
        everywhere.keys() != masks.keys()
        or not fit
        or not all(isinstance(t, nn.Parameter) for t in everywhere.values())
    ):
        raise ValueError("its masks are another model's")
    for name in own.keys() & {name for name, _ in model.named_parameters()} | masks.keys():
        if not (theirs[name].isfinite() | ~masks.get(name, torch.tensor(True))).all():
            raise ValueError(f"{name} holds a NaN or an infinity")


def _check_dice(run: Run, epoch: Mapping[str, Tensor], random: Tensor) -> None:
    """An error unless these are random states, of the training and of the generators of its data."""
    others = epoch.keys() - {"dice", "random"}
    if len(epoch) != len(others) + 2 or str(sorted(others)) != run.settings["generators of the data"]:
        raise ValueError("it lacks the state of a generator")
    now, size = random_state(run.model), len(torch.get_rng_state())
    if any(t.dtype != now.dtype or t.shape != now.shape for t in (random, epoch["random"])):
        raise ValueError("its random state is none")
    for state in (random, *epoch.values()):
        if len(state) >= size:  # a GPU's generator has 16 bytes, which can't be wrong
            torch.Generator().set_state(state[:size])


def _load(optimizer: Optimizer, tensors: Mapping[str, Tensor], facts: Facts) -> None:
    """The optimizer's state; what its schedule decides it has by now, whatever the file says."""
    slots: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **facts.numbers}.items():
        index, _, name = key.partition(".")
        slots.setdefault(int(index), {})[name] = value
    own = optimizer.state_dict()["param_groups"]
    groups = [
        {k: tuple(v) if isinstance(v, list) else v for k, v in told.items()}
        | {k: mine[k] for k in OF_THE_SCHEDULE & mine.keys()}
        for mine, told in zip(own, facts.groups, strict=True)
    ]
    if not slots.keys() <= {index for mine in own for index in mine["params"]}:
        raise ValueError("it knows more parameters than the model has")
    optimizer.load_state_dict({"state": slots, "param_groups": groups})


def _under(kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{kind}/{key}": t for key, t in tensors.items()}


def _out_of(kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.partition("/")[2]: t for key, t in tensors.items() if key.startswith(f"{kind}/")}


def _read(path: Path) -> tuple[dict[str, Tensor], Facts]:
    try:
        if not path.is_file():
            raise OSError("it is no file")
        with safe_open(path, "pt") as file:
            said = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no dict)
        told = said.get("prunelab", "{}")
        facts = plain(told.encode())
    except (SafetensorError, OSError, ValueError) as error:
        raise PruneError(f"the checkpoint {path} can't be read ({error}): delete it to begin anew") from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise PruneError(f"{path} is no training run of this version of prunelab: give another path as checkpoint")
    try:
        if said.get("sha256") != sealed(told, tensors):
            raise ValueError("it is not as it was written")
        return tensors, made(Facts, facts)
    except ValueError as error:
        raise PruneError(f"the checkpoint {path} is damaged ({error}): delete it to begin anew") from error


def sealed(told: str, tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of all that a file says."""
    return digest({**tensors, "": torch.frombuffer(bytearray(told.encode()), dtype=torch.uint8)})


def _json(facts: Mapping[str, Any]) -> str:
    try:
        return json.dumps(facts)
    except TypeError as error:
        raise PruneError(
            f"this optimizer or schedule can't be saved ({error}): its settings must be numbers and texts. Train "
            "without a checkpoint, or with one of torch's optimizers"
        ) from error
