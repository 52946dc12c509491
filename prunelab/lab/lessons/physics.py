"""The physics of notebooks 02 and 03: machine, roofline, sparse kernels, and the pitfalls of measuring."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...checks import check_count, known
from ...core import Masks, PruneError, device_of
from ...data import to
from ...masking import apply
from ...measurement.costs import layer_calls
from ...measurement.timing import Blocks, Comparison, Conditions, Latency, Speedup, Task, in_turns
from ...running import call, check_plain, forward, rows, undisturbed
from ...text import plural

ROUNDS = 9  # of so many, the interval of the median leaves out the extremes
STEADY = Conditions(rounds=ROUNDS)

# The machine, and the roof that it puts over every layer

BUFFERS = (1 << 18, 1 << 22, 1 << 26)  # bytes copied: in the nearest caches, in the last one, in none
PRODUCT = 512  # rows and columns of the matrix product that measures the peak, with
# What a convolution from 64 to 64 channels is given, (images, channels, height, width), in either memory layout.
CONVOLVED = ((8, 64, 16, 16), (64, 64, 8, 8))
LAYOUTS = (torch.contiguous_format, torch.channels_last)


@dataclass(frozen=True)
class Machine:
    """What one device did at best: MACs a second, and bytes a second by the size of the buffer copied."""

    peak: float
    bandwidths: tuple[tuple[int, float], ...]
    threads: int
    device: str


def machine(*, product: int = PRODUCT, buffers: tuple[int, ...] = BUFFERS, on: Conditions = STEADY) -> Machine:
    """Measure this machine: the best of a few rounds each of float32 work and of copies.

    A copy of b bytes moves 2 b (what a cache fetches before it is written over is not counted). The peak is the
    libraries' best, not the data sheet's: of a matrix product and four 3x3 convolutions the fastest, for these come
    from different libraries, and on some processors one of them is twice as fast.
    """
    where = torch.device(on.device)
    square = torch.randn(product, product, generator=torch.Generator().manual_seed(0)).to(where)
    macs = {"product": product**3}
    tasks: dict[str, Task] = {"product": lambda: square @ square}
    for sizes, layout in itertools.product(CONVOLVED, LAYOUTS):
        images = torch.ones(sizes, device=where).to(memory_format=layout)
        kernels = torch.ones(sizes[1], sizes[1], 3, 3, device=where).to(memory_format=layout)
        macs[f"convolution {sizes}, {layout}"] = images.numel() * kernels[0].numel()
        tasks[f"convolution {sizes}, {layout}"] = partial(F.conv2d, images, kernels, padding=1)
    for buffer in buffers:
        source = torch.ones(buffer // 4, device=where)
        tasks[f"copy {buffer}"] = partial(torch.empty_like(source).copy_, source)
    with torch.no_grad():
        best = {name: min(times) for name, times in in_turns(tasks, on).items()}
    bandwidths = tuple((b, 2 * b / best[f"copy {b}"]) for b in buffers)
    return Machine(max(work / best[name] for name, work in macs.items()), bandwidths, on.threads, on.device)


@dataclass(frozen=True)
class Layer:
    """One layer's forward pass: its work, and the time that it took."""

    name: str
    macs: int
    moved: int  # bytes of weights and buffers, inputs and outputs
    measured: Latency

    @property
    def intensity(self) -> float:
        """MACs a byte moved."""
        return self.macs / self.moved if self.moved else 0.0

    @property
    def rate(self) -> float:
        """MACs a second."""
        return self.macs / self.measured.p50


@dataclass(frozen=True)
class Roofline:
    """The layers of a model that compute, by name, under the roof of the machine."""

    machine: Machine
    layers: dict[str, Layer]


def roofline(model: nn.Module, example: Any, on: Machine | None = None, *, rounds: int = ROUNDS) -> Roofline:
    """Time every layer of a model that computes alone, on the inputs it gets in a forward pass.

    A layer is a module without children. One that is called twice appears twice. `on` is what `machine()` found, or
    is measured first. Raises PruneError for a model with masks on, or on another device than the machine.
    """
    check_plain(model)
    device = device_of(model).type
    on = machine(on=Conditions(1, rounds, device=device)) if on is None else on
    if on.device != device:
        raise PruneError(f"the model lies on {device}, and the machine was measured on {on.device}: use that")
    timed = Conditions(on.threads, rounds, device=device)
    inputs = to(example, device_of(model))
    with undisturbed(model), torch.no_grad():
        calls = layer_calls(model, inputs)
        work = {name: c.work() for name, c in calls.items()}
        tasks: dict[str, Task] = {name: calls[name].run for name, (macs, _) in work.items() if macs}
        taken = Comparison.of(in_turns(tasks, timed), rows(inputs), timed).latency
    return Roofline(on, {name: Layer(name, *work[name], taken[name]) for name in tasks})


# Sparse kernels

KERNELS = ("dense", "csr", "bsr", "2:4")
BLOCK = (16, 16)  # rows by columns of the blocks that go together in "bsr"


@dataclass(frozen=True)
class Product:
    """One kernel at one point: the time of (n, n) @ (n, batch), and how many times faster than dense that is."""

    kernel: str
    n: int
    batch: int
    sparsity: float
    latency: Latency
    speedup: Speedup


@dataclass(frozen=True)
class Products:
    """The products that were timed, in order of batch and sparsity."""

    rows: tuple[Product, ...]

    def curves(self) -> dict[str, tuple[list[float], list[float]]]:
        """Every curve but dense, by a name such as "CSR, 64 columns": sparsities, and times faster than dense."""
        found: dict[str, tuple[list[float], list[float]]] = {}
        for row in self.rows:
            if row.kernel != "dense":
                levels, ratios = found.setdefault(f"{row.kernel.upper()}, {plural(row.batch, 'column')}", ([], []))
                levels.append(row.sparsity)
                ratios.append(row.speedup.ratio)
        return found


def products(
    n: int,
    batch: int | Sequence[int],
    sparsities: Sequence[float],
    *,
    kernels: Iterable[str] | None = None,
    block: tuple[int, int] = BLOCK,
    on: Conditions = STEADY,
) -> Products:
    """Time W @ X, W (n, n) with a share of zeros, X (n, batch), with each kernel in turns.

    dense: multiplies the zeros too. csr: zeros anywhere. bsr: as many zeros, in whole blocks. 2:4: two in every
    four, so at 50 % alone, and only on an NVIDIA GPU from Ampere on, in half precision, as all kernels there.
    The weights are random: only where the zeros are matters here. Converting is not timed.
    Raises PruneError for an unknown kernel, and for 2:4 on a CPU, which has no such instruction.
    """
    there = _kernels(kernels, on.device)
    found: list[Product] = []
    for columns in (batch,) if isinstance(batch, int) else batch:
        check_count("batch", columns)
        for sparsity in sparsities:
            weights = weights_of(n, sparsity, there, block=block, device=on.device)
            x = torch.randn(n, columns, generator=torch.Generator().manual_seed(1))
            x = x.to(on.device, next(iter(weights.values())).dtype)
            tasks: dict[str, Task] = {name: partial(torch.matmul, w, x) for name, w in weights.items()}
            with torch.inference_mode():
                took = Comparison.of(in_turns(tasks, on), columns, on)
            found += [Product(k, n, columns, sparsity, took.latency[k], took.speedup[k]) for k in weights]
    return Products(tuple(found))


def two_of_four(n: int = 4096, batch: int = 4096) -> float | None:
    """How many times faster than dense a 2:4 product is on the GPU here; None if there is none that can do it."""
    if not (torch.cuda.is_available() and _skips_two_of_four("cuda")):
        return None
    return products(n, batch, [0.5], kernels=["2:4"], on=replace(STEADY, device="cuda")).rows[-1].speedup.ratio


def weights_of(
    n: int, sparsity: float, kernels: Sequence[str], *, block: tuple[int, int] = BLOCK, seed: int = 0,
    device: str = "cpu",
) -> dict[str, Tensor]:  # fmt: skip
    """A random (n, n) weight with exactly round(sparsity * units) units at zero, in each kernel's format."""
    check_count("n", n)
    if not 0 <= sparsity < 1:
        raise PruneError(f"a sparsity of {sparsity!r} is not a fraction of at least 0 and below 1, such as 0.9")
    source = torch.Generator().manual_seed(seed)
    dense = torch.randn(n, n, generator=source)
    dtype = torch.float32 if device == "cpu" else torch.float16

    def stays(units: int) -> Tensor:
        kept = torch.ones(units)
        kept[torch.randperm(units, generator=source)[: round(sparsity * units)]] = 0
        return kept

    def anywhere() -> Tensor:
        return (dense * stays(n * n).view(n, n)).to(device, dtype)

    def in_blocks() -> Tensor:
        r, c = block
        if n % r or n % c:
            raise PruneError(f"blocks of {r} x {c} do not divide a weight of {n} x {n}: give n= that they divide")
        kept = stays((n // r) * (n // c)).view(n // r, n // c)
        return (dense * kept.repeat_interleave(r, 0).repeat_interleave(c, 1)).to(device, dtype)

    def two_in_four() -> Tensor:
        best = dense.view(n, -1, 4).abs().topk(2, dim=2).indices
        return (dense * torch.zeros(n, n // 4, 4).scatter_(2, best, 1.0).view(n, n)).to(device, dtype)

    made: dict[str, Callable[[], Tensor]] = {
        "dense": anywhere,
        "csr": lambda: anywhere().to_sparse_csr(),
        "bsr": lambda: in_blocks().to_sparse_bsr(block),
        "2:4": lambda: torch.sparse.to_sparse_semi_structured(two_in_four()),
    }
    with _beta_silenced():
        return {k: made[k]() for k in kernels if k != "2:4" or sparsity == 0.5}


@contextmanager
def _beta_silenced() -> Iterator[None]:
    """Without torch's notice that a sparse format is still young: that, and no other warning."""
    young = r"Sparse (CSR|BSR) tensor support is in beta|The PyTorch API of SparseSemiStructuredTensor is in prototype"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=young, category=UserWarning)
        yield


def _kernels(wanted: Iterable[str] | None, device: str) -> tuple[str, ...]:
    """The kernels to time, dense first; those that this device has, if none are named."""
    there = KERNELS if _skips_two_of_four(device) else KERNELS[:-1]
    if wanted is None:
        return there
    named = known("kernels", wanted, KERNELS)
    if "2:4" in named and "2:4" not in there:
        raise PruneError(
            "2:4 needs the sparse tensor cores of an NVIDIA GPU (Ampere or later, compute capability 8.0): no CPU and "
            'no older GPU skips two of four. Give on=Conditions(device="cuda") where there is one, or leave "2:4" out'
        )
    return ("dense", *(k for k in named if k != "dense"))


def _skips_two_of_four(device: str) -> bool:
    """Whether a device has sparse tensor cores."""
    return device.startswith("cuda") and torch.cuda.get_device_capability(device) >= (8, 0)


# Five pitfalls


def pitfalls(
    model: nn.Module, masks: Masks, batch: Tensor, rounds: int = ROUNDS
) -> dict[str, tuple[float, float, float]]:
    """Five pitfalls of measuring: seconds of this and of that, and how many times as long that takes.

    Six pairs, timed in turns on one thread unless it says otherwise. The model stays as it is; the masks are put on a
    copy, and stay on: `measure` refuses to time that, for each of its forwards multiplies every weight by its mask.
    """
    check_plain(model)
    on, two = Conditions(1, rounds), Conditions(2, rounds, "wall")
    one, masked = batch[:1], apply(copy.deepcopy(model), masks)
    with undisturbed(model), torch.random.fork_rng(devices=()), torch.no_grad():
        run, alone = forward(model, batch[:4]), forward(model, one)
        wide = {c: _convolution(c) for c in (32, 33, 40)}
        a_digit = in_turns({"of many": forward(model, batch), "alone": alone}, on)
        a_digit["of many"] = [t / len(batch) for t in a_digit["of many"]]
        times = {
            "32 channels, 33 channels": in_turns({"32": wide[32], "33": wide[33]}, on),
            "40 channels, 33 channels": in_turns({"40": wide[40], "33": wide[33]}, on),
            "dense, masks still on (1 digit)": in_turns({"dense": alone, "masks on": forward(masked, one)}, on),
            "first forward, later ones": _without_warm_up(model, batch, on),
            f"a digit of {len(batch)}, a digit alone": a_digit,
            # The timer puts the number of threads back. With other programs about, a second one is not ours alone.
            "1 thread, 2 threads": in_turns({"1": partial(_on, 1, run), "2": partial(_on, 2, run)}, two),
        }
    found = {}
    for name, taken in times.items():
        timed = Comparison.of(taken, 1, on)
        this, that = timed.latency
        found[name] = timed.latency[this].p50, timed.latency[that].p50, 1 / timed.speedup[that].ratio
    return found


def _convolution(channels: int) -> Task:
    layer = nn.Conv2d(channels, channels, 3, padding=1, bias=False).eval()
    return forward(layer, torch.randn(64, channels, 16, 16))


def _on(threads: int, task: Task) -> None:
    torch.set_num_threads(threads)
    task()


def _without_warm_up(model: nn.Module, batch: Tensor, on: Conditions, calls: int = 10) -> Blocks:
    """Each fresh copy sees a batch that is one sample smaller than the last one did: libraries remember shapes."""
    times: Blocks = {"first": [], "later": []}
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    for turn in range(on.rounds or ROUNDS):
        task, seconds = partial(call, copy.deepcopy(model).eval(), batch[: 4 + ROUNDS - turn]), []
        for _ in range(calls):
            began = on.tick()
            task()
            seconds.append(on.tick() - began)
        times["first"].append(seconds[0])
        times["later"].append(sorted(seconds[1:])[len(seconds) // 2 - 1])
    torch.set_num_threads(before)
    return times
