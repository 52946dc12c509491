"""Trained networks in `data/`: safetensors, which can't execute anything, each with a card and a hash."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from ..files import alone, read_json, tensors_in, write_whole
from ..text import percent
from .data import ZooError, verified
from .networks import cnn, mlp, resnet, vit

REMAKE = "python -m prunelab.lab checkpoints"
CARDS = "checkpoints.json"
SMALL = 1000  # sizes up to here need no weight to show for it
EVERY = {"architecture": str, "parameters": int, "bytes": int, "sha256": str}  # what each card says
ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {"cnn": cnn, "mlp": mlp, "vit": vit, "resnet": resnet}
NEW = ".safetensors.new"  # the weights of a card just written, until they have their name


def data_dir() -> Path:
    """Where the checkpoints lie: `data/` beside the package in a checkout, inside it once installed.

    >>> (data_dir() / "checkpoints.json").is_file()
    True
    """
    package = Path(__file__).resolve().parents[1]
    # Not just any `data` beside the package: in site-packages that would be some other project's.
    checkout = (package.parent / "pyproject.toml").is_file()
    return (package.parent if checkout else package) / "data"


def cards(folder: Path | None = None) -> dict[str, dict[str, Any]]:
    """What is known of each checkpoint, by name: hash, architecture, data, licence, training, accuracy.

    Raises ZooError if the card file is missing or damaged.

    >>> cards()["digits-cnn"]["architecture"]
    'cnn'
    """
    path = (folder or data_dir()) / CARDS
    try:
        found = read_json(path)
        if not isinstance(found, dict) or not all(_whole(card) for card in found.values()):
            raise ValueError(f"it lacks {', '.join(sorted(EVERY))} for some name")
    except OSError as error:
        raise ZooError(f"{path} can't be read ({error.strerror}). To make it again: {REMAKE}") from error
    except ValueError as error:
        raise ZooError(f"{path} is damaged ({error}). Delete it and run: {REMAKE}") from error
    return found


def _whole(card: Any) -> bool:
    return isinstance(card, dict) and all(type(card.get(key)) is kind for key, kind in EVERY.items())


def checkpoints(folder: Path | None = None) -> tuple[str, ...]:
    """The names of the trained networks.

    >>> "digits-vit" in checkpoints()
    True
    """
    return tuple(cards(folder))


def checkpoint(name: str, *, folder: Path | None = None) -> nn.Module:
    """A trained network by name, on the CPU and in eval mode; a fresh one every time.

    Raises ZooError for an unknown name, and for a file that is missing or not the one on the card.

    >>> sum(p.numel() for p in checkpoint("digits-mlp").parameters())
    108210
    """
    folder = folder or data_dir()
    known = cards(folder)
    if not isinstance(name, str) or name not in known:
        raise ZooError(f"there is no checkpoint {name!r} in {folder}: the names are {', '.join(known)}")
    return _build(name, known[name], _content(folder / f"{name}.safetensors", known[name])).eval()


def save_checkpoint(
    name: str, model: nn.Module, card: Mapping[str, Any], *, folder: Path | None = None
) -> dict[str, Any]:
    """Write a network and its card, and give the card as written, with hash, size and torch's version added.

    `card` must say "architecture" (a name in ARCHITECTURES) and "arguments", from which `checkpoint` rebuilds
    the network. Each file is replaced whole: at no moment is one half written. The table in the folder's
    README.md follows. Raises ZooError, before anything is written, if the card doesn't describe the model.

    >>> from tempfile import TemporaryDirectory
    >>> from prunelab.zoo import mlp
    >>> with TemporaryDirectory() as folder:
    ...     plan = {"architecture": "mlp", "arguments": {"hidden": [4]}}
    ...     card = save_checkpoint("tiny", mlp(hidden=(4,)), plan, folder=Path(folder))
    ...     checkpoint("tiny", folder=Path(folder))[1].out_features
    4
    """
    folder = folder or data_dir()
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise ZooError(f"{name!r} can't name a checkpoint: use small letters, digits and single hyphens")
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in model.state_dict().items()}
    content = safetensors.torch.save(state)
    full = {
        **card,
        "parameters": sum(p.numel() for p in model.parameters()),
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "torch": torch.__version__,
    }
    _build(name, full, content)
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder / CARDS):
        _write(name, full, content, folder)
    return full


def _write(name: str, card: dict[str, Any], content: bytes, folder: Path) -> None:
    # A damaged card file is not overwritten: it may be a learner's only copy of the other cards.
    everything = {**(cards(folder) if (folder / CARDS).exists() else {}), name: card}
    try:
        text = json.dumps(everything, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ZooError(
            f"the card can't be written as JSON ({error}): use text, finite numbers, lists, dicts"
        ) from error
    readme = folder / "README.md"
    table = with_table(readme.read_text(encoding="utf-8"), everything).encode() if readme.exists() else None
    path, new = folder / f"{name}.safetensors", folder / f"{name}{NEW}"
    # Interrupted before the card is there, the old one describes the old weights; after it, `_content` finds the new.
    write_whole(new, content)
    write_whole(folder / CARDS, text.encode())
    os.replace(new, path)
    if table is not None:
        write_whole(readme, table)


def with_table(readme: str, everything: Mapping[str, Mapping[str, Any]]) -> str:
    """A README with what stands between its two `checkpoints` comments replaced by a table of the cards."""
    rows = [
        "| name | parameters | bytes | validation | test | SHA-256 |",
        "|---|---|---|---|---|---|",
        *(
            f"| `{name}` | {card['parameters']:,} | {card['bytes']:,} | {_percent(card, 'valid')} "
            f"| {_percent(card, 'test')} | `{card['sha256'][:16]}…` |"
            for name, card in everything.items()
        ),
    ]
    between = re.compile(r"(<!-- checkpoints -->\n).*?(<!-- /checkpoints -->)", re.DOTALL)
    return between.sub(lambda found: found[1] + "\n".join(rows) + "\n" + found[2], readme)


def _percent(card: Mapping[str, Any], split: str) -> str:
    result = card.get("accuracy", {}).get(split)
    return f"{percent(result['value'])} ± {percent(result['error'])}" if result else ""


def _content(path: Path, card: Mapping[str, Any]) -> bytes:
    """The bytes of a checkpoint, hashed before anybody looks at what they say."""
    wanted = (card["bytes"], "sha256", card["sha256"], f"To make it again: {REMAKE}")
    new = path.with_name(f"{path.stem}{NEW}")
    try:
        return verified(path, *wanted)
    except ZooError:
        if not new.exists():
            raise
        return verified(new, *wanted)


def _build(name: str, card: Mapping[str, Any], content: bytes) -> nn.Module:
    architecture, arguments = str(card.get("architecture")), card.get("arguments", {})
    if architecture not in ARCHITECTURES:
        raise ZooError(
            f"the card of {name!r} has the architecture {architecture!r}: known are {', '.join(ARCHITECTURES)}"
        )
    try:
        state = tensors_in(content)
        _check_sizes(arguments, max(SMALL, len(state), *(n for t in state.values() if t.numel() for n in t.shape)))
        model = ARCHITECTURES[architecture](**arguments)
        model.load_state_dict(state)
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ZooError(
            f"the weights of {name!r} do not fit the network its card describes, {architecture} with "
            f"{arguments}: {error}"
        ) from error
    return model


def _check_sizes(arguments: Mapping[str, Any], most: int) -> None:
    """ValueError for a size beyond that of any weight: a card may say what it will, and memory is taken for it."""
    lists = [value if isinstance(value, (list, tuple)) else [value] for value in arguments.values()]
    if any(len(one) > most or any(isinstance(n, (int, float)) and n > most for n in one) for one in lists):
        raise ValueError(f"no weight has a size above {most}")
