"""What sparsity buys on a GPU, in one JSON file: kernels, structures, a Llama, a training step, memory.

    python tests/benchmarks/bench_gpu.py [--out build/gpu/gpu.json] [--seconds 240] [--only WORD ...]
    python tests/benchmarks/bench_gpu.py --device cpu --tiny      # tries all of it where there is no GPU

Every case is a function of the device and of tiny or not. It has a share of the time: one that takes longer, or fails,
leaves its error in the file, and the others go on; no case starts after `--seconds`. Times are seconds by the wall,
p50 [p10, p90] over interleaved rounds, each waited for; speed-ups are medians over paired rounds with a 95 % interval.
Weights are random, clocks as they are. Exits with 1 if a case failed; skipped ones are named in the file.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import os
import platform
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunelab as pl
from prunelab.files import write_whole
from prunelab.lab.lessons.physics import products
from prunelab.measurement import Comparison, compare, macs, peak_memory, rates
from prunelab.measurement.timing import Conditions, in_turns

PACKAGES = ("torch", "torchvision", "transformers", "numpy", "scipy", "triton")
Models = dict[str, nn.Module]


@dataclass(frozen=True)
class Where:
    """What each case is given: where to run, and whether only to try it out."""

    device: torch.device
    tiny: bool

    def pick(self, real: Any, tiny: Any) -> Any:
        """One of two sizes."""
        return tiny if self.tiny else real

    def random(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Random numbers on the device."""
        return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(self.device, dtype)

    def tokens(self, *shape: int, below: int) -> Tensor:
        """Random token ids on the device."""
        return torch.randint(below, shape, generator=torch.Generator().manual_seed(1)).to(self.device)


# What is compared


def cut(model: nn.Module, groups: list[pl.Group], keep: pl.Keep) -> Models:
    """The model dense, with the units' weights zeroed, and with the units removed."""
    zeroed = pl.bake(pl.apply(copy.deepcopy(model), pl.expand(model, groups, keep)))
    return {"dense": model, "zeroed": zeroed, "removed": pl.shrink(model, groups, keep)}


@cache
def filters_of_resnet(where: Where) -> list[pl.Group]:
    """The groups of `resnet`, found once: with an example that lies on the CPU."""
    model, shape = resnet(where)
    return pl.granularity.filters(model, torch.randn(2, *shape))


def half_out(model: nn.Module, groups: list[pl.Group]) -> pl.Keep:
    """Half of each group's units, by magnitude."""
    return pl.allocate(pl.criteria.magnitude(model), groups, 0.5, "layer")


def resnet(where: Where) -> tuple[nn.Module, tuple[int, int, int]]:
    """ResNet-50, or ResNet-18 to try, and the shape of an input."""
    from torchvision import models

    torch.manual_seed(0)
    model = models.resnet18(weights=None) if where.tiny else models.resnet50(weights=None)
    return model.to(where.device).eval(), where.pick((3, 224, 224), (3, 32, 32))


def vit(where: Where) -> tuple[nn.Module, tuple[int, int, int]]:
    """ViT-B/16, or a tiny one, and the shape of an input."""
    from torchvision import models

    torch.manual_seed(0)
    if where.tiny:
        model = models.VisionTransformer(
            image_size=32, patch_size=16, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=64
        )
    else:
        model = models.vit_b_16(weights=None)
    return model.to(where.device).eval(), where.pick((3, 224, 224), (3, 32, 32))


def llama(where: Where) -> nn.Module:
    """A Llama of SmolLM2-135M's shape with random weights, in bfloat16; a tiny one to try."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = where.pick(
        {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30},
        {"vocab_size": 64, "hidden_size": 36, "intermediate_size": 48, "num_hidden_layers": 3},
    )
    head = where.pick(64, 4)
    config = LlamaConfig(
        **sizes, num_attention_heads=9, num_key_value_heads=3, head_dim=head, max_position_embeddings=2048,
        tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    return LlamaForCausalLM(config).to(where.device, torch.bfloat16).eval()


def cut_llamas(model: nn.Module) -> Models:
    """The Llama; without a third of its MLPs, the last ones; of its layers; and without half of its neurons."""
    found = {"dense": model}
    for what in ("mlps", "layers"):
        (group,) = pl.granularity.by_name(what)(model)
        out = group.units // 3
        keep = {group.name: torch.arange(group.units) < group.units - out}
        found[f"{out} {what} out"] = pl.shrink(model, [group], keep)
    groups = pl.granularity.neurons(model)
    found["half of the neurons out"] = pl.shrink(model, groups, half_out(model, groups))
    return found


# What is measured


def facts(models: Models, example: Any) -> dict[str, Any]:
    """Of each model: parameters, MACs, and bytes that a forward needs beyond weights and inputs."""
    return {
        name: {
            "parameters": sum(p.numel() for p in model.parameters()),
            "macs": macs(model, example),
            "peak_memory": peak_memory(model, example),
        }
        for name, model in models.items()
    }


def forwards(models: Models, where: Where, shape: tuple[int, ...]) -> dict[str, Any]:
    """Times of a forward in float32 (TF32 as torch has it) and bfloat16, for one input and for many."""
    found: dict[str, Any] = {}
    for dtype in (torch.float32, torch.bfloat16):
        typed = {name: copy.deepcopy(model).to(dtype) for name, model in models.items()}
        for batch in where.pick((1, 64), (1, 2)):
            x = where.random(batch, *shape, dtype=dtype)
            point = asdict(compare(typed, x, rounds=where.pick(15, 7)))
            found[f"{str(dtype)[6:]}, batch {batch}"] = point | {"facts": facts(typed, x)}
    return found


def peak(device: torch.device, task: Callable[[], Any]) -> int | None:
    """The most bytes that torch's allocator held during a task beyond those before; None on a CPU."""
    if device.type != "cuda":
        task()
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    task()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def steps(models: Models, where: Where, loss: Callable[[nn.Module], Tensor], batch: int) -> dict[str, Any]:
    """Times of one training step of each model (forward, backward, SGD), and the bytes it needs beyond the weights."""

    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(model).backward()
        optimizer.step()

    tasks = {n: partial(step, m.train(), torch.optim.SGD(m.parameters(), lr=1e-4)) for n, m in models.items()}
    memory: dict[str, int | None] = {}
    for name, model in models.items():
        tasks[name]()  # what libraries allocate once
        model.zero_grad(set_to_none=True)
        memory[name] = peak(where.device, tasks[name])
        model.zero_grad(set_to_none=True)
    on = Conditions(1, where.pick(11, 7), "wall", where.device.type)
    return asdict(Comparison.of(in_turns(tasks, on), batch, on)) | {"peak_memory": memory}


# Cases


def kernel(where: Where, name: str, n: int, batch: int, block: int = 16) -> dict[str, Any]:
    """A product (n, n) @ (n, batch) in float16, 2:4 or in blocks, against dense."""
    shares = [0.5] if name == "2:4" else [0.5, 0.9, 0.99]
    n, batch = where.pick((n, batch), (64, 16))
    on = Conditions(rounds=where.pick(15, 7), clock="wall", device=where.device.type)
    found = products(n, batch, shares, kernels=[name], block=(block, block), on=on)
    return {"block": block, "rows": [asdict(row) for row in found.rows]}


def filters(where: Where) -> dict[str, Any]:
    """ResNet-50 without half of its filters."""
    model, shape = resnet(where)
    start = time.perf_counter()
    groups = filters_of_resnet(where)
    found_in = time.perf_counter() - start
    keep = half_out(model, groups)
    removing = peak(where.device, lambda: pl.shrink(model, groups, keep))
    about = {
        "seconds to find": found_in,
        "groups": len(groups),
        "not exact": [g.name for g in groups if not g.exact],
        "bytes to remove": removing,
        "bytes of the model": sum(t.nbytes for t in model.state_dict().values()),
    }
    return about | forwards(cut(model, groups, keep), where, shape)


def heads(where: Where) -> dict[str, Any]:
    """ViT-B/16 without half of its heads."""
    model, shape = vit(where)
    groups = pl.granularity.heads(model)
    return forwards(cut(model, groups, half_out(model, groups)), where, shape)


def tokens(where: Where, length: int) -> dict[str, Any]:
    """Tokens a second of the Llama and its cut versions, reading a prompt and writing after it."""
    models = cut_llamas(llama(where))
    length = where.pick(length, 16)
    ids = where.tokens(1, length, below=64)
    found = rates(models, ids, rounds=where.pick(11, 7))
    speeds = {n: {"prefill": found.prefill_rate(n), "decode": found.decode_rate(n)} for n in models}
    timed = {"prefill": asdict(found.prefill), "decode": asdict(found.decode)}
    return {"tokens a second": speeds, "facts": facts(models, {"input_ids": ids, "use_cache": False})} | timed


def train_resnet(where: Where) -> dict[str, Any]:
    """A training step of ResNet-50 in float32: dense, half of the filters masked, and removed."""
    model, shape = resnet(where)
    groups = filters_of_resnet(where)
    keep = half_out(model, groups)
    masked = pl.apply(copy.deepcopy(model), pl.expand(model, groups, keep))
    models = {"dense": model, "masked": masked, "removed": pl.shrink(model, groups, keep)}
    batch = where.pick(64, 4)
    x, y = where.random(batch, *shape), where.tokens(batch, below=1000)
    return steps(models, where, lambda m: F.cross_entropy(m(x), y), batch)


def train_llama(where: Where) -> dict[str, Any]:
    """A training step of the Llama in bfloat16: dense, half of the neurons masked, and removed."""
    model = llama(where)
    groups = pl.granularity.neurons(model)
    keep = half_out(model, groups)
    masked = pl.apply(copy.deepcopy(model), pl.expand(model, groups, keep))
    models = {"dense": model, "masked": masked, "removed": pl.shrink(model, groups, keep)}
    ids = where.tokens(*where.pick((8, 512), (2, 16)), below=64)
    return steps(models, where, lambda m: m(input_ids=ids, labels=ids, use_cache=False).loss, len(ids))


def selection(where: Where) -> dict[str, Any]:
    """Choosing half of all weights of a Llama: one global ranking, the same on the device and on the CPU."""
    model = llama(where).float()
    groups = pl.granularity.weights(model)
    scores = pl.criteria.magnitude(model)
    tasks = {"on the device": lambda: pl.allocate(scores, groups, 0.5)}
    on = Conditions(1, 7, "wall", where.device.type)
    times = in_turns(tasks, on)
    keep = tasks["on the device"]()
    expected = pl.allocate({n: s.cpu() for n, s in scores.items()}, groups, 0.5)
    return {
        "weights": sum(g.units for g in groups),
        "latency": asdict(Comparison.of(times, 1, on).latency["on the device"]),
        "peak_memory": peak(where.device, tasks["on the device"]),
        "as on the CPU": all(torch.equal(keep[n].cpu(), k) for n, k in expected.items()),
    }


Case = tuple[int, Callable[[Where], dict[str, Any]]]  # seconds it may take, and what it does


def cases() -> dict[str, Case]:
    """All of them, the most important first."""
    found: dict[str, Case] = {
        "filters of ResNet-50": (70, filters),
        "heads of ViT-B/16": (50, heads),
        "Llama, tokens a second, prompt 128": (50, partial(tokens, length=128)),
        "training step, ResNet-50": (60, train_resnet),
        "training step, Llama": (40, train_llama),
    }
    for n in (1024, 4096):
        for batch in (16, 256, 4096):
            found[f"2:4, {n} x {n}, {batch} columns"] = 20, partial(kernel, name="2:4", n=n, batch=batch)
            found[f"BSR, {n} x {n}, {batch} columns"] = 30, partial(kernel, name="bsr", n=n, batch=batch)
    return found | {
        "BSR of 64 x 64, 4096 x 4096, 4096 columns": (30, partial(kernel, name="bsr", n=4096, batch=4096, block=64)),
        "Llama, tokens a second, prompt 1024": (50, partial(tokens, length=1024)),
        "global selection": (40, selection),
    }  # fmt: skip


# Running them


class OutOfTime(BaseException):
    """No Exception: the library turns those of a forward into errors of its own, and goes on after some."""


def machine(device: torch.device) -> dict[str, Any]:
    """What the numbers are worth nothing without."""
    found: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "device": str(device),
        "python": platform.python_version(),
        "prunelab": pl.__version__,
        "packages": {name: _version(name) for name in PACKAGES},
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None,
    }
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        found |= {
            "gpu": about.name,
            "capability": [about.major, about.minor],
            "memory": about.total_memory,
            "multiprocessors": about.multi_processor_count,
            "tf32": {"cudnn": torch.backends.cudnn.allow_tf32, "matmul": torch.backends.cuda.matmul.allow_tf32},
            "driver and clocks": _smi("driver_version,clocks.sm,clocks.mem,clocks.max.sm,temperature.gpu,power.draw"),
        }
    return found


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _smi(query: str) -> dict[str, str] | str:
    """What nvidia-smi says, by field; read only."""
    try:
        ran = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"],
            capture_output=True, text=True, check=True, timeout=20,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        return f"nvidia-smi: {error}"
    return dict(zip(query.split(","), ran.stdout.splitlines()[0].split(", "), strict=False))


def attempted(case: Case, where: Where) -> dict[str, Any]:
    """A case's results, or its error; with the seconds it took."""
    share, task = case
    start = time.perf_counter()
    signal.alarm(share)
    try:
        with warnings.catch_warnings(record=True) as said:
            found = {"result": task(where)}
        found["warnings"] = sorted({str(w.message)[:300] for w in said})
    except (Exception, OutOfTime) as error:  # whatever a kernel, a driver or torch raises: the file is to say it
        found = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()[-3000:]}
    finally:
        signal.alarm(0)
    if where.device.type == "cuda":
        torch.cuda.empty_cache()
    return found | {"seconds": round(time.perf_counter() - start, 1)}


def out_of_time(*_: Any) -> None:
    """What the alarm of a case calls."""
    raise OutOfTime("the case took longer than its share")


def unfit(name: str, where: Where) -> str | None:
    """Why a case is not run here, if it is not."""
    able = where.device.type == "cuda" and torch.cuda.get_device_capability(where.device) >= (8, 0)
    return None if able or not name.startswith("2:4") else "needs sparse tensor cores (compute capability 8.0)"


def headline(found: dict[str, Any]) -> str:
    """A case in a few words, for the screen."""
    return found.get("error") or found.get("skipped") or "done"


def main() -> int:
    """Run the cases, write the file after each, and say whether any failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes to try the cases with, not to time them")
    parser.add_argument("--out", type=Path, default=Path("build/gpu/gpu.json"))
    parser.add_argument("--seconds", type=float, default=240, help="after which no case starts")
    parser.add_argument("--only", nargs="*", default=[], help="only those whose name holds one of these words")
    given = parser.parse_args()
    where = Where(torch.device(given.device), given.tiny)
    if where.device.type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; --device cpu --tiny tries the cases without one")
    chosen = {n: c for n, c in cases().items() if not given.only or any(word in n for word in given.only)}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGALRM, out_of_time)
    start = time.perf_counter()
    report: dict[str, Any] = {"machine": machine(where.device), "tiny": given.tiny, "cases": {}}
    for name, case in chosen.items():
        late = time.perf_counter() - start > given.seconds
        why = "started too late: the time was used up" if late else unfit(name, where)
        found = {"skipped": why} if why else attempted(case, where)
        report["cases"][name] = found
        write_whole(given.out, json.dumps(report, indent=1).encode())
        print(f"{found.get('seconds', 0):6.1f} s  {name}: {headline(found)}", flush=True)
    failed = [name for name, found in report["cases"].items() if "error" in found]
    print(f"{given.out}: {len(chosen)} cases, failed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
