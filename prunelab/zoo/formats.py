"""The two file formats of downloaded images, parsed from bytes: flat arrays, with nothing in them to execute."""

from __future__ import annotations

import gzip
import io
import math
import tarfile
import zlib

import numpy as np
import torch
from torch import Tensor

from .data import ZooError

CIFAR_TRAIN = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
CIFAR_TEST = "test_batch.bin"
CIFAR_RECORD = 1 + 3 * 32 * 32  # a label, then the red, the green and the blue plane


def idx(name: str, content: bytes, dims: int) -> Tensor:
    """The uint8 array of a gzipped IDX file (MNIST's format), which must have `dims` dimensions.

    Raises ZooError, with the file's name, if the content is anything else.
    """
    try:
        raw = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ZooError(f"{name} is not a complete gzip file ({error}): delete it and load again") from error
    # Two zero bytes, 8 for uint8, the number of dimensions; then each size as a big-endian 32-bit integer.
    head = 4 + 4 * dims
    if len(raw) < head or raw[:4] != bytes([0, 0, 8, dims]):
        raise ZooError(f"{name} is not an IDX file of bytes in {dims} dimensions: delete it and load again")
    shape = np.frombuffer(raw[4:head], dtype=">i4").tolist()
    if math.prod(shape) != len(raw) - head:
        raise ZooError(
            f"{name} announces {shape} = {math.prod(shape)} values and holds {len(raw) - head}: "
            "delete it and load again"
        )
    return torch.frombuffer(bytearray(raw[head:]), dtype=torch.uint8).reshape(shape)


def cifar(name: str, content: bytes) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Train and test of the CIFAR-10 binary archive: images (n, 3, 32, 32), uint8, and labels (n,), int64.

    The members are read in memory and none is unpacked, so no path inside the archive can lead anywhere.
    Raises ZooError, with the file's name, if the content is anything else.
    """
    wanted, found = (*CIFAR_TRAIN, CIFAR_TEST), {}
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
            for member in archive:  # in the archive's order: going back would decompress it all again
                batch, stream = member.name.rpartition("/")[2], archive.extractfile(member)
                if batch in wanted and stream is not None:
                    found[batch] = stream.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise ZooError(f"{name} is not a complete .tar.gz ({error}): delete it and load again") from error
    for batch in wanted:
        size = len(found.get(batch, b""))
        if size == 0 or size % CIFAR_RECORD:
            raise ZooError(
                f"{name} has {size} bytes for {batch}, not whole records of {CIFAR_RECORD}: delete it and load again"
            )
    return _records([found[batch] for batch in CIFAR_TRAIN]), _records([found[CIFAR_TEST]])


def _records(parts: list[bytes]) -> tuple[Tensor, Tensor]:
    records = torch.frombuffer(bytearray().join(parts), dtype=torch.uint8).reshape(-1, CIFAR_RECORD)
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].long()
