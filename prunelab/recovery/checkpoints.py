"""A training run in a file: written whole or not at all, and resumed to the very same weights."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from ..checks import check_count
from ..core import PruneError
from ..files import write_whole
from ..measurement import Evaluation
from .run import History, Run, Snapshot, digest, random_state

FORMAT = "prunelab run 2"


@dataclass(frozen=True)
class Checkpoint:
    """Save a training run to `path` every so many steps, and go on from the file where there is one.

    It is one safetensors file with facts as JSON in its header: weights, masks, optimizer, learning rate, random
    state, place in the data, history. A kill loses at most `every` steps. Delete the file to begin anew.
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
        content = {key: t.detach().cpu().contiguous().clone() for key, t in tensors.items()}  # tied ones apart
        facts = {**facts, "format": FORMAT, "sha256": digest(content)}
        write_whole(Path(self.path), to_bytes(content, {"prunelab": _json(facts)}))

    def resume(self, run: Run) -> bool:
        """Put a fresh run where the saved one stood; False if there is no file.

        Raises PruneError, with the model as it was, for a damaged file and for that of another run.
        """
        run.settings["weights and masks it began with"] = digest(run.safe.state)  # of two runs given one path
        if not Path(self.path).exists():
            return False
        tensors, facts = _read(Path(self.path))
        for what, mine in run.settings.items():
            theirs = facts["settings"].get(what)
            if theirs != mine:
                there, here = (textwrap.shorten(str(x), 200) for x in (theirs, mine))
                raise PruneError(
                    f"the checkpoint {self.path} is another run's. {what}: there {there}, here {here}."
                    " Delete the file to begin anew, or give another path"
                )
        _unpack(run, tensors, facts)
        return True


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
        "rates": run.rates.state_dict(),
        "valid": [asdict(result) for result in history.valid],
        "start": history.start and asdict(history.start),
        "seconds": history.seconds,
    }
    return tensors, facts


def _unpack(run: Run, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    slots: dict[int, dict[str, Any]] = {}
    for key, value in {**_out_of("optimizer", tensors), **facts["numbers"]}.items():
        index, _, name = key.partition(".")
        slots.setdefault(int(index), {})[name] = value
    groups = [{k: v if k == "params" or not isinstance(v, list) else tuple(v) for k, v in g.items()}
              for g in facts["groups"]]  # fmt: skip
    Snapshot(_out_of("model", tensors), tuple(facts["masked"]["model"])).put_back(run.model)
    run.optimizer.load_state_dict({"state": slots, "param_groups": groups})
    run.rates.load_state_dict(facts["rates"])
    run.safe = Snapshot(_out_of("safe", tensors), tuple(facts["masked"]["safe"]))
    run.position, run.epoch, run.resumed = facts["position"], _out_of("epoch", tensors), tensors["random"]
    run.history = History(
        tensors["losses"].tolist(),
        [Evaluation(**result) for result in facts["valid"]],
        facts["seconds"],
        facts["start"] and Evaluation(**facts["start"]),
    )


def _under(kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{kind}/{key}": t for key, t in tensors.items()}


def _out_of(kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.partition("/")[2]: t for key, t in tensors.items() if key.startswith(f"{kind}/")}


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads((file.metadata() or {}).get("prunelab", "{}"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise PruneError(f"the checkpoint {path} can't be read ({error}): delete it to begin anew") from error
    if facts.get("format") != FORMAT:
        raise PruneError(f"{path} is no training run of this version of prunelab: give another path as checkpoint")
    if facts["sha256"] != digest(tensors):
        raise PruneError(
            f"the checkpoint {path} is damaged, its tensors are not those written: delete it to begin anew"
        )
    return tensors, facts


def _json(facts: Mapping[str, Any]) -> str:
    try:
        return json.dumps(facts)
    except TypeError as error:
        raise PruneError(
            f"this optimizer or schedule can't be saved ({error}): its settings must be numbers and texts. Train "
            "without a checkpoint, or with one of torch's optimizers"
        ) from error
