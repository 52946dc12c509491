"""How to run a model without leaving a trace: call, try, hook, copy, compare; and what must hold before."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import prune

from .checks import check_count
from .core import PruneError, all_masks, check_loaded, device_of, mode, network, shape
from .data import EMPTY, batches, mapped, tensors, to
from .text import listed


def call(model: Callable[..., Any], inputs: Any) -> Any:
    """model(x), model(*xs) or model(**xs), by what the inputs are; a Hugging Face output gives its logits.

    >>> call(torch.add, (torch.tensor(1), torch.tensor(2)))
    tensor(3)
    """
    out = run(model, inputs)
    return getattr(out, "logits", out)


def run(model: Callable[..., Any], inputs: Any) -> Any:
    """As `call`, with all that the model returns: GoogLeNet's other heads, a Hugging Face output as it is."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)


def attempt(model: nn.Module, inputs: Any, how: Callable[[nn.Module, Any], Any] = call) -> Any:
    """The model's output; PruneError with the inputs' shapes if it cannot run on them."""
    try:
        return how(model, inputs)
    except Exception as error:  # whatever a model's own code raises, an AssertionError included
        given = ", ".join(f"{shape(t)} {t.dtype}" for t in tensors(inputs)) or type(inputs).__name__
        why = str(error) or type(error).__name__
        raise PruneError(f"{type(model).__name__} cannot run on inputs of {given}: {why}") from error


def forward(model: nn.Module, inputs: Any) -> Callable[[], Any]:
    """One forward pass as a task, tried once."""
    placed = to(inputs, device_of(model))
    attempt(model, placed)
    return lambda: call(model, placed)


def outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    """The floating-point tensors a model gives in eval mode, in order; PruneError if it cannot run on the inputs."""
    with mode(model, training=False), torch.no_grad():
        return floating(attempt(model, inputs, run))


def floating(nest: Any) -> list[Tensor]:
    """The floating-point tensors in any nest of tuples, lists and dicts."""
    return [t for t in tensors(nest) if t.is_floating_point()]


def dice_kept() -> ExitStack:
    """Torch's random state is after a block what it was before. (`fork_rng` is a generator: see `mode`.)

    Asking for a GPU's would start CUDA; where it has not been started there is none to keep.
    """
    stack = ExitStack()
    stack.callback(torch.set_rng_state, torch.get_rng_state())
    if torch.cuda.is_initialized():
        stack.callback(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all())
    return stack


def undisturbed(*models: nn.Module) -> ExitStack:
    """Eval mode for the length of a block; then every module's own mode and torch's random state are back."""
    with ExitStack() as stack:
        stack.enter_context(dice_kept())
        for model in models:
            stack.enter_context(mode(model, training=False))
        return stack.pop_all()


def uncached(model: nn.Module) -> ExitStack:
    """No cache of keys and values for the length of a block, whatever the model's configurations say."""
    held: list[Any] = [getattr(m, "config", None) for m in network(model).modules()]
    with ExitStack() as stack:
        for config in {id(c): c for c in held if getattr(c, "use_cache", False)}.values():
            stack.callback(setattr, config, "use_cache", True)
            config.use_cache = False
        return stack.pop_all()


def unfused(*libraries: Any) -> ExitStack:
    """Attention as plain operators, and none of these libraries of `torch.backends`, for the length of a block.

    A thread at a time: two that turned the switches off and on in turns would leave them off for good.
    """
    with ExitStack() as stack:
        stack.enter_context(_SWITCHES)
        stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
        for library in libraries:
            stack.callback(setattr, library, "enabled", library.enabled)
            library.enabled = False
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        return stack.pop_all()


_SWITCHES = threading.RLock()  # torch's are the whole process's


def hooked(modules: Iterable[nn.Module], note: Callable[[nn.Module, tuple, dict], Any]) -> ExitStack:
    """note(module, args, kwargs) before every forward of these modules, for the length of a block."""
    return while_in(m.register_forward_pre_hook(note, with_kwargs=True) for m in modules)


def while_in(hooks: Iterable[Any]) -> ExitStack:
    """What registering hooks gave, as a block at whose end they are gone."""
    stack = ExitStack()
    for hook in hooks:
        stack.callback(hook.remove)
    return stack


def entering(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Of what a hook sees a module of a Transformer called with, the stream."""
    return args[0] if args else kwargs["hidden_states"] if "hidden_states" in kwargs else next(iter(kwargs.values()))


def leaving(out: Any) -> Tensor:
    """Of what such a module gives, the stream: all of it, or the first."""
    return out[0] if isinstance(out, (tuple, list)) else out


def duplicate(model: nn.Module, device: str | torch.device | None = None) -> nn.Module:
    """A deep copy of the model, masks included, on a device if one is given; PruneError if it cannot be copied.

    Tensors that lie elsewhere are copied there at once: where the model lies, no second one needs to fit.

    >>> duplicate(nn.Linear(2, 1), "meta").weight.device
    device(type='meta')
    """
    there: dict[int, Any] = {}  # what deepcopy takes for copied already
    wanted = None if device is None else torch.device(device)
    for tensor in (*model.parameters(), *model.buffers()):
        if wanted is not None and tensor.device.type != wanted.type:
            moved = tensor.detach().to(wanted)
            given = isinstance(tensor, nn.Parameter)
            there[id(tensor)] = nn.Parameter(moved, tensor.requires_grad) if given else moved
    try:
        twin = copy.deepcopy(model, there)
        return twin if wanted is None else twin.to(wanted)  # modules that do more than move: an LSTM on a GPU
    except Exception as error:  # whatever a model's own __deepcopy__ raises
        raise PruneError(f"{type(model).__name__} cannot be copied, and is pruned as a copy: {error}") from error


def apart(one: Iterable[Tensor], other: Iterable[Tensor]) -> float:
    """The largest difference of two lists of outputs, relative to the largest of the first; NaN where there is one.

    >>> apart([torch.tensor([1.0, -4.0])], [torch.tensor([1.0, -3.0])])
    0.25
    >>> apart([torch.zeros(2)], [torch.tensor([0.0, 3.0])])  # of zeros there is no share: as it is
    3.0
    """
    worst = 0.0
    for a, b in zip(one, other, strict=True):
        if not a.numel():
            continue
        gap, largest = float((a.double() - b.double()).abs().max()), float(a.double().abs().max())
        if gap != gap:
            return gap
        worst = max(worst, gap / largest if largest > 0 else gap)
    return worst


def children(module: nn.Module) -> dict[str, nn.Module]:
    """The module's own children by name, one that is there twice included: `named_children` gives it once."""
    return {name: child for name, child in module._modules.items() if child is not None}


def storage_of(tensor: Tensor) -> int:
    """What tells a tensor's storage from all others that are alive: views of one share it."""
    return tensor.untyped_storage()._cdata


def check_plain(model: nn.Module, called: str = "the model", *, ours: bool = True) -> None:
    """Raise PruneError if a tensor has no values yet, or if masks are still on, which cost up to twice the time.

    With ours=False only those of torch.nn.utils.prune are refused.
    """
    check_loaded(model)
    masked = [place.name for place, _ in all_masks(model)] if ours else []
    if masked:
        raise PruneError(
            f"{called} still wears masks, on {listed(masked)}: they cost time in every forward, so it would be "
            "measured as slower than it is. Call pl.bake(model) first, or measure pl.bake(copy.deepcopy(model))"
        )
    theirs = [path or "the model itself" for path, m in network(model).named_modules() if _torch_pruned(m)]
    if theirs:
        raise PruneError(
            f"{called} still wears the masks of torch.nn.utils.prune, on {listed(theirs)}: call "
            'torch.nn.utils.prune.remove(module, "weight") on each first'
        )


def _torch_pruned(module: nn.Module) -> bool:
    return any(isinstance(hook, prune.BasePruningMethod) for hook in module._forward_pre_hooks.values())


def check_numbers(model: nn.Module) -> None:
    """Raise PruneError if a weight or buffer holds a NaN, which would make accuracy and counts meaningless."""
    check_loaded(model)
    named = (*model.named_parameters(), *model.named_buffers())
    broken = [f"{name} {shape(t)}" for name, t in named if t.is_floating_point() and bool(t.isnan().any())]
    if broken:
        raise PruneError(
            f"{listed(broken)} of {type(model).__name__} holds NaN: training diverged or a checkpoint is "
            "damaged; go back to weights from before"
        )


def rows(inputs: Any) -> int:
    """How many samples inputs hold: the length of the first tensor found in them.

    >>> rows({"x": torch.zeros(3, 8)})
    3
    """
    first = next((t for t in tensors(inputs) if t.dim() > 0), None)
    if first is None or len(first) == 0:
        given = type(inputs).__name__ if first is None else f"a tensor of shape {shape(first)}"
        raise PruneError(f"the example holds no sample ({given}): give a batch, samples along its first dimension")
    return len(first)


def cut(inputs: Any, size: int | None) -> Any:
    """The first `size` samples, of every tensor that has one row a sample; None leaves inputs whole.

    >>> rows(cut(torch.zeros(3, 8), 2))
    2
    """
    total = rows(inputs)
    if size is None:
        return inputs
    check_count("batch_size", size)
    return mapped(lambda t: t[:size] if t.dim() > 0 and len(t) == total else t, inputs)


def first_inputs(data: Any, split: str, size: int) -> Any:
    """The inputs of the data's first batch, at most `size` samples of them."""
    check_count("batch_size", size)
    for batch in batches(data, split, size=size):
        return cut(pair(batch)[0], size)
    raise PruneError(EMPTY.format(split))


def seed_dice(seed: int, device: torch.device) -> None:
    """Seed torch's dice and those of one device; `torch.manual_seed` would reach for every accelerator there is."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def pair(batch: Any) -> tuple[Any, Tensor]:
    """The batch as (inputs, targets), or PruneError if it is something else."""
    if not isinstance(batch, (tuple, list)) or len(batch) != 2 or not isinstance(batch[1], Tensor):
        given = f"{type(batch).__name__} of {len(batch)}" if isinstance(batch, (tuple, list)) else type(batch).__name__
        raise PruneError(f"a batch of the data is a {given}: give pairs (inputs, targets), targets a tensor")
    return batch[0], batch[1]
