"""Train the course's networks again: `python -m prunelab.lab checkpoints` rewrites `data/`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ... import zoo
from ...core import mode
from ...data import batches
from ...recovery import train
from ...text import percent
from ..learn import exam
from ..lessons import real_pictures


@dataclass(frozen=True)
class Plan:
    """How one checkpoint is made: a network of `zoo.trained.ARCHITECTURES`, its arguments, and its training."""

    architecture: str
    arguments: dict[str, Any]
    epochs: int
    seed: int = 0
    lr: float = 1e-2
    weight_decay: float = 1e-2
    views: int = 0  # pictures rendered of each scan, instead of the data set's own four
    spares: int = 0  # training scans it does not see
    data: str = "digits"
    batch_size: int = 64


CNN = {"classes": 10, "channels": 1, "width": 32}
MLP = {"classes": 10, "inputs": 256, "hidden": [300, 100]}
VIT = {"classes": 10, "channels": 1, "pixels": 16, "patch": 4, "width": 48, "depth": 4, "heads": 8, "hidden": 96}
RESNET = {"classes": 10, "channels": 3, "widths": [16, 32, 64]}


def _vit(seed: int) -> Plan:
    """Attention has to learn what a convolution is born with (neighbours belong together): it takes more pictures."""
    return Plan("vit", VIT, epochs=4, seed=seed, lr=3e-3, weight_decay=0.05, views=60)


def _real(seed: int) -> Plan:
    """On photographs; in channels_last, which takes half the time."""
    return Plan("resnet", RESNET, epochs=8, seed=seed, data="cifar10", batch_size=128)


# Five of each that differ in nothing but their seed: what is true of one may be luck.
PLANS = {
    "digits-cnn": Plan("cnn", CNN, epochs=4),
    **{f"digits-cnn-{seed}": Plan("cnn", CNN, epochs=4, seed=seed) for seed in (1, 2, 3, 4)},
    "digits-mlp": Plan("mlp", MLP, epochs=20),
    "digits-vit": _vit(0),
    **{f"digits-vit-{seed}": _vit(seed) for seed in (1, 2, 3, 4)},
    **{name: _real(seed) for seed, name in enumerate(real_pictures.NETWORKS)},
    "exam": Plan("resnet", {"classes": 10, "channels": 1, "widths": [32, 48, 64]}, epochs=6, spares=exam.HELD_BACK),
}
LICENSES = {
    "digits": "CC-BY-4.0 (UCI Optical Recognition of Handwritten Digits, in scikit-learn)",
    "cifar10": "none is stated: its publisher asks for a citation (Krizhevsky 2009), the photographs are of the web",
}
LAYOUTS = {"digits": torch.contiguous_format, "cifar10": torch.channels_last}


def remake(names: Sequence[str] = ()) -> None:
    """Train the networks on one thread, all or those named, and write each with its card."""
    torch.set_num_threads(1)  # these networks train 5 to 10 times faster on one, and the sums' order is fixed
    for name in names or PLANS:
        plan = PLANS[name]
        data = zoo.load(plan.data)
        model = zoo.trained.ARCHITECTURES[plan.architecture](**plan.arguments, seed=plan.seed)
        model = model.to(memory_format=LAYOUTS[plan.data])
        pictures = zoo.data.more_views(plan.views) if plan.views else exam.split()[0] if plan.spares else data
        how: dict[str, Any] = {"lr": plan.lr, "weight_decay": plan.weight_decay, "batch_size": plan.batch_size}
        history = train(model, pictures, epochs=plan.epochs, **how, seed=plan.seed)
        card = zoo.trained.save_checkpoint(name, model, _card(plan, model, data, history.seconds))
        print(f"{name}: test {percent(card['accuracy']['test']['value'], digits=2)}, sha256 {card['sha256'][:16]}")


def _card(plan: Plan, model: nn.Module, data: zoo.Data, seconds: float) -> dict[str, Any]:
    return {
        "architecture": plan.architecture,
        "arguments": plan.arguments,
        "data": plan.data,
        "data_license": LICENSES[plan.data],
        "license": "MIT",
        "training": {
            "optimizer": "AdamW, one-cycle",
            **{key: getattr(plan, key) for key in ("epochs", "lr", "weight_decay", "batch_size", "seed")},
            "initial_seed": plan.seed,
            **({"views_of_each_scan": plan.views} if plan.views else {}),
            **({"training_scans_not_seen": plan.spares} if plan.spares else {}),
            "seconds": round(seconds, 1),
            "threads": 1,
        },
        "accuracy": {split: _accuracy(model, data, split) for split in ("valid", "test")},
        "made_by": "python -m prunelab.lab checkpoints",
    }


def _accuracy(model: nn.Module, data: zoo.Data, split: str) -> dict[str, Any]:
    """Accuracy with its standard error over scans: the views of one scan are not independent."""
    with mode(model, training=False), torch.no_grad():
        right = torch.cat([(model(x).argmax(1) == y).double() for x, y in batches(data, split)])
    scans: Tensor = data.origin[split]
    each = torch.stack([right[scans == scan].mean() for scan in scans.unique()])
    return {
        "value": round(float(right.mean()), 4),
        "error": round(float(each.std() / len(each) ** 0.5), 4),
        "images": len(right),
        "scans": len(each),
    }
