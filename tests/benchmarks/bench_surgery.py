"""Half the channels of torchvision's networks by magnitude: zeroed against removed, ours beside Torch-Pruning's pruner.

    python tests/benchmarks/bench_surgery.py [name ...] [--size 64] [--batch 8] [--rounds 7]

Random weights, with every norm's statistics and affine parameters and every layer scale disturbed, so that a
tensor that was forgotten shows. Of each network all filters and hidden neurons are compared within their group,
and half of each go. Printed are the largest difference between masked and shrunk, relative to the largest
output, once over the groups said to be exact (needed: at most 1e-4) and once over all; whether the shrunk model
takes a training step (GoogLeNet's auxiliary heads included); and MACs and time a forward on one thread, dense,
ours and Torch-Pruning's MagnitudePruner at the same ratio, timed in turns. Exits with 1 if anything needed fails.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
import warnings
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

import prunelab as pl
from prunelab import granularity, surgery
from prunelab.measurement import compare, macs

NAMES = (
    "resnet18", "resnet50", "vgg11_bn", "mobilenet_v2", "mobilenet_v3_small", "densenet121", "efficientnet_b0",
    "convnext_tiny", "googlenet",
)  # fmt: skip
TOLERANCE = 1e-4
COLUMNS = (
    f"{'network':<19}{'groups':>7}{'exact':>6}{'members':>8}{'trace':>7}   {'exact':>7} {'all':>7}  {'trains':<7}"
    f"{'MACs':>7}{'ours':>7}{'TP':>7}   {'ms':>7}{'ours':>7}{'TP':>7}  {'ours':>6}{'TP':>7}"
)


def network(name: str, seed: int = 0) -> nn.Module:
    """A torchvision network with random weights at which errors show."""
    import torchvision

    torch.manual_seed(seed)
    more = {"init_weights": False, "transform_input": True} if name == "googlenet" else {}
    return disturb(getattr(torchvision.models, name)(weights=None, **more)).eval()


def disturb(model: nn.Module) -> nn.Module:
    """Give every vector (biases, norms, running statistics, layer scales) values of its own."""
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point() and max(tensor.shape, default=0) == tensor.numel():
                tensor.copy_(torch.rand_like(tensor) * 0.8 + 0.6)
    return model


def outputs(out: Tensor | tuple[Tensor | None, ...]) -> Iterable[Tensor]:
    """All outputs: GoogLeNet gives three while training."""
    return [o for o in out if o is not None] if isinstance(out, tuple) else [out]


def trains(model: nn.Module, x: Tensor) -> bool:
    """Whether one step of AdamW runs, gives every weight that was used a finite gradient, and changes it."""
    model = copy.deepcopy(model).train()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loss = sum(nn.functional.cross_entropy(o, torch.arange(len(x))) for o in outputs(model(x)))
    loss.backward()
    optimizer.step()
    finite = all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    return finite and all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def theirs(model: nn.Module, x: Tensor) -> nn.Module | None:
    """Torch-Pruning's own pruner at the same ratio, the classifier left alone; None if it fails."""
    model = copy.deepcopy(model)
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    aux = [m.fc2 for name, m in model.named_children() if name.startswith("aux")]
    from peers import torch_pruning

    tp = torch_pruning()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tp.pruner.MagnitudePruner(
                model,
                x,
                importance=tp.importance.MagnitudeImportance(p=1),
                pruning_ratio=0.5,
                ignored_layers=[last, *aux],
            ).step()
            model.eval()(x)
    except Exception as error:  # reported in the table's row
        print(f"  Torch-Pruning: {type(error).__name__}: {error}")
        return None
    return model


def row(name: str, x: Tensor, rounds: int) -> tuple[str, bool]:
    """One line of the table, and whether what is needed holds."""
    model = network(name)
    start = time.process_time()
    groups = granularity.coupled(model, x[:2])
    traced = time.process_time() - start
    keep = pl.allocate(pl.criteria.magnitude(model), groups, 0.5, "layer")
    exact = [g for g in groups if g.exact]
    apart = surgery.difference(model, exact, keep, x)
    apart_all = surgery.difference(model, groups, keep, x)
    small = surgery.shrink(model, groups, keep)
    trained = trains(small, x)
    models = {"dense": model, "ours": small}
    other = theirs(model, x[:2])
    if other is not None:
        models["TP"] = other
    count = {key: macs(m, x[:1]) / 1e6 for key, m in models.items()}
    timed = compare(models, x, rounds=rounds, clock="processor")
    ms = {key: taken.p50 * 1e3 for key, taken in timed.latency.items()}
    faster = {key: timed.speedup[key].ratio for key in models}
    cells = [
        f"{name:<19}{len(groups):>7}{len(exact):>6}{max(len(g.members) for g in groups):>8}{traced:>6.1f}s",
        f"   {apart:>7.0e} {apart_all:>7.0e}  {'yes' if trained else 'NO':<7}",
        *(_cell(count, key, "7.1f") for key in ("dense", "ours", "TP")),
        "   ",
        *(_cell(ms, key, "7.1f") for key in ("dense", "ours", "TP")),
        "  ",
        *(_cell(faster, key, "6.2f", "x") for key in ("ours", "TP")),
    ]
    return "".join(cells), apart <= TOLERANCE and trained


def _cell(values: dict[str, float], key: str, form: str, unit: str = "") -> str:
    return f"{values[key]:{form}}{unit}" if key in values else f"{'-':>{int(form.split('.')[0])}}"


def main(arguments: list[str] | None = None, say: Callable[[str], None] = print) -> int:
    """Print the table; 0 if every network passes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = torch.randn(given.batch, 3, given.size, given.size)
    say(f"batch {given.batch} of {given.size} x {given.size}, one thread, processor time; MACs in millions a sample")
    say(f"{'':<47}   {'masked - shrunk':>15}  {'':<7}{'MACs':>21}   {'time':>21}  {'speed-up':>13}")
    say(COLUMNS)
    failed = []
    for name in given.names:
        line, passed = row(name, x, given.rounds)
        say(line)
        failed += [] if passed else [name]
    say(f"failed: {', '.join(failed)}" if failed else "all pass")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
