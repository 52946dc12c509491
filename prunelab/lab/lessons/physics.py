"""The physics of notebooks 02 and 03: machine, roofline, sparse kernels, and the pitfalls of measuring."""

from __future__ import annotations

import copy
import itertools
import math
import statistics
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from ...masking import apply, bake
from ...measurement.costs import layer_calls
from ...measurement.timing import Blocks, Comparison, Conditions, Latency, Speedup, Task, forwards, in_turns
from ...running import call, check_plain, cut, forward, rows, undisturbed
from ...text import Lines, Tabular, percent, plural, seconds, size

ROUNDS = 9  # of so many, the interval of the median leaves out the extremes
STEADY = Conditions(rounds=ROUNDS)

# The machine

BUFFERS = (1 << 18, 1 << 22, 1 << 26)  # bytes copied: in the nearest caches, in the last one, in none
PRODUCT = 512  # rows and columns of the matrix product that measures the peak, with
# What a convolution from 64 to 64 channels is given, (images, channels, height, width), in either memory layout.
CONVOLVED = ((8, 64, 16, 16), (64, 64, 8, 8))
LAYOUTS = (torch.contiguous_format, torch.channels_last)
# A layer of each kind that has a launch of its own, as small as can be, and the shape of its input.
KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "Linear": (lambda: nn.Linear(1, 1), (1, 1)),
    "Conv2d": (lambda: nn.Conv2d(1, 1, 3, padding=1), (1, 1, 3, 3)),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(1), (1, 1, 1, 1)),
    "MaxPool2d": (lambda: nn.MaxPool2d(2), (1, 1, 2, 2)),
    "other": (nn.ReLU, (1,)),
}


@dataclass(frozen=True, repr=False)
class Machine(Tabular):
    """What one device did at best: MACs a second, bytes a second by the size of the buffer copied, launch times.

    floors: seconds that the smallest layer of a kind takes at batch 1; layers of all other kinds, "other".
    """

    peak: float
    bandwidths: tuple[tuple[int, float], ...]
    floors: Mapping[str, float]
    threads: int
    device: str

    @property
    def ridge(self) -> float:
        """MACs a byte from which on computing takes longer than moving bytes to and from the main memory."""
        return self.peak / self.bandwidths[-1][1]

    def bandwidth(self, moved: int) -> float:
        """Bytes a second for so many bytes: what fits in a cache moves faster."""
        return next((rate for buffer, rate in self.bandwidths if moved <= 2 * buffer), self.bandwidths[-1][1])

    def floor(self, kind: str) -> float:
        """Seconds that launching a layer of this kind takes."""
        return self.floors.get(kind, self.floors["other"])

    def predict(self, macs: int, moved: int, kind: str = "other") -> float:
        """Seconds: the longer of computing and moving, and the launch on top."""
        return max(macs / self.peak, moved / self.bandwidth(moved)) + self.floor(kind)

    def _lines(self) -> Lines:
        lines = [
            ["peak", f"{self.peak / 1e9:.1f} GMAC/s"],
            *([f"bytes, {size(b)} buffer", f"{rate / 1e9:.1f} GB/s"] for b, rate in self.bandwidths),
            *([f"launch, {kind}", seconds(t)[0]] for kind, t in self.floors.items()),
        ]
        return f"This machine, {_place(self.threads, self.device)}", None, lines


def machine(*, product: int = PRODUCT, buffers: tuple[int, ...] = BUFFERS, on: Conditions = STEADY) -> Machine:
    """Measure this machine: the best of a few rounds each of float32 work, of copies, and of tiny layers.

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
    with torch.random.fork_rng(devices=()), torch.no_grad():
        for kind, (make, shape) in KINDS.items():
            tasks[f"launch {kind}"] = partial(make().to(where).eval(), torch.zeros(shape, device=where))
        times = in_turns(tasks, on)
    return Machine(
        peak=max(work / min(times[name]) for name, work in macs.items()),
        bandwidths=tuple((b, 2 * b / min(times[f"copy {b}"])) for b in buffers),
        floors={kind: statistics.median(times[f"launch {kind}"]) for kind in KINDS},
        threads=on.threads,
        device=on.device,
    )


# The roofline


@dataclass(frozen=True)
class Layer:
    """One layer's forward pass: its work, the time the machine should need at best, and the time it took."""

    name: str
    kind: str
    macs: int
    moved: int  # bytes of weights and buffers, inputs and outputs
    predicted: float
    measured: Latency
    bound: str  # what the prediction is made of most: "compute", "memory" or "launch"

    @property
    def intensity(self) -> float:
        """MACs a byte moved."""
        return self.macs / self.moved if self.moved else 0.0


@dataclass(frozen=True, repr=False)
class Roofline(Tabular):
    """Every layer of a model under the machine's roof; `whole` is a forward pass of the whole model."""

    machine: Machine
    layers: tuple[Layer, ...]
    whole: Latency

    @property
    def predicted(self) -> float:
        """Seconds for all layers, at best."""
        return sum(layer.predicted for layer in self.layers)

    @property
    def measured(self) -> float:
        """Seconds that the layers took, each timed alone."""
        return sum(layer.measured.p50 for layer in self.layers)

    def share(self, kind: str) -> float:
        """Which part of the layers' time the layers of one kind took, such as "MaxPool2d"."""
        return sum(layer.measured.p50 for layer in self.layers if layer.kind == kind) / self.measured

    def _lines(self) -> Lines:
        lines = []
        for x in self.layers:
            times = [seconds(x.predicted)[0], str(x.measured)]
            lines.append([x.name, x.kind, f"{x.macs:,}", size(x.moved), f"{x.intensity:.1f}", x.bound, *times])
        macs, moved = sum(x.macs for x in self.layers), sum(x.moved for x in self.layers)
        times = [seconds(self.predicted)[0], seconds(self.measured)[0]]
        head = ["layer", "kind", "MACs", "moved", "MACs/byte", "bound by", "predicted", "measured"]
        title = f"Predicted and measured, {self.whole.conditions}; the whole model: {self.whole}"
        return title, head, [*lines, ["all", "", f"{macs:,}", size(moved), "", "", *times]]


def roofline(
    model: nn.Module,
    example: Any,
    on: Machine | None = None,
    *,
    batch_size: int | None = None,
    rounds: int = ROUNDS,
    clock: str = "steady",
) -> Roofline:
    """Time every layer of a model alone, on the inputs it gets in a forward pass, against what the machine could do.

    A layer is a module without children; what a forward does between them is in `whole` alone. One that is called
    twice appears twice. `on` is from `machine()`, or measured first (on one thread). Raises PruneError for a model
    with masks on, without layers, or on another device than the machine was measured on.
    """
    check_plain(model)
    device = device_of(model).type
    if on is None:
        on = machine(on=Conditions(1, rounds, clock, device))
    if on.device != device:
        raise PruneError(f"the model lies on {device}, and the machine was measured on {on.device}: use that")
    timed = Conditions(on.threads, rounds, clock, device)
    inputs = to(cut(example, batch_size), device_of(model))
    with undisturbed(model), torch.no_grad():
        calls = layer_calls(model, inputs)
        if not calls:
            raise PruneError(f"{type(model).__name__} has no layers: no module without children was called")
        work = {name: c.work() for name, c in calls.items()}
        tasks: dict[str, Task] = {f"layer {name}": c.run for name, c in calls.items()}
        tasks["whole"] = partial(call, model, inputs)
        taken = Comparison.of(in_turns(tasks, timed), rows(inputs), timed).latency
    layers = []
    for name, c in calls.items():
        macs, moved = work[name]
        parts = {"compute": macs / on.peak, "memory": moved / on.bandwidth(moved), "launch": on.floor(c.kind)}
        bound = max(parts, key=lambda k: parts[k])
        predicted = on.predict(macs, moved, c.kind)
        layers.append(Layer(name, c.kind, macs, moved, predicted, taken[f"layer {name}"], bound))
    return Roofline(on, tuple(layers), taken["whole"])


# Sparse kernels

KERNELS = ("dense", "csr", "bsr", "2:4")
SPARSITIES = (0.5, 0.8, 0.9, 0.95, 0.99)
MOST = 0.99  # the highest sparsity at which a crossover is looked for
PROBES = 4  # halvings of the range of densities: to within a third of the density at the crossover
FLANK = 1.3  # how many times that density, and its inverse, are tried at the end
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


@dataclass(frozen=True, repr=False)
class Products(Tabular):
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
        found = {}
        for k, n, b in dict.fromkeys((r.kernel, r.n, r.batch) for r in self.rows if r.kernel != "dense"):
            found[f"{k.upper()}, {f'{n} x {n}, ' if several else ''}{plural(b, 'column')}"] = self.curve(k, n, b)
        return found

    def _lines(self) -> Lines:
        lines = []
        for r in self.rows:
            shown = [f"{r.n} x {r.n}", str(r.batch), percent(r.sparsity), r.kernel, str(r.latency), str(r.speedup)]
            lines.append(shown)
        first = self.rows[0].latency
        title = (
            f"Matrix products on {_place(first.threads, first.device)}, interleaved: p50 [p10, p90]; speed-up [95 %]"
        )
        return title, ["weight", "columns", "zeros", "kernel", "time", "against dense"], lines


def products(
    n: int | Sequence[int] = 512,
    batch: int | Sequence[int] = 64,
    sparsities: Sequence[float] = SPARSITIES,
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
    for side in (n,) if isinstance(n, int) else n:
        for columns in (batch,) if isinstance(batch, int) else batch:
            for sparsity in sparsities:
                found += _products(side, columns, sparsity, there, on, block)
    return Products(tuple(found))


def two_of_four(n: int = 4096, batch: int = 4096) -> float | None:
    """How many times faster than dense a 2:4 product is on the GPU here; None if there is none that can do it."""
    if not (torch.cuda.is_available() and _skips_two_of_four("cuda")):
        return None
    return products(n, batch, [0.5], kernels=["2:4"], on=replace(STEADY, device="cuda")).rows[-1].speedup.ratio


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
        about = percent(self.sparsity)
        return f"{self.kernel} beats dense from about {about} zeros (between {low} and {high}; {where})"

    __repr__ = __str__


def crossover(
    n: int = 512, batch: int = 64, kernel: str = "csr", *, most: float = MOST, on: Conditions = STEADY
) -> Crossover:
    """Find the sparsity from which "csr" or "bsr" beats dense on this machine, by halving the range of densities.

    Each sparsity tried is one paired measurement, decided by its median; the bracket it comes with holds those
    sparsities of which the interval can't tell. A kernel that is not surely faster at `most` counts as never faster.
    """
    if kernel not in ("csr", "bsr"):
        raise PruneError(f'kernel={kernel!r}: a crossover is sought for "csr" or "bsr", against dense')

    def faster(sparsity: float) -> Speedup:
        return _products(n, batch, sparsity, ("dense", kernel), on)[-1].speedup

    return Crossover(kernel, n, batch, *bracketed(faster, most), on.threads, on.device)


def bracketed(
    faster: Callable[[float], Speedup], most: float = MOST, probes: int = PROBES
) -> tuple[float | None, tuple[float, float | None], tuple[tuple[float, Speedup], ...]]:
    """Where a measured speed-up, a function of the sparsity, crosses 1: (crossing, surely slower and faster, tried)."""
    tried = {s: faster(s) for s in (most, 0.0)}
    if tried[most].low <= 1:
        return None, (_surely_slower(tried), None), tuple(sorted(tried.items()))
    if tried[0.0].ratio >= 1:
        return 0.0, (0.0, 0.0), tuple(sorted(tried.items()))
    low, high = 0.0, most
    for _ in range(probes):
        middle = 1 - math.sqrt((1 - low) * (1 - high))
        tried[middle] = faster(middle)
        low, high = (middle, high) if tried[middle].ratio < 1 else (low, middle)
    # Where the ratio is 1, on a straight line between the two points of logarithms of density and ratio.
    slower, quicker = math.log(tried[low].ratio), math.log(tried[high].ratio)
    way = -slower / (quicker - slower)
    crossing = 1 - math.exp(math.log(1 - low) + way * (math.log(1 - high) - math.log(1 - low)))
    for density in ((1 - crossing) * FLANK, (1 - crossing) / FLANK):  # a probe close to the crossing decides little
        tried[1 - min(density, 1.0)] = faster(1 - min(density, 1.0))
    surely_faster = min(s for s, found in tried.items() if found.low > 1)
    return crossing, (_surely_slower(tried), surely_faster), tuple(sorted(tried.items()))


def _surely_slower(tried: dict[float, Speedup]) -> float:
    return max((s for s, found in tried.items() if found.high < 1), default=0.0)


def _products(
    n: int, batch: int, sparsity: float, kernels: Sequence[str], on: Conditions, block: tuple[int, int] = BLOCK
) -> list[Product]:
    """The kernels at one point, timed together."""
    check_count("n", n)
    check_count("batch", batch)
    if not 0 <= sparsity < 1:
        hint = f": did you mean {sparsity / 100:g}?" if 1 < sparsity < 100 else ""
        raise PruneError(f"a sparsity of {sparsity!r} is not a fraction of at least 0 and below 1{hint}")
    weights = weights_of(n, sparsity, kernels, block=block, device=on.device)
    columns = torch.randn(n, batch, generator=torch.Generator().manual_seed(1))
    columns = columns.to(on.device, next(iter(weights.values())).dtype)
    tasks: dict[str, Task] = {name: partial(torch.matmul, w, columns) for name, w in weights.items()}
    with torch.inference_mode():
        found = Comparison.of(in_turns(tasks, on), batch, on)
    return [Product(k, n, batch, sparsity, found.latency[k], found.speedup[k]) for k in weights]


def weights_of(
    n: int, sparsity: float, kernels: Sequence[str], *, block: tuple[int, int] = BLOCK, seed: int = 0,
    device: str = "cpu",
) -> dict[str, Tensor]:  # fmt: skip
    """A random (n, n) weight with exactly round(sparsity * units) units at zero, in each kernel's format."""
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
            'no older GPU skips two of four. Give on=Conditions(device="cuda") where there is one, or leave "2:4" out'
        )
    return ("dense", *(k for k in named if k != "dense"))


def _skips_two_of_four(device: str) -> bool:
    """Whether a device has sparse tensor cores."""
    return device.startswith("cuda") and torch.cuda.get_device_capability(device) >= (8, 0)


# Five pitfalls, each an experiment: what was timed wrongly, beside what it does


def threads(model: nn.Module, example: Any, counts: Sequence[int] = (1, 2), *, rounds: int = ROUNDS) -> Comparison:
    """The same forward on one thread and on more, by the wall clock: small layers cost more to share than to do.

    With other programs about, the second thread is not yours alone, and its times scatter.
    """
    check_plain(model)
    most = Conditions(max(counts), rounds, "wall", device_of(model).type)
    with undisturbed(model), torch.no_grad():
        run = forward(model, example)

        def on(n: int) -> None:
            torch.set_num_threads(n)  # the timer puts the number back
            run()

        found = Comparison.of(
            in_turns({plural(n, "thread"): partial(on, n) for n in counts}, most), rows(example), most
        )
    taken = {plural(n, "thread"): replace(found.latency[plural(n, "thread")], threads=n) for n in counts}
    return Comparison(taken, found.speedup, f"Threads, batch {rows(example)}")


def batch_size(
    model: nn.Module, example: Any, sizes: Sequence[int] = (1, 8, 64), *, rounds: int = ROUNDS, clock: str = "steady"
) -> Comparison:
    """Time *per sample* at several batch sizes: at batch 1 the launches weigh as much as the work."""
    check_plain(model)
    on = Conditions(1, rounds, clock, device_of(model).type)
    with undisturbed(model), torch.no_grad():
        times = in_turns({f"batch {n}": forward(model, cut(example, n)) for n in sizes}, on)
    for n in sizes:
        times[f"batch {n}"] = [t / n for t in times[f"batch {n}"]]
    return Comparison.of(times, 1, on, "Time for one sample")


def odd_channels(
    channels: Sequence[int] = (32, 31, 33, 40), *, image: int = 16, batch: int = 64, rounds: int = ROUNDS
) -> Comparison:
    """A 3x3 convolution c -> c, for a few c: processors work in vectors of 8 or 16, and 33 takes as many as 40."""
    for c in channels:
        check_count("channels", c)
    on = replace(STEADY, rounds=rounds)
    with torch.random.fork_rng(devices=()), torch.no_grad():
        made = {c: nn.Conv2d(c, c, 3, padding=1, bias=False).eval() for c in channels}
        tasks = {f"{c} channels": forward(m, torch.randn(batch, c, image, image)) for c, m in made.items()}
        return Comparison.of(in_turns(tasks, on), batch, on, f"A convolution of {image} x {image} pictures")


def no_warm_up(model: nn.Module, example: Any, *, calls: int = 10, rounds: int = ROUNDS) -> Comparison:
    """The very first forwards of fresh copies against later ones: the first one also sets up memory and kernels.

    Each copy sees a batch that is one sample smaller than the last one did, because libraries remember shapes.
    """
    check_plain(model)
    check_count("calls", calls, 2)
    on = Conditions(1, rounds, device=device_of(model).type)
    before = torch.get_num_threads()
    times: Blocks = {"first forward": [], "later forwards": []}
    try:
        torch.set_num_threads(1)
        for turn in range(rounds):
            fresh, inputs = copy.deepcopy(model).eval(), cut(example, max(1, rows(example) - turn))
            first, *later = _each(on.waited_for(partial(call, fresh, to(inputs, device_of(model)))), calls, on)
            times["first forward"].append(first)
            times["later forwards"].append(statistics.median(later))
    finally:
        torch.set_num_threads(before)
    return Comparison.of(times, rows(example), on, "Without a warm-up")


def _each(task: Task, calls: int, on: Conditions) -> list[float]:
    """Seconds of each of several calls in a row."""
    times = []
    with torch.no_grad():
        for _ in range(calls):
            began = on.tick()
            task()
            times.append(on.tick() - began)
    return times


def unbaked(model: nn.Module, masks: Masks, example: Any, *, rounds: int = ROUNDS, clock: str = "steady") -> Comparison:
    """The time of a model as trained, with its masks on, and with the zeros baked in. The model stays as it is.

    `measure` refuses the one in the middle: each of its forwards multiplies every weight by its mask anew.
    """
    check_plain(model)
    masked = apply(copy.deepcopy(model), masks)
    candidates: dict[str, nn.Module] = {"dense": model, "masks on": masked, "baked": bake(copy.deepcopy(masked))}
    return forwards(candidates, example, Conditions(1, rounds, clock, device_of(model).type), "Masks")


def _place(threads: int, device: str) -> str:
    return plural(threads, "thread") if device == "cpu" else device
