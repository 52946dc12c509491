"""A training run in a file: written whole or not at all, and resumed to the very same weights."""

from __future__ import annotations

import hashlib
import json
import math
import os
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, SequentialSampler

from ..checks import check_count
from ..core import PruneError, places
from ..data import batches, split_of, tensors
from ..files import made, plain, write_whole
from ..measurement import Evaluation
from ..text import describe
from .run import History, Run, Snapshot, finite, stepped

FORMAT = "prunelab run 3"
FEW = 32  # examples to know data by; of so many, chance makes at least one differ
VARYING = "not the same at each reading"


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
        content, facts = _packed(run)
        try:
            told = json.dumps({"format": FORMAT, **facts})
            data = to_bytes(content, {"prunelab": told, "sha256": sealed(told, content)})
        except (TypeError, RuntimeError) as error:
            raise PruneError(
                f"this optimizer or schedule can't be saved ({error}): its settings must be numbers and texts. Train "
                "without a checkpoint, or with one of torch's optimizers"
            ) from error
        write_whole(Path(self.path), data)

    def resume(self, run: Run) -> bool:
        """Put a fresh run where the saved one stood; False if there is no file.

        Raises PruneError for a damaged file and for that of another run; the run then puts its model back. A hash
        finds damage, and not what someone wrote on purpose: whatever that does not fit, is taken for damage.
        """
        path = Path(self.path)
        if not path.exists():
            return False
        try:
            content, facts = _read(path)
        except Exception as error:  # a header may say anything
            raise PruneError(f"the checkpoint {path} can't be read ({error}): delete it to begin anew") from error
        if facts.get("format") != FORMAT:
            raise PruneError(f"{path} is no training run of this version of prunelab: give another path as checkpoint")
        for what, mine in run.settings.items():
            theirs = facts["settings"].get(what)
            if theirs != mine:
                there, here = (textwrap.shorten(str(x), 200) for x in (theirs, mine))
                raise PruneError(
                    f"the checkpoint {path} is another run's. {what}: there {there}, here {here}."
                    " Delete the file to begin anew, or give another path"
                )
        try:
            _unpack(run, content, facts)
        except Exception as error:
            raise PruneError(f"the checkpoint {path} is damaged ({error}): delete it to begin anew") from error
        return True


def _packed(run: Run) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The run as named tensors, and all the rest of it."""
    now, optimizer, history = Snapshot.of(run.model), run.optimizer.state_dict(), run.history
    slots = {f"{index}.{key}": v for index, values in optimizer["state"].items() for key, v in values.items()}
    large = {key: v for key, v in slots.items() if isinstance(v, Tensor)}
    parts = {"model": now.state, "safe": run.safe.state, "optimizer": large, "epoch": run.epoch}
    content = {f"{part}/{key}": t for part, named in parts.items() for key, t in named.items()}
    content["random"] = run.random_states()["random"]
    content["losses"] = torch.tensor(history.losses, dtype=torch.float64)
    facts = {
        "settings": run.settings,
        "position": run.position,
        "masked": {"model": now.masked, "safe": run.safe.masked},
        "groups": optimizer["param_groups"],
        "numbers": {key: v for key, v in slots.items() if key not in large},
        "valid": [asdict(result) for result in history.valid],
        "start": history.start and asdict(history.start),
        "seconds": history.seconds,
    }
    return {key: t.detach().cpu().contiguous() for key, t in content.items()}, facts


def _unpack(run: Run, content: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Put the run where the file says; an error of any kind if the file can't be of it."""
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "safe": {}, "optimizer": {}, "epoch": {}}
    for key, tensor in content.items():
        part, _, name = key.partition("/")
        if name:
            parts[part][name] = tensor
    losses = made(tuple[float, ...], content["losses"].tolist())
    run.history = History(
        list(losses),
        list(made(tuple[Evaluation, ...], facts["valid"])),
        made(float, facts["seconds"]),
        made(Evaluation | None, facts["start"]),
    )
    run.position, run.epoch, run.resumed = made(int, facts["position"]), parts["epoch"], content["random"]
    if not (all(map(math.isfinite, losses)) and 0 <= run.position <= run.done <= run.total and losses):
        raise ValueError(f"it stands at batch {run.position} after {run.done} losses")
    run.set_random_states({"random": run.resumed})
    run.set_random_states({name: run.epoch[name] for name in ("random", *run.generators)})
    run.safe = _put_on(run.model, parts["safe"], facts["masked"]["safe"])
    _put_on(run.model, parts["model"], facts["masked"]["model"])
    slots: dict[int, dict[str, Any]] = {}
    for key, value in {**parts["optimizer"], **facts["numbers"]}.items():
        index, _, name = key.partition(".")
        slots.setdefault(int(index), {})[name] = value
    groups = [{k: tuple(v) if isinstance(v, list) else v for k, v in told.items()} for told in facts["groups"]]
    run.optimizer.load_state_dict({"state": slots, "param_groups": groups})
    stepped(run.rates, run.done)  # what the schedule decides is so whatever the file says


def _put_on(model: nn.Module, state: dict[str, Tensor], masked: list[str]) -> Snapshot:
    """Give the model this state in these masks; an error of any kind unless it can be its own."""
    found = Snapshot(state, tuple(masked))
    found.put_back(model)
    if not finite(model):
        raise ValueError("a weight is a NaN or an infinity")
    return found


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What is in the file, as it was written; ValueError if it is not that any more."""
    if not path.is_file():
        raise OSError("it is no file")
    with safe_open(path, "pt") as file:
        said = file.metadata() or {}
        content = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no dict)
    told = said.get("prunelab", "{}")
    facts = plain(told.encode())
    if not isinstance(facts, dict) or not isinstance(facts.setdefault("settings", {}), dict):
        raise ValueError("it says nothing of a run")
    if facts.get("format") == FORMAT and said.get("sha256") != sealed(told, content):
        raise ValueError("it is not as it was written")
    return content, facts


def settings_of(run: Run, groups: Any, seed: int, schedule: Any, loss: Any, on_step: Any) -> dict[str, str]:
    """What decides a run's weights, as far as it can be told."""
    return {
        "network": type(run.model).__name__ + str([(p.name, tuple(p.tensor.shape)) for p in places(run.model)]),
        "number of steps": str(run.total),
        "batch size": str(run.batch_size),
        "seed": str(seed),
        "learning-rate schedule": describe(schedule),
        "optimizer": f"{type(run.optimizer).__name__} {groups}",
        "loss": describe(getattr(loss, "__qualname__", loss)),
        "on_step": describe(getattr(on_step, "__qualname__", on_step)),
        "first training examples": examples(run.data),
        "generators of the data": str(sorted(run.generators.keys() - {"dice"})),
        "weights and masks it began with": digest(run.safe.state),
    }


def digest(named: Mapping[str, Tensor]) -> str:
    """The SHA-256 of tensors and their names."""
    found = hashlib.sha256()
    for name, tensor in sorted(named.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def examples(data: Any) -> str:
    """A digest of the first training examples; for data that streams, shuffles or changes them, that it does.

    No random number of torch's is spent, a loader's own generator's included.
    """
    source = split_of(data, "train")
    if isinstance(source, DataLoader):
        order = source.batch_sampler
        fixed = type(order) is BatchSampler and type(order.sampler) is SequentialSampler
        source = DataLoader(source.dataset, FEW, collate_fn=source.collate_fn)  # no workers, and none of its dice
    else:
        fixed = isinstance(source, (tuple, list, Dataset)) and not isinstance(source, IterableDataset)
    if not fixed:
        return VARYING
    found = set()
    for seed in (0, 1):  # augmentation shows by another batch with other dice
        with torch.random.fork_rng([]):
            torch.default_generator.manual_seed(seed)
            batch = next(batches(source, size=FEW))
        try:
            found.add(digest({str(i): t for i, t in enumerate(tensors(batch))}))
        except (RuntimeError, TypeError):  # sparse, say, or on the meta device: no bytes to read
            return VARYING
    return found.pop() if len(found) == 1 else VARYING


def sealed(told: str, content: Mapping[str, Tensor]) -> str:
    """The SHA-256 of all that a file says."""
    return digest({**content, "": torch.frombuffer(bytearray(told.encode()), dtype=torch.uint8)})
