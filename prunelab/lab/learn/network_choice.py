"""A network to prune: one of the zoo's, one of torchvision's, or one's own, each with data to learn and choose on."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ... import zoo
from ...core import PruneError
from ...recovery import train

STEPS = 400  # to teach a network of torchvision's the digits
LR = 3e-3


class OnDigits(nn.Module):
    """A network for three colours, given grey pictures: the one plane three times, larger if it wants that."""

    def __init__(self, net: nn.Module, pixels: int):
        super().__init__()
        self.net, self.enlarge = net, nn.Upsample(size=(pixels, pixels), mode="bilinear")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(n, 1, h, w) -> (n, classes)."""
        return self.net(self.enlarge(images).expand(-1, 3, -1, -1))


def pick(name: str = "digits-cnn", *, pixels: int = 32, steps: int = STEPS, progress: bool = True) -> tuple[Any, Any]:
    """(model, data) by name: the zoo's checkpoint; "torchvision:resnet18"; or the path of a Python file of your own.

    torchvision's come with their weights where these lie in torch's cache already (nothing is downloaded), else fresh;
    their last layer is new, and they are taught the digits for so many steps, at so many pixels, first. A file of
    one's own defines `model()`, which gives a trained nn.Module, and `data()`, which gives something with .train and
    .valid, or (train, valid). It is run: open no file that you would not run yourself.
    """
    if name.startswith("torchvision:"):
        return _torchvision(name.partition(":")[2], pixels, steps, progress)
    if name.endswith(".py") or "/" in name:
        return _own(Path(name))
    if name not in checkpoints():
        there = ", ".join(checkpoints())
        raise PruneError(f"no network is called {name!r}: the zoo has {there}; or give torchvision:NAME, or a .py file")
    return zoo.checkpoint(name), zoo.load("digits")


def checkpoints() -> list[str]:
    """The zoo's networks that read digits."""
    return [name for name, card in zoo.trained.cards().items() if card.get("data") == "digits"]


def _torchvision(name: str, pixels: int, steps: int, progress: bool) -> tuple[nn.Module, Any]:
    from torchvision import models

    if name not in models.list_models(module=models):
        raise PruneError(
            f"torchvision has no classifier called {name!r}; it has {', '.join(models.list_models()[:5])}, ..."
        )
    weights = models.get_model_weights(name).DEFAULT
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        net = models.get_model(name, weights=weights if cached.exists() else None)
        _new_head(net, 10)
    model, data = OnDigits(net, pixels), zoo.load("digits")
    train(model, data.train, steps=steps, lr=LR, progress=progress)
    return model.eval(), data


def _new_head(net: nn.Module, classes: int) -> None:
    """Replace the last linear layer, in which nearly every classifier of torchvision ends; PruneError without one."""
    linear = [(p, m) for p, m in net.named_modules() if isinstance(m, nn.Linear)]
    if not linear:
        raise PruneError(f"{type(net).__name__} does not end in a linear layer, which is replaced here: choose another")
    path, last = linear[-1]
    parent, _, attribute = path.rpartition(".")
    setattr(net.get_submodule(parent), attribute, nn.Linear(last.in_features, classes))


def _own(path: Path) -> tuple[Any, Any]:
    if path.suffix != ".py" or not path.is_file():
        raise PruneError(f"{path} is no Python file: it should define model() and data()")
    defined = runpy.run_path(str(path))
    lacking = [f"{name}()" for name in ("model", "data") if not callable(defined.get(name))]
    if lacking:
        raise PruneError(f"{path} does not define {' and '.join(lacking)}")
    data = defined["data"]()
    if isinstance(data, tuple) and len(data) == 2:
        data = Pair(*data)
    return defined["model"](), data


class Pair:
    """Training and validation data under the names that `fit_budget` looks for."""

    def __init__(self, train: Any, valid: Any):
        self.train, self.valid = train, valid
