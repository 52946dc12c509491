"""What all tests share: small seeded models, data for them, `snapshot`, `gpu`, one thread, and no network."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tally import COUNTS
from torch import Tensor, nn
from torch.nn import functional as F

from prunelab import zoo


class Residual(nn.Module):
    """x + f(x) twice, with BatchNorm: channels are coupled through the sums."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()) for _ in range(2)
        )
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean((2, 3)))


class TiedLinears(nn.Module):
    """Two linear layers that share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).relu()).relu())


class TiedEmbedding(nn.Module):
    """A language model in small: the embedding is the output layer's weight too."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.inner, self.out = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.inner(self.embed(tokens)).relu())


class Attention(nn.Module):
    """One MultiheadAttention: packed, or (`kdim`) with separate projections."""

    def __init__(self, kdim: int | None = None) -> None:
        super().__init__()
        self.attend, self.head = nn.MultiheadAttention(4, 2, kdim=kdim, vdim=kdim, batch_first=True), nn.Linear(4, 3)
        self.widen = nn.Identity() if kdim is None else nn.Linear(4, kdim)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.view(len(x), -1, 4)
        wide = self.widen(tokens)
        return self.head(self.attend(tokens, wide, wide, need_weights=False)[0].mean(1))


def _cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def _vit() -> nn.Module:
    return zoo.vit(classes=3, pixels=8, patch=4, width=8, depth=2, heads=4, hidden=4)


BUILDERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "cnn": (_cnn, (1, 6, 6)),
    "mlp": (_mlp, (6,)),
    "residual": (Residual, (1, 6, 6)),
    "tied": (TiedLinears, (6,)),
    "attention": (Attention, (8,)),
    "attention_kdim": (lambda: Attention(6), (8,)),
    "vit": (_vit, (1, 8, 8)),
}


@pytest.fixture
def build() -> Callable[[str], nn.Module]:
    """A function from a name, any in BUILDERS or "tied_embedding", to that model: the same weights every time."""

    def make(name: str) -> nn.Module:
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            return TiedEmbedding() if name == "tied_embedding" else BUILDERS[name][0]()

    return make


@pytest.fixture
def data_for() -> Callable[[str], tuple[Tensor, Tensor]]:
    """A function from a name in BUILDERS to (inputs, targets) that fit: 24 of them, 3 classes."""

    def make(name: str) -> tuple[Tensor, Tensor]:
        dice = torch.Generator().manual_seed(1)
        return torch.randn(24, *BUILDERS[name][1], generator=dice), torch.arange(24) % 3

    return make


@pytest.fixture
def lesson() -> SimpleNamespace:
    """Three classes that a line separates, six inputs each, with splits: 48 to train on, 12 for validation."""
    dice = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 3
    x = F.one_hot(y, 6).float() * 3 + torch.randn(60, 6, generator=dice) * 0.3
    return SimpleNamespace(train=(x[:48], y[:48]), valid=(x[48:], y[48:]))


def _bytes(tensor: Tensor | None) -> Any:
    if tensor is None:
        return None
    plain = tensor.detach().cpu().contiguous()
    return tuple(tensor.shape), tensor.dtype, plain.reshape(-1).view(torch.uint8).numpy().tobytes()


def _of_module(module: nn.Module) -> tuple[Any, ...]:
    hooks = [len(v) for k, v in vars(module).items() if k.endswith("hooks")]
    return type(module).__name__, module.training, hooks, list(getattr(module, "parametrizations", {}))


@pytest.fixture
def snapshot() -> Callable[[nn.Module], dict[str, Any]]:
    """A function from a model to all that must not change, to the bit, as something to compare with ==.

    Weights, buffers, gradients, what is frozen, the identity and order of the parameters, modes, hooks,
    classes, parametrizations, the state of every random generator, and torch's grad mode.
    """

    def take(model: nn.Module) -> dict[str, Any]:
        return {
            "state": {k: _bytes(v) for k, v in model.state_dict().items()},
            "buffers": {k: _bytes(v) for k, v in model.named_buffers()},
            "parameters": [(k, id(p), p.requires_grad, _bytes(p.grad)) for k, p in model.named_parameters()],
            "modules": {k: _of_module(m) for k, m in model.named_modules()},
            "random": (_bytes(torch.get_rng_state()), random.getstate(), np.random.get_state()[1].tobytes()),
            "grad mode": torch.is_grad_enabled(),
        }

    return take


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A CUDA device, float32 in full as on the CPU; a test that asks for it skips where there is none.

    `PRUNELAB_GPU=cpu` lets the CPU stand for it, to try the tests themselves.
    """
    device = torch.device(os.environ.get("PRUNELAB_GPU", "cuda"))
    if device.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    return device


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Small networks are fastest on one thread, and results don't depend on the machine."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def switches_left_on() -> Iterator[None]:
    """A test that leaves torch's grad mode or its fused attention off fails itself, not those after it."""
    yield
    on = torch.is_grad_enabled(), torch.backends.mha.get_fastpath_enabled()
    torch.set_grad_enabled(True)
    torch.backends.mha.set_fastpath_enabled(True)
    assert all(on), f"torch's grad mode was left {on[0]}, its fused attention {on[1]}"


def _no_network(connect: Callable[[socket.socket, Any], Any]) -> Callable[[socket.socket, Any], Any]:
    """`connect`, but for processes of this machine that speak through a file."""

    def refuse(self: socket.socket, address: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            raise OSError(f"a test wanted to connect to {address}: tests have no network, and no server here either")
        return connect(self, address)

    return refuse


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """No test connects anywhere, nor do its fixtures; the browser's reach the JupyterLab that they have started."""
    with pytest.MonkeyPatch.context() as patch:
        if item.get_closest_marker("browser") is None:
            for name in ("connect", "connect_ex"):
                patch.setattr(socket.socket, name, _no_network(getattr(socket.socket, name)))
        return (yield)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """What this process counted, if it is one of several, goes to the one that prints."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["counts"] = dict(COUNTS)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A process that ends has counted something, unless it crashed."""
    COUNTS.update(getattr(node, "workeroutput", {}).get("counts", {}))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What the robustness tests tried."""
    for what, count in sorted(COUNTS.items()):
        terminalreporter.write_line(f"{what}: {count:,}")
