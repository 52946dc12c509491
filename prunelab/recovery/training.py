"""Train a network to convergence, and again after pruning, with whatever masks it wears held in place."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from os import PathLike
from typing import Any, TypeAlias

from torch import nn
from torch.nn import functional as F
from torch.optim import AdamW, Optimizer
from tqdm.auto import tqdm

from ..calibration.samples import Loss, scalar_loss
from ..checks import check_count, check_number
from ..core import PruneError, check_loaded, device_of, mode
from ..data import EMPTY, Batch, batches, count, to
from ..measurement import Evaluation
from ..running import attempt, dice_kept, pair, seed_dice
from ..text import percent
from .checkpoints import Checkpoint, settings_of
from .run import ONE_CYCLE, History, Objective, Rate, Run, Snapshot, Tail, finite, generators, scheduler

OnStep: TypeAlias = Callable[[int, int], None]  # (steps done, steps in all)
EPOCHS = 10


def train(
    model: nn.Module,
    data: Any,
    *,
    epochs: int | None = None,
    steps: int | None = None,
    lr: float = 1e-2,
    weight_decay: float = 1e-2,
    batch_size: int = 64,
    seed: int = 0,
    loss: Loss | Objective = F.cross_entropy,
    optimizer: Callable[[nn.Module], Optimizer] | None = None,
    lr_schedule: str | Rate | Tail = ONE_CYCLE,
    on_step: OnStep | None = None,
    checkpoint: str | PathLike[str] | Checkpoint | None = None,
    progress: bool = True,
) -> History:
    """Train in place with AdamW and a one-cycle learning rate that peaks at `lr`, on the data's train split.

    The budget is `epochs` (10 if nothing is said) or `steps`. Masks stay exact throughout. The same seed gives the
    same weights; nobody else's random numbers are disturbed, and each module gets its own mode back. It looks at
    the validation split, if there is one, at the start and after each epoch, to report it, not to choose.

    optimizer: makes another than AdamW, with parameter groups perhaps; `lr` and `weight_decay` are then not used.
    lr_schedule: "one_cycle", "constant", "linear" (down to 0), a function progress -> factor, or a `Tail`.
    on_step: on_step(done, total) is called with done = 0 before the first step, and after every step; it may change
    masks and weights. A resumed run first calls it for the step it goes on from.
    checkpoint: a file that the run is saved to every so often. If it is there already, the run goes on from it, to
    the same weights as an unbroken one; random numbers are in it as far as they are torch's global ones or those of a
    DataLoader's generators. It is refused as another run's if a setting, the loss, on_step (a function by its name) or
    the first examples, where data has them in a fixed order, are others.

    If the loss or a weight becomes NaN or infinite, the model gets back its best weights by validation, or without
    validation those it had before the epoch, and a PruneError says so. An error before the first step is done leaves
    it as it was; an interrupt, or an error later on, with the weights of the moment, finite and usable.

    >>> import torch
    >>> data = torch.randn(64, 8), torch.arange(64) % 4
    >>> train(nn.Linear(8, 4), data, epochs=2, batch_size=16, progress=False).steps  # 64 / 16 in each epoch
    8
    """
    _check_settings(epochs, steps, lr, weight_decay)
    progress = bool(progress)  # what cannot be a yes or no fails here, before anything is changed
    trained = _trainable(model)
    total = steps or (epochs or EPOCHS) * count(data, size=batch_size)
    made = optimizer(model) if optimizer else AdamW(trained, lr=lr, weight_decay=weight_decay)
    groups = [{k: v for k, v in group.items() if k != "params"} for group in made.param_groups]
    objective = loss if isinstance(loss, Objective) else Objective(lambda _, *given: loss(*given), loss)
    rates, shuffling, given = scheduler(made, lr_schedule, total), generators(data, seed), Snapshot.of(model)
    run = Run(model, data, batch_size, objective, made, rates, total, shuffling, safe=given, first=given)
    saved = Checkpoint(checkpoint) if isinstance(checkpoint, (str, PathLike)) else checkpoint
    with (
        dice_kept(),
        mode(model, training=True),
        _left_sound(run),
        tqdm(total=total, desc="training", unit="step", disable=not progress, leave=False) as bar,
    ):
        if saved:
            run.settings = settings_of(run, groups, seed, lr_schedule, loss, on_step)
        seed_dice(seed, device_of(model))
        _go(run, on_step, saved, bar)
    return run.history


def finetune(
    model: nn.Module,
    data: Any,
    *,
    epochs: int | None = None,
    steps: int | None = None,
    lr: float = 3e-3,
    **options: Any,
) -> History:
    """Retrain a pruned model to recover: `train`, gentler and, if nothing is said, for 2 epochs.

    Call it before `bake`, while masks hold. Raises PruneError for a model that has nothing to recover with: all of it
    frozen.

    >>> import torch
    >>> layer, data = nn.Linear(8, 4), (torch.randn(64, 8), torch.arange(64) % 4)
    >>> finetune(layer, data, steps=3, batch_size=16, progress=False).steps
    3
    """
    if epochs is None and steps is None:
        epochs = 2
    return train(model, data, epochs=epochs, steps=steps, lr=lr, **options)


def _go(run: Run, on_step: OnStep | None, saved: Checkpoint | None, bar: tqdm) -> None:
    """All the steps that are left: the one training loop of the library."""
    resumed = saved is not None and saved.resume(run)
    if run.watched and not resumed:
        run.history.start = run.examine()
    bar.update(run.done)
    start = time.perf_counter() - run.history.seconds
    if on_step:
        on_step(run.done, run.total)
    while run.done < run.total:
        for batch in islice(_rest_of_epoch(run), run.total - run.done):
            run.history.losses.append(_step(run, batch))
            run.first = None
            if not math.isfinite(run.history.losses[-1]):
                break
            run.rates.step()
            run.position += 1
            if on_step:
                on_step(run.done, run.total)
            bar.update()
            if saved and saved.due(run):
                _refuse_divergence(run)
                run.history.seconds = time.perf_counter() - start
                saved.save(run)
        _refuse_divergence(run)
        _end_epoch(run)
        if run.history.valid:
            bar.set_postfix_str(f"validation {percent(run.history.valid[-1].accuracy)}")
    run.history.seconds = time.perf_counter() - start
    if saved:
        saved.save(run)


def _rest_of_epoch(run: Run) -> Iterator[Batch]:
    """The epoch's batches from where the run stands; those before are passed over, drawn by the dice they had."""
    if run.position == 0:
        run.epoch = run.random_states()
    else:
        run.set_random_states(run.epoch)
    stream = batches(run.data, size=run.batch_size, shuffle=run.generators["dice"])
    for _ in islice(stream, run.position):
        pass
    if run.resumed is not None:
        run.set_random_states({"random": run.resumed})
        run.resumed = None
    yield from stream


def _step(run: Run, batch: Batch) -> float:
    inputs, targets = to(pair(batch), device_of(run.model))
    run.optimizer.zero_grad(set_to_none=True)
    outputs = attempt(run.model, inputs)
    value = scalar_loss(partial(run.objective.of, inputs), outputs, targets, of=run.objective.report)
    value.backward()
    try:
        run.optimizer.step()
    except Exception as error:
        if run.done and run.first:
            raise PruneError(
                f"the checkpoint is not of such an optimizer ({error!r}): delete it to begin anew"
            ) from error
        raise
    run.optimizer.zero_grad(set_to_none=True)
    return float(value.detach())


def _end_epoch(run: Run) -> None:
    """Validate, and keep the weights to fall back on: the best ones, or without validation these."""
    if run.position == 0:
        raise PruneError(EMPTY.format("train"))
    run.position = 0
    if run.watched:
        before = _best(run.history)
        run.history.valid.append(run.examine())
        if _best(run.history) is before:
            return
    run.safe = Snapshot.of(run.model, run.safe)


def _best(history: History) -> Evaluation | None:
    """The best validation result so far, the first of equals; None without validation."""
    results = [history.start, *history.valid] if history.start else []
    return max(results, key=lambda r: (r.accuracy, -r.loss), default=None)


def _check_settings(epochs: Any, steps: Any, lr: Any, weight_decay: Any) -> None:
    if epochs is not None and steps is not None:
        raise PruneError(f"epochs={epochs!r} and steps={steps!r}: give the budget as one of them")
    for name, given in (("epochs", epochs), ("steps", steps)):
        if given is not None:
            check_count(name, given)
    check_number("lr", lr, "give a positive learning rate, such as 0.003", above=0)
    # AdamW takes NaN, and ruins the weights with it.
    check_number("weight_decay", weight_decay, "give a number of at least 0, such as 0.01", least=0)


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    check_loaded(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise PruneError(
            f"all {len(list(model.parameters()))} parameters of this {type(model).__name__} are frozen: nothing can "
            "be trained. Call model.requires_grad_(True) first"
        )
    return trained


@contextmanager
def _left_sound(run: Run) -> Iterator[None]:
    """However the block ends: no weight that is not finite; and if an error comes before a step is done, no change."""
    before = [(p, p.grad) for p in run.model.parameters()]  # zero_grad lets go of them, and changes none
    try:
        yield
    except BaseException as error:  # an interrupt leaves the weights of the moment, if they are usable
        if run.first and isinstance(error, Exception):
            run.first.put_back(run.model)
        elif not finite(run.model):
            run.safe.put_back(run.model)
        raise
    finally:
        run.optimizer.zero_grad(set_to_none=True)
        if run.first:
            for parameter, grad in before:
                parameter.grad = grad


def _refuse_divergence(run: Run) -> None:
    """Give the model its safe weights back and raise PruneError if the loss or a weight is not finite."""
    last = run.history.losses[-1] if run.history.losses else 0.0
    if math.isfinite(last) and finite(run.model):
        return
    run.safe.put_back(run.model)
    what = "a weight became NaN or infinite" if math.isfinite(last) else f"the loss became {last}"
    best, peak = _best(run.history), max(group.get("max_lr", group["lr"]) for group in run.optimizer.param_groups)
    kept = (
        f"its best weights ({percent(best.accuracy)} on validation)" if best else "the weights it had before this epoch"
    )
    raise PruneError(
        f"training diverged: {what} at step {run.done} with lr={peak:g}. The model has {kept}; try lr={peak / 10:g}"
    )
