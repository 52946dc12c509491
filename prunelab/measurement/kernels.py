"""Where a sparse kernel beats the dense one: the same matrix product in several formats, timed in turns."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..core import PruneError
from .conditions import check_count, known
from .rounds import Task, interleaved, resolved, waited_for
from .text import percent, plural, shown_as_table
from .timing import Latency, Speedup, speedups, summary

KERNELS = ("dense", "csr", "bsr", "2:4")
SPARSITIES = (0.5, 0.8, 0.9, 0.95, 0.99)
MOST = 0.99  # the highest sparsity at which a crossover is looked for
PROBES = 4  # halvings of the range of densities: to within a third of the density at the crossover
FLANK = 1.3  # how many times that density, and its inverse, are tried at the end
BLOCK = (16, 16)  # rows by columns of the blocks that go together in "bsr"
NINE = 9  # rounds: of so many, the interval of the median leaves out the extremes

Formats: TypeAlias = dict[str, Callable[[Tensor], Tensor]]


@dataclass(frozen=True)
class Product:
    """One kernel at one point: the time of (n, n) @ (n, batch), and how many times faster than dense that is."""

    kernel: str
    n: int
    batch: int
    sparsity: float
    latency: Latency
    speedup: Speedup


@shown_as_table
@dataclass(frozen=True, repr=False)
class Products:
    """The products that were timed, in order of size, batch and sparsity; print it, or let a notebook show it."""

    rows: tuple[Product, ...]

    def curve(self, kernel: str, n: int, batch: int) -> tuple[list[float], list[float]]:
        """A kernel's sparsities, and how many times faster than dense it is at each."""
        found = [r for r in self.rows if (r.kernel, r.n, r.batch) == (kernel, n, batch)]
        if not found:
            there = sorted({(r.kernel, r.n, r.batch) for r in self.rows})
            raise PruneError(f"{kernel} was not timed at n={n}, batch={batch}; there is {there}")
        return [r.sparsity for r in found], [r.speedup.ratio for r in found]

    def curves(self) -> dict[str, tuple[list[float], list[float]]]:
        """Every curve but dense, by a name such as "CSR, 64 columns": sparsities, and times faster than dense."""
        several = len({r.n for r in self.rows}) > 1
        found = dict.fromkeys((r.kernel, r.n, r.batch) for r in self.rows if r.kernel != "dense")
        return {
            f"{k.upper()}, {f'{n} x {n}, ' if several else ''}{plural(b, 'column')}": self.curve(k, n, b)
            for k, n, b in found
        }

    def _lines(self) -> tuple[str, list[str], list[list[str]]]:
        lines = [
            [f"{r.n} x {r.n}", str(r.batch), percent(r.sparsity), r.kernel, str(r.latency), str(r.speedup)]
            for r in self.rows
        ]
        first = self.rows[0].latency
        place = plural(first.threads, "thread") if first.device == "cpu" else first.device
        title = f"Matrix products on {place}, interleaved: p50 [p10, p90]; speed-up [95 %]"
        return title, ["weight", "columns", "zeros", "kernel", "time", "against dense"], lines


@dataclass(frozen=True, repr=False)
class Crossover:
    """From which sparsity on a sparse kernel beats the dense one; None if it isn't sure to at the highest one tried.

    between: the highest sparsity at which it was surely slower, and the lowest at which it was surely faster
    tried: every sparsity that was timed, ascending, with the speed-up over dense
    """

    kernel: str
    n: int
    batch: int
    sparsity: float | None
    between: tuple[float, float | None]
    tried: tuple[tuple[float, Speedup], ...]
    threads: int
    device: str

    def __str__(self) -> str:
        where = f"{self.n} x {self.n}, {plural(self.batch, 'column')}, {plural(self.threads, 'thread')}, {self.device}"
        top, at_top = self.tried[-1]
        if self.sparsity is None:
            return f"{self.kernel} never beats dense up to {percent(top)} zeros ({where}): there it is {at_top}"
        if self.sparsity == 0:
            return f"{self.kernel} beats dense even without a zero ({where})"
        low, high = (percent(s) for s in self.between if s is not None)
        return (
            f"{self.kernel} beats dense from about {percent(self.sparsity)} zeros (between {low} and {high}; {where})"
        )

    __repr__ = __str__


def products(
    n: int | Sequence[int] = 512,
    batch: int | Sequence[int] = 64,
    sparsities: Sequence[float] = SPARSITIES,
    *,
    kernels: Iterable[str] | None = None,
    block: tuple[int, int] = BLOCK,
    threads: int = 1,
    rounds: int | None = NINE,
    device: str = "cpu",
    clock: str = "steady",
    seed: int = 0,
) -> Products:
    """Time W @ X, W (n, n) with a share of zeros, X (n, batch), with each kernel in turns.

    dense: multiplies the zeros too. csr: zeros anywhere. bsr: as many zeros, in whole blocks. 2:4: two in every
    four, so at 50 % alone, and only on an NVIDIA GPU from Ampere on, in half precision, as all kernels there.
    The weights are random: only where the zeros are matters here. Converting is not timed.
    Raises PruneError for an unknown kernel, and for 2:4 on a CPU, which has no such instruction.
    """
    there = _kernels(kernels, device)
    rows: list[Product] = []
    for size in _counts("n", n):
        for columns in _counts("batch", batch):
            for sparsity in _shares(sparsities):
                rows += _products(
                    size, columns, sparsity, there, block=block, threads=threads, rounds=rounds, device=device,
                    clock=clock, seed=seed,
                )  # fmt: skip
    return Products(tuple(rows))


def two_of_four(n: int = 4096, batch: int = 4096, **options: Any) -> float | None:
    """How many times faster than dense a 2:4 product is on the GPU here; None if there is none that can do it."""
    if not (torch.cuda.is_available() and _skips_two_of_four("cuda")):
        return None
    return products(n, batch, [0.5], kernels=["2:4"], device="cuda", **options).rows[-1].speedup.ratio


def crossover(
    n: int = 512,
    batch: int = 64,
    kernel: str = "csr",
    *,
    most: float = MOST,
    block: tuple[int, int] = BLOCK,
    threads: int = 1,
    rounds: int | None = NINE,
    device: str = "cpu",
    clock: str = "steady",
    seed: int = 0,
) -> Crossover:
    """Find the sparsity from which "csr" or "bsr" beats dense on this machine, by halving the range of densities.

    Each sparsity tried is one paired measurement, decided by its median; the bracket it comes with holds those
    sparsities of which the interval can't tell. A kernel that is not surely faster at `most` counts as never faster.
    """
    if kernel not in ("csr", "bsr"):
        raise PruneError(f'kernel={kernel!r}: a crossover is sought for "csr" or "bsr", against dense')
    _shares([most])

    def faster(sparsity: float) -> Speedup:
        found = _products(
            n, batch, sparsity, ("dense", kernel), block=block, threads=threads, rounds=rounds, device=device,
            clock=clock, seed=seed,
        )  # fmt: skip
        return found[-1].speedup

    sparsity, between, tried = bracketed(faster, most)
    return Crossover(kernel, n, batch, sparsity, between, tried, threads, device)


def bracketed(
    faster: Callable[[float], Speedup], most: float = MOST, probes: int = PROBES
) -> tuple[float | None, tuple[float, float | None], tuple[tuple[float, Speedup], ...]]:
    """Where a measured speed-up, a function of the sparsity, crosses 1: (crossing, surely slower and faster, tried)."""
    tried = {s: faster(s) for s in (0.0, most)}
    if tried[most].low <= 1:
        return None, (_surely_slower(tried), None), _ascending(tried)
    if tried[0.0].ratio >= 1:
        return 0.0, (0.0, 0.0), _ascending(tried)
    low, high = 0.0, most
    for _ in range(probes):
        middle = 1 - math.sqrt((1 - low) * (1 - high))
        tried[middle] = faster(middle)
        low, high = (middle, high) if tried[middle].ratio < 1 else (low, middle)
    crossing = _interpolated(low, tried[low].ratio, high, tried[high].ratio)
    for density in ((1 - crossing) * FLANK, (1 - crossing) / FLANK):  # a probe close to the crossing decides little
        tried[1 - min(density, 1.0)] = faster(1 - min(density, 1.0))
    return crossing, (_surely_slower(tried), min(s for s, found in tried.items() if found.low > 1)), _ascending(tried)


def _surely_slower(tried: dict[float, Speedup]) -> float:
    return max((s for s, found in tried.items() if found.high < 1), default=0.0)


def _ascending(tried: dict[float, Speedup]) -> tuple[tuple[float, Speedup], ...]:
    return tuple(sorted(tried.items()))


def _interpolated(low: float, slower: float, high: float, faster: float) -> float:
    """Where the ratio is 1, on a straight line between two points of logarithms of density and ratio."""
    way = -math.log(slower) / (math.log(faster) - math.log(slower))
    return 1 - math.exp(math.log(1 - low) + way * (math.log(1 - high) - math.log(1 - low)))


def _products(
    n: int,
    batch: int,
    sparsity: float,
    kernels: Sequence[str],
    *,
    block: tuple[int, int],
    threads: int,
    rounds: int | None,
    device: str,
    clock: str,
    seed: int,
) -> list[Product]:
    """The kernels at one point, timed together."""
    check_count("n", n)
    check_count("batch", batch)
    clock = resolved(clock, threads, device)
    weights = weights_of(n, sparsity, kernels, block=block, seed=seed, device=device)
    columns = torch.randn(n, batch, generator=torch.Generator().manual_seed(seed + 1))
    columns = columns.to(device, next(iter(weights.values())).dtype)
    tasks: dict[str, Task] = {
        name: waited_for(lambda w=w: w @ columns, torch.device(device))  # type: ignore[misc]
        for name, w in weights.items()
    }
    with torch.inference_mode():
        times = interleaved(tasks, threads=threads, rounds=rounds, clock=clock, device=device)
    faster = speedups(times)
    return [
        Product(k, n, batch, sparsity, summary(times[k], batch, threads, device, clock), faster[k]) for k in weights
    ]


def weights_of(
    n: int, sparsity: float, kernels: Sequence[str], *, block: tuple[int, int] = BLOCK, seed: int = 0,
    device: str = "cpu",
) -> dict[str, Tensor]:  # fmt: skip
    """A random (n, n) weight with exactly round(sparsity * units) units at zero, in each kernel's format."""
    source = torch.Generator().manual_seed(seed)
    dense = torch.randn(n, n, generator=source)
    dtype = torch.float32 if device == "cpu" else torch.float16

    def anywhere() -> Tensor:
        return (dense * _stays(n * n, sparsity, source).view(n, n)).to(device, dtype)

    def in_blocks() -> Tensor:
        r, c = block
        if n % r or n % c:
            raise PruneError(f"blocks of {r} x {c} do not divide a weight of {n} x {n}: give block= what does")
        stays = _stays((n // r) * (n // c), sparsity, source).view(n // r, n // c)
        return (dense * stays.repeat_interleave(r, 0).repeat_interleave(c, 1)).to(device, dtype)

    def two_of_four() -> Tensor:
        best = dense.view(n, -1, 4).abs().topk(2, dim=2).indices
        return (dense * torch.zeros(n, n // 4, 4).scatter_(2, best, 1.0).view(n, n)).to(device, dtype)

    made: dict[str, Callable[[], Tensor]] = {
        "dense": anywhere,
        "csr": lambda: anywhere().to_sparse_csr(),
        "bsr": lambda: in_blocks().to_sparse_bsr(block),
        "2:4": lambda: torch.sparse.to_sparse_semi_structured(two_of_four()),
    }
    with _beta_silenced():
        return {k: made[k]() for k in kernels if k != "2:4" or sparsity == 0.5}


def _stays(units: int, sparsity: float, source: torch.Generator) -> Tensor:
    stays = torch.ones(units)
    stays[torch.randperm(units, generator=source)[: round(sparsity * units)]] = 0
    return stays


@contextmanager
def _beta_silenced() -> Iterator[None]:
    """Without torch's notice that a sparse format is still young: that, and no other warning."""
    with warnings.catch_warnings():
        for about in (
            r"Sparse (CSR|BSR) tensor support is in beta state",
            r"The PyTorch API of SparseSemiStructuredTensor is in prototype stage",
        ):
            warnings.filterwarnings("ignore", message=about, category=UserWarning)
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
            'no older GPU skips two of four. Give device="cuda" where there is one, or leave "2:4" out'
        )
    return ("dense", *(k for k in named if k != "dense"))


def _skips_two_of_four(device: str) -> bool:
    """Whether a device has sparse tensor cores."""
    return device.startswith("cuda") and torch.cuda.get_device_capability(device) >= (8, 0)


def _counts(what: str, given: int | Sequence[int]) -> tuple[int, ...]:
    values = (given,) if isinstance(given, int) else tuple(given)
    for value in values:
        check_count(what, value)
    return values


def _shares(given: Sequence[float]) -> tuple[float, ...]:
    for share in given:
        if not 0 <= share < 1:
            hint = f": did you mean {share / 100:g}?" if 1 < share < 100 else ""
            raise PruneError(f"a sparsity of {share!r} is not a fraction of at least 0 and below 1{hint}")
    return tuple(given)
