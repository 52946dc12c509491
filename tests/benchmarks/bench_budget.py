"""`fit_budget` beside Torch-Pruning's magnitude pruner at the same latency, with the same recovery, over three seeds.

    python tests/benchmarks/bench_budget.py [--out FOLDER] [--only cnn vit resnet18] [--seeds 0 1 2] [--steps 300]

Each network is asked for half of its latency (batch 64, one thread). The model that comes back is saved as a plan,
loaded in a NEW process and timed there beside the dense one: that ratio is in the table. Torch-Pruning's
MagnitudePruner (the same share of every layer, and with global_pruning) is stepped through 48 shares, all are
timed in turns with ours, and the largest that is no slower than ours (by more than 2 %) gets the same recovery: steps,
learning rate, batches. Accuracy is on the test split, looked at once, at the end. A piece (a network and a seed) that
is done is a file in FOLDER and is not run again, so that the run can be cut anywhere.

Networks: the course's CNN (three checkpoints), its ViT (one checkpoint, three seeds of the recovery), and torchvision's
resnet18 on the 16x16 digits, the picture repeated for its three colours, trained here for three epochs a seed.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import time
import warnings
from pathlib import Path

import torch
from peers import torch_pruning
from torch import nn
from torchvision.models import resnet18

import prunelab as pl
from prunelab import zoo
from prunelab.budget import GoalNotMet
from prunelab.files import write_whole

GOAL, TOLERANCE = 0.5, 1.02
SHARES = [i / 64 for i in range(6, 54)]
EPOCHS = 3  # of the resnet18


class Coloured(nn.Module):
    """A network for three colours, on grey pictures."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x.repeat(1, 3, 1, 1))


def fresh_resnet(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Coloured(resnet18(num_classes=10))


def dense_model(network: str, seed: int, data, out: Path) -> nn.Module:
    """The trained network to be pruned."""
    if network == "cnn":
        return zoo.checkpoint(["digits-cnn", "digits-cnn-1", "digits-cnn-2"][seed])
    if network == "vit":
        return zoo.checkpoint("digits-vit")
    model, kept = fresh_resnet(seed), out / f"resnet18-{seed}.pt"
    if kept.exists():
        model.load_state_dict(torch.load(kept, weights_only=True))
    else:
        pl.recovery.train(model, data.train, epochs=EPOCHS, lr=3e-3, seed=seed, progress=False)
        torch.save(model.state_dict(), kept)
    return model.eval()


def ours(model: nn.Module, data, seed: int, steps: int, folder: Path) -> pl.budget.Result:
    try:
        return pl.fit_budget(model, data, latency=GOAL, recover_steps=steps, seed=seed, save=folder, progress=False)
    except GoalNotMet as missed:
        if missed.result is None:
            raise
        return missed.result


def theirs(model: nn.Module, example: torch.Tensor, step: int, everywhere: bool) -> dict[float, nn.Module]:
    """Torch-Pruning's models by the share asked for."""
    tp = torch_pruning()
    found = {}
    for share in SHARES:
        small = copy.deepcopy(model)
        outputs = [m for m in small.modules() if isinstance(m, nn.Linear)][-1:]
        options = {}
        heads = {p: 8 for b in getattr(small, "blocks", ()) for p in qkv(b)}
        if heads:  # whole heads leave, as its documentation advises
            options = {"num_heads": heads, "prune_num_heads": True, "head_pruning_ratio": share}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pruner = tp.pruner.MagnitudePruner(
                small, example[:2], importance=tp.importance.MagnitudeImportance(), pruning_ratio=share,
                ignored_layers=outputs, global_pruning=everywhere, round_to=None if heads else step, **options,
            )  # fmt: skip
            try:
                pruner.step()
                small(example[:2])
            except Exception as error:
                print(f"  Torch-Pruning at {share:.2f}: {type(error).__name__}: {str(error)[:100]}")
                continue
        found[share] = small.eval()
    return found


def qkv(block: nn.Module) -> list[nn.Module]:
    return [block.attention.q_proj, block.attention.k_proj, block.attention.v_proj]


def matched(dense: nn.Module, mine: nn.Module, others: dict[float, nn.Module], batch: torch.Tensor):
    """The slowest of the others that is no slower than ours, and the ratios of both to the dense model."""
    named = {str(share): m for share, m in others.items()}
    timed = pl.measure.compare({"dense": dense, "ours": mine, **named}, batch, clock="steady", rounds=9)
    ratio = {name: 1 / s.ratio for name, s in timed.speedup.items()}
    fitting = [n for n in named if ratio[n] <= TOLERANCE * ratio["ours"]]
    if not fitting:
        return None, None, ratio["ours"]
    chosen = max(fitting, key=lambda n: ratio[n])
    return named[chosen], {"share": float(chosen), "ratio": ratio[chosen]}, ratio["ours"]


def piece(network: str, seed: int, steps: int, out: Path) -> dict:
    data = zoo.load("digits")
    model = dense_model(network, seed, data, out)
    start, began = time.perf_counter(), time.process_time()
    result = ours(model, data, seed, steps, out / f"{network}-{seed}")
    found = {
        "network": network,
        "seed": seed,
        "steps": steps,
        "met_in_search": result.met,
        "chosen": result.chosen.name,
    }
    found |= {"seconds": time.perf_counter() - start, "processor": time.process_time() - began}
    batch = data.valid[:64][0]
    step = min(result.chosen.layout.values(), default=8)
    step = 16 if all(n % 16 == 0 for n in result.chosen.layout.values()) else 8
    rivals = {}
    for name, everywhere in (("local", False), ("global", True)):
        small, facts, _ = matched(model, result.model, theirs(model, batch, step, everywhere), batch)
        if small is not None:
            pl.recovery.finetune(small, data.train, steps=steps, lr=3e-3, seed=seed, progress=False)
            facts |= {"test": accuracy(small, data), "valid": accuracy(small, data, "valid")}
        rivals[name] = facts
    found |= {"theirs": rivals, "dense_test": accuracy(model, data), "test": accuracy(result.model, data)}
    found |= {"valid": accuracy(result.model, data, "valid"), "ratio_in_search": result.chosen.ratios["latency"]}
    again = [sys.executable, __file__, "--out", str(out), "--timed", network, str(seed)]
    found |= json.loads(subprocess.run(again, capture_output=True, text=True, check=True).stdout)
    return found


def accuracy(model: nn.Module, data, split: str = "test") -> float:
    return pl.measurement.evaluate(model.eval(), data, split).accuracy


def timed_afresh(network: str, seed: int, out: Path) -> dict:
    """In a process of its own: the plan, loaded, beside the dense model."""
    data = zoo.load("digits")
    model = dense_model(network, seed, data, out)
    small = pl.load_plan(out / f"{network}-{seed}", copy.deepcopy(model))
    timed = pl.measure.compare({"dense": model, "small": small}, data.valid[:64][0], clock="steady", rounds=15)
    speed = timed.speedup["small"]
    return {"fresh_ratio": 1 / speed.ratio, "fresh_low": 1 / speed.high, "fresh_high": 1 / speed.low}


def table(found: list[dict]) -> str:
    head = "network   seed  dense   ours   TP local (lat.)  TP global (lat.)  latency afresh        met  chosen"
    lines = [head]
    for r in found:
        cells = []
        for name in ("local", "global"):
            t = r["theirs"][name]
            cells.append("      none     " if t is None else f"{100 * t['test']:6.2f} ({t['ratio']:.3f})")
        fresh = f"{r['fresh_ratio']:.3f} [{r['fresh_low']:.3f}, {r['fresh_high']:.3f}]"
        lines.append(
            f"{r['network']:<9} {r['seed']}    {100 * r['dense_test']:6.2f} {100 * r['test']:6.2f}  "
            f"{'   '.join(cells)}   {fresh}  {'yes' if r['fresh_ratio'] <= GOAL else 'NO ':<3}  {r['chosen']}"
        )
    for network in dict.fromkeys(r["network"] for r in found):
        own = [r for r in found if r["network"] == network]
        lead = [100 * (r["test"] - r["theirs"]["local"]["test"]) for r in own if r["theirs"]["local"]]
        if lead:
            lines.append(f"{network}: ours minus TP local, points: {', '.join(f'{x:+.2f}' for x in lead)}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("bench-budget"))
    parser.add_argument("--only", nargs="*", default=["cnn", "vit", "resnet18"])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--timed", nargs=2, metavar=("NETWORK", "SEED"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    asked.out.mkdir(parents=True, exist_ok=True)
    if asked.timed:
        print(json.dumps(timed_afresh(asked.timed[0], int(asked.timed[1]), asked.out)))
        return
    for network in asked.only:
        for seed in asked.seeds:
            file = asked.out / f"{network}-{seed}.json"
            if not file.exists():
                write_whole(file, json.dumps(piece(network, seed, asked.steps, asked.out), indent=1).encode())
                print(f"done: {network}, seed {seed}", flush=True)
    files = [asked.out / f"{n}-{s}.json" for n in ("cnn", "vit", "resnet18") for s in (0, 1, 2)]
    print(table([json.loads(f.read_text()) for f in files if f.exists()]))


if __name__ == "__main__":
    main()
