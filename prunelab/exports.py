"""A model that leaves PyTorch's Python: torch.export or ONNX, run and compared before the file is put in place."""

from __future__ import annotations

import io
import itertools
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .core import PruneError, mode, shape
from .data import mapped, take, tensors, to
from .files import write_whole
from .running import apart, attempt, call, check_plain, duplicate, rows
from .text import size

TOLERANCE = 1e-4  # of the largest output: float32 rounding in another order of sums stays far below
_ONNX_MOST = 2**31 - 1  # bytes in one protobuf message

Runner = Callable[[Sequence[Tensor]], list[Tensor]]  # the exported model: input tensors -> output tensors


@dataclass(frozen=True)
class Export:
    """An exported file, its format, and how far its outputs are from the model's, relative to the largest of them."""

    path: Path
    format: str
    difference: float
    bytes: int
    inputs: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{self.path.name}: {self.format}, {size(self.bytes)}, inputs {', '.join(self.inputs)}; "
            f"outputs equal to {self.difference:.1e}"
        )


def export(
    model: nn.Module,
    example: Any,
    path: str | os.PathLike[str],
    *,
    dynamic_batch: bool = True,
    tolerance: float = TOLERANCE,
) -> Export:
    """Write a model for a runtime other than PyTorch's Python: `.onnx` or `.pt2` (torch.export), by the path's suffix.

    example: inputs, as the model's forward takes them; a dict's keys become the inputs' names, numbered where one
        holds several tensors.
    dynamic_batch: the file takes batches of any size; then another size than the example's is tried too.

    What was written is loaded again (ONNX by onnxruntime, on the CPU) and run; its outputs must agree with the
    model's to `tolerance`, relative to the largest. Only then does the file appear, whole. The model is left as it is.
    Raises PruneError for masks still on, a forward that can't be captured, an operator that the target lacks, and
    outputs that differ.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     written = export(nn.Linear(2, 1), torch.zeros(3, 2), f"{folder}/small.pt2")
    >>> written.difference < 1e-6
    True
    """
    file = Path(path)
    if file.suffix not in TARGETS:
        raise PruneError(f"{file.name}: exports are {' or '.join(TARGETS)} files, and the name says which")
    check_plain(model)
    if file.suffix == ".onnx" and any(p.dtype == torch.bfloat16 for p in model.parameters()):
        raise PruneError(
            f"{type(model).__name__} is in bfloat16, which onnxruntime can't run on a CPU, and so could not be tried: "
            "give a float32 copy, copy.deepcopy(model).float(), or export .pt2. Nothing was written"
        )
    twin, names, given = _flat(model, example)
    if dynamic_batch:
        given = _growable(given)
    format, write, load = TARGETS[file.suffix]
    with _quiet(), mode(twin, training=False), torch.no_grad():
        captured = _captured(twin, given, dynamic_batch)
        data = write(captured, names)
        run = load(data)
        again = [*range(rows(given)), 0]  # the same samples and the first once more: a batch of another size
        tried = [given, take(given, again, rows(given))] if dynamic_batch else [given]
        worst = max(_gap(attempt(twin, tuple(xs)), run(xs), format) for xs in tried)
    if not worst <= tolerance:  # so put, NaN fails too
        raise PruneError(
            f"{format} computes something else than {type(model).__name__}: the outputs differ by {worst:.1e} of the "
            f"largest, and {tolerance:.0e} is allowed. Nothing was written"
        )
    write_whole(file, data)
    return Export(file, format, worst, len(data), tuple(names))


class _Flat(nn.Module):
    """A model as a function of tensors alone, in order, which is all that an exported file knows."""

    def __init__(self, model: nn.Module, example: Any):
        super().__init__()
        self.model, self.example = model, example

    def forward(self, *given: Tensor) -> Any:
        following = iter(given)
        return call(self.model, mapped(lambda _: next(following), self.example))


def _flat(model: nn.Module, example: Any) -> tuple[_Flat, list[str], list[Tensor]]:
    """A copy of the model on the CPU as a function of tensors, the inputs' names, and the example's tensors."""
    inputs = to(example, torch.device("cpu"))
    given = list(tensors(inputs))
    if not given:
        raise PruneError(f"the example is a {type(example).__name__} without tensors to export with: give inputs")
    if isinstance(inputs, Mapping):
        held = {key: len(list(tensors(value))) for key, value in inputs.items()}
        names = [key if n == 1 else f"{key}{i}" for key, n in held.items() for i in range(n)]
    else:
        names = ["input"] if isinstance(inputs, Tensor) else [f"input{i}" for i in range(len(given))]
    twin = _Flat(duplicate(model, "cpu"), inputs)
    with mode(twin, training=False), torch.no_grad():
        attempt(twin, tuple(given))
    return twin, names, given


def _growable(given: list[Tensor]) -> list[Tensor]:
    """A batch of one repeated, to a size that no other tensor has: torch.export takes a size of one for a constant."""
    taken = {len(t) for t in given if t.dim()}
    size = next(n for n in itertools.count(2) if n not in taken)
    return take(given, [0] * size, 1) if rows(given) == 1 else given


def _captured(twin: _Flat, given: list[Tensor], dynamic: bool) -> Any:
    """The exported program. A batch of one would be taken for a constant, so that `_growable` gives two at least."""
    batch = rows(given)
    sizes = tuple({0: torch.export.Dim.DYNAMIC} if t.dim() and len(t) == batch else None for t in given)
    try:
        return torch.export.export(twin, tuple(given), dynamic_shapes=(sizes,) if dynamic else None)
    except Exception as error:  # whatever the tracer trips over
        fixed = dynamic and ("Constraint" in str(error) or type(error).__name__ == "UserError")
        hint = " Its forward may fix the batch size: then give dynamic_batch=False." if fixed else ""
        raise PruneError(
            f"torch.export can't follow the forward of {type(twin.model).__name__}: "
            f"{type(error).__name__}: {_first_line(error)}.{hint} Nothing was written"
        ) from error


def _as_onnx(program: Any, names: list[str]) -> bytes:
    """ONNX by torch's own exporter; `onnxscript` knows the operators."""
    try:
        found = torch.onnx.export(program, dynamo=True, verbose=False, input_names=names, output_names=None)
        proto = found.model_proto  # type: ignore[union-attr]
    except Exception as error:  # each stage of the exporter has its own
        raise PruneError(
            f"ONNX can't express this model: {type(error).__name__}: {_first_line(error)}. Export it as .pt2, or "
            "replace the operator that the message names. Nothing was written"
        ) from error
    if proto.ByteSize() > _ONNX_MOST:
        raise PruneError(f"the model takes {size(proto.ByteSize())}, and one ONNX file holds 2 GB: export it as .pt2")
    return proto.SerializeToString()


def _run_onnx(data: bytes) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors only
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises classes of its own
        raise PruneError(f"onnxruntime can't load the model: {_first_line(error)}. Nothing was written") from error
    takes = [i.name for i in session.get_inputs()]

    def run(xs: Sequence[Tensor]) -> list[Tensor]:
        given = [t.detach().numpy() for t in xs]
        if len(takes) != len(given):
            raise PruneError(f"the exported model takes {', '.join(takes)}: an input of {len(given)} is never used")
        return [torch.from_numpy(y) for y in session.run(None, dict(zip(takes, given, strict=True)))]

    return run


def _as_program(program: Any, names: list[str]) -> bytes:
    out = io.BytesIO()
    torch.export.save(program, out)
    return out.getvalue()


def _run_program(data: bytes) -> Runner:
    module = torch.export.load(io.BytesIO(data)).module()
    return lambda xs: list(tensors(module(*xs)))


def _gap(expected: Any, found: list[Tensor], format: str) -> float:
    """The largest difference of the outputs, relative to the largest. (`torch.onnx.verification` knows no .pt2.)"""
    wanted = list(tensors(expected))
    if [t.shape for t in wanted] != [t.shape for t in found]:
        shapes = [", ".join(map(shape, ts)) for ts in (found, wanted)]
        raise PruneError(f"{format} gives outputs of {shapes[0]}, the model of {shapes[1]}. Nothing was written")
    return apart(wanted, found)


def _first_line(error: BaseException) -> str:
    """The line of an error that says what it is about: exporters wrap theirs in pages."""
    root = error
    while root.__cause__ is not None:
        root = root.__cause__
    lines = [line.strip() for line in str(root).splitlines() if line.strip()]
    return (lines[0] if lines else type(root).__name__)[:300].rstrip(".")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' logs and warnings: what matters is checked, and raised."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


TARGETS: dict[str, tuple[str, Callable[[Any, list[str]], bytes], Callable[[bytes], Runner]]] = {
    ".onnx": ("ONNX", _as_onnx, _run_onnx),
    ".pt2": ("torch.export", _as_program, _run_program),
}
