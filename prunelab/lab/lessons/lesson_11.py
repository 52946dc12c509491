"""Lesson 11, "What did it forget?": its grid, drawings and exercises' checks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ... import zoo
from ...pipeline import Recipe, prune
from ...recovery import finetune, train
from ..learn.stored_grid import Grid, Resumable, Run
from .pruned_networks import CNNS

# The stored grid: which test digits are read by five networks, dense, pruned, and small


LEVELS = {"70 %": 0.7, "90 %": 0.9, "95 %": 0.95}
KINDS = ("dense", "trained on", *LEVELS, "small dense")
EPOCHS = 2  # of retraining; the dense network that is trained on has as many, the small one 4 before them
SMALL = 10  # filters of the small network's first layers: 8,340 parameters, about as many as 90 % sparse has left
TILTS = (0.0, 0.45, 0.8)  # radians, to either side; the training pictures end at 0.5
NOISE = 0.3  # standard deviation of noise that no training picture had, on top of its own 0.15
BINS = 10


def forgotten_grid() -> Resumable:
    """Notebook 11: five networks, dense, trained on, pruned and retrained, and small: which test digits are read."""
    return [{"network": name, "kind": kind} for name in CNNS for kind in KINDS], forgotten_run


def forgotten_run(point: Run) -> Run:
    """What one of the thirty networks reads: the test digits as bits, its confidence, at tilts and under noise."""
    data, model = zoo.load("digits"), made(point["network"], point["kind"])
    images, labels = data.test.tensors
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)) * NOISE
    sure, right = judged(model, images, labels)
    noisy = judged(model, images + noise, labels)
    tilts = {f"{tilt:g}": float(judged(model, *tilted(data, tilt))[1].float().mean()) for tilt in TILTS}
    return {
        "parameters": sum(int(p.count_nonzero()) for p in model.parameters()),
        "right": bits(right),
        "bins": binned(sure, right),
        "noisy": float(noisy[1].float().mean()),
        "noisy_bins": binned(*noisy),
        "tilts": tilts,
    }


def made(name: str, kind: str) -> nn.Module:
    """A network of the grid: a checkpoint, the same trained on or pruned and retrained, or a small one from nothing."""
    data, seed = zoo.load("digits"), CNNS.index(name)
    if kind == "small dense":
        model = zoo.cnn(width=SMALL, seed=seed)
        train(model, data.train, epochs=4 + EPOCHS, seed=seed, progress=False)
        return model.eval()
    model = zoo.checkpoint(name)
    if kind in LEVELS:
        prune(model, Recipe(sparsity=LEVELS[kind]))
    if kind != "dense":
        finetune(model, data.train, epochs=EPOCHS, seed=seed, progress=False)
    return model.eval()


def tilted(data: zoo.Data, tilt: float) -> tuple[Tensor, Tensor]:
    """Every test scan turned by so many radians to the left and to the right, with the data set's noise."""
    scans, labels = zoo.scans()
    own = data.origin["test"][: data.origin["test"].unique().numel()]
    dice = torch.Generator().manual_seed(round(100 * tilt))
    turned = []
    for angle in (tilt, -tilt):
        turn = torch.tensor([[np.cos(angle), -np.sin(angle), 0.0], [np.sin(angle), np.cos(angle), 0.0]]) / 0.85
        grid = F.affine_grid(turn.float().expand(len(own), 2, 3), [len(own), 1, 16, 16], align_corners=False)
        plain = F.grid_sample(scans[own][:, None], grid, align_corners=False)
        turned.append(plain + 0.15 * torch.randn(plain.shape, generator=dice))
    return torch.cat(turned), labels[own].repeat(2)


def judged(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """How sure a model is of what it reads, (n,) from 0 to 1, and whether that is right, (n,)."""
    with torch.no_grad():
        sure, read = torch.cat([model(some) for some in images.split(250)]).softmax(1).max(1)
    return sure, read == labels


def binned(sure: Tensor, right: Tensor) -> list[list[float]]:
    """Of each tenth of confidence: pictures, the sum of their confidences, how many are right."""
    where = (sure * BINS).long().clamp(max=BINS - 1)
    return [[int((where == b).sum()), float(sure[where == b].sum()), int(right[where == b].sum())] for b in range(BINS)]


def bits(right: Tensor) -> str:
    """Yes or no for each picture as hexadecimal digits, four pictures a digit."""
    return np.packbits(right.numpy()).tobytes().hex()


def unpacked(text: str, count: int = 1988) -> np.ndarray:
    """`bits` undone: (count,) of bool."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), dtype=np.uint8))[:count].astype(bool)


def who_reads(runs: Sequence[Run]) -> dict[str, np.ndarray]:
    """Which of the test digits each network reads: kind -> (networks, pictures) of bool."""
    return {kind: np.stack([unpacked(r["right"]) for r in runs if r["kind"] == kind]) for kind in KINDS}


GRIDS: dict[str, Grid] = {"forgotten": forgotten_grid}
