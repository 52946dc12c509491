"""Fashion-MNIST and CIFAR-10 from small files in their real format, and every way a download can go wrong."""

import gzip
import hashlib
import io
import socket
import struct
import tarfile
from email.message import Message
from pathlib import Path

import numpy as np
import pytest
import torch

from prunelab import zoo
from prunelab.zoo import downloads


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise OSError("no network in tests")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def idx_file(array: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, array.ndim]) + b"".join(struct.pack(">I", n) for n in array.shape)
    return gzip.compress(head + array.astype(np.uint8).tobytes(), mtime=0)


def cifar_file(batches: dict[str, tuple[np.ndarray, np.ndarray]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        folder = tarfile.TarInfo("cifar-10-batches-bin")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        members = {"readme.html": b"<html>", "batches.meta.txt": b"airplane\n"}
        for name, (labels, images) in batches.items():
            members[name] = np.concatenate([labels[:, None], images.reshape(len(labels), -1)], axis=1).tobytes()
        for name, content in members.items():
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def serve(monkeypatch, responses: dict[str, object]) -> list[str]:
    """Let urlopen answer from a dict, url -> bytes or an exception to raise; gives the list of urls asked for."""
    asked: list[str] = []

    class Response(io.BytesIO):
        headers = Message()

    def urlopen(url, timeout):
        assert timeout
        asked.append(url)
        answer = responses[url]
        if isinstance(answer, BaseException):
            raise answer
        return answer if isinstance(answer, io.IOBase) else Response(answer)

    monkeypatch.setattr(downloads.urllib.request, "urlopen", urlopen)
    return asked


@pytest.fixture
def fashion(monkeypatch):
    """The four files, small, with the real names; the published hashes are replaced by theirs."""
    draw = np.random.RandomState(0)
    arrays = [
        draw.randint(0, 256, (30, 28, 28)),
        np.arange(30) % 10,
        draw.randint(0, 256, (10, 28, 28)),
        np.arange(10),
    ]
    contents = [idx_file(a) for a in arrays]
    files = tuple(
        downloads.File(f.name, md5(c), len(c), ("a/" + f.name, "b/" + f.name))
        for f, c in zip(downloads.fashion_files(), contents, strict=True)
    )
    monkeypatch.setattr(downloads, "fashion_files", lambda: files)
    return arrays, {f.name: c for f, c in zip(files, contents, strict=True)}


@pytest.fixture
def cifar(monkeypatch):
    draw = np.random.RandomState(0)
    names = ["data_batch_1.bin", "test_batch.bin", *(f"data_batch_{i}.bin" for i in (3, 2, 4, 5))]
    batches = {
        name: (draw.randint(0, 10, 4).astype(np.uint8), draw.randint(0, 256, (4, 3, 32, 32)).astype(np.uint8))
        for name in names  # in the archive's own, unsorted order
    }
    content = cifar_file(batches)
    file = downloads.File(downloads.CIFAR_FILE.name, md5(content), len(content), ("c/cifar",))
    monkeypatch.setattr(downloads, "CIFAR_FILE", file)
    return batches, content


def put(folder: Path, contents: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder


def everything_in(root: Path) -> set[str]:
    return {str(p.relative_to(root)) for p in root.rglob("*")}


def test_fashion_mnist_reads_the_real_format(fashion, tmp_path):
    arrays, contents = fashion
    put(tmp_path / "FashionMNIST" / "raw", contents)
    data = zoo.load("fashion-mnist", root=tmp_path, download=False)
    assert (len(data.train), len(data.valid), len(data.test)) == (27, 3, 10)
    assert data.shape == (1, 28, 28)
    assert data.classes[0] == "T-shirt/top"
    assert len(data.classes) == 10
    images = torch.cat([data.train.tensors[0], data.valid.tensors[0]])
    labels = torch.cat([data.train.tensors[1], data.valid.tensors[1]])
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert labels.tolist() == arrays[1].tolist()
    pixels = (images[:, 0] * 0.3530 + 0.2860) * 255
    assert torch.allclose(pixels, torch.from_numpy(arrays[0]).float(), atol=1e-3)
    assert data.test.tensors[1].tolist() == arrays[3].tolist()
    assert {k: len(v.unique()) for k, v in data.origin.items()} == {"train": 27, "valid": 3, "test": 10}


def test_cifar10_reads_the_real_format(cifar, tmp_path):
    batches, content = cifar
    put(tmp_path, {"cifar-10-binary.tar.gz": content})
    data = zoo.load("cifar10", root=tmp_path, download=False)
    assert (len(data.train), len(data.valid), len(data.test)) == (18, 2, 4)
    assert data.shape == (3, 32, 32)
    assert data.classes[3] == "cat"
    expected = [batches[f"data_batch_{i}.bin"] for i in range(1, 6)]  # in order, whatever the archive's
    labels = torch.cat([data.train.tensors[1], data.valid.tensors[1]])
    assert labels.tolist() == np.concatenate([e[0] for e in expected]).tolist()
    mean, deviation = (torch.tensor(s)[:, None, None] for s in downloads.CIFAR_SCALE)
    pixels = (torch.cat([data.train.tensors[0], data.valid.tensors[0]]) * deviation + mean) * 255
    assert torch.allclose(pixels, torch.from_numpy(np.concatenate([e[1] for e in expected])).float(), atol=1e-3)
    assert data.test.tensors[1].tolist() == batches["test_batch.bin"][0].tolist()


def test_published_hashes_are_the_ones_asked_for():
    files = {f.name: f for f in (*downloads.fashion_files(), downloads.CIFAR_FILE)}
    assert files["t10k-labels-idx1-ubyte.gz"].md5 == "bb300cfdad3c16e7a12a480ee83cd310"
    assert len(files) == 5
    assert all(len(f.md5) == 32 and f.urls for f in files.values())
    assert all(url.startswith("https://") for f in files.values() for url in f.urls)
    assert sum(f.size for f in files.values()) == 170_052_171 + 30_878_645


def test_the_cache_is_where_it_was_asked_to_be(monkeypatch, tmp_path):
    monkeypatch.setenv("PRUNELAB_CACHE", str(tmp_path / "env"))
    assert zoo.downloads.cache_dir() == tmp_path / "env"
    assert zoo.downloads.cache_dir(tmp_path) == tmp_path
    monkeypatch.delenv("PRUNELAB_CACHE")
    assert "prunelab" in str(zoo.downloads.cache_dir())


def test_a_download_fills_the_cache_once_and_tries_the_next_mirror(fashion, monkeypatch, tmp_path):
    _, contents = fashion
    answers = {f"a/{name}": OSError("mirror a is down") for name in contents}
    answers |= {f"b/{name}": content for name, content in contents.items()}
    asked = serve(monkeypatch, answers)
    monkeypatch.setenv("PRUNELAB_CACHE", str(tmp_path))
    assert len(zoo.load("fashion-mnist").test) == 10
    assert len(asked) == 8
    raw = {f"FashionMNIST/raw/{name}" for name in contents}
    assert everything_in(tmp_path) == raw | {"FashionMNIST", "FashionMNIST/raw"}
    assert len(zoo.load("fashion-mnist").test) == 10
    assert len(asked) == 8


class Endless(io.RawIOBase):
    """A server that never stops."""

    sent = 0

    def read(self, size=-1):
        self.sent += size
        return bytes(size)


@pytest.mark.parametrize(
    "portal",
    [
        lambda content: b"<html>log in first</html>",
        lambda content: content[:-1],
        lambda content: b"",
        lambda _: Endless(),
    ],
    ids=["portal", "short", "empty", "endless"],
)
def test_what_is_not_the_file_leads_to_the_next_mirror(fashion, monkeypatch, tmp_path, portal):
    _, contents = fashion
    answers = {f"a/{name}": portal(content) for name, content in contents.items()}
    asked = serve(monkeypatch, answers | {f"b/{name}": content for name, content in contents.items()})
    assert len(zoo.load("fashion-mnist", root=tmp_path).test) == 10
    assert len(asked) == 8
    for answer in answers.values():
        assert getattr(answer, "sent", 0) <= 2 * downloads.CHUNK, "no more is taken than was published"


def test_only_what_is_missing_is_downloaded(fashion, monkeypatch, tmp_path):
    _, contents = fashion
    folder = put(tmp_path / "FashionMNIST" / "raw", contents)
    gone = "t10k-labels-idx1-ubyte.gz"
    (folder / gone).unlink()
    asked = serve(monkeypatch, {f"a/{gone}": contents[gone]})
    zoo.load("fashion-mnist", root=tmp_path)
    assert asked == [f"a/{gone}"]


def test_cifar10_downloads(cifar, monkeypatch, tmp_path):
    serve(monkeypatch, {"c/cifar": cifar[1]})
    assert len(zoo.load("cifar10", root=tmp_path).test) == 4
    assert everything_in(tmp_path) == {"cifar-10-binary.tar.gz"}


class Breaks(io.BytesIO):
    """A connection that delivers half of its content, then fails."""

    def __init__(self, content: bytes, error: BaseException):
        super().__init__(content[: len(content) // 2])
        self.headers, self.error = Message(), error
        self.headers["Content-Length"] = str(len(content))

    def read(self, size=-1):
        chunk = super().read(size)
        if not chunk:
            raise self.error
        return chunk


def test_an_interrupted_download_leaves_nothing_behind(cifar, monkeypatch, tmp_path):
    serve(monkeypatch, {"c/cifar": Breaks(cifar[1], KeyboardInterrupt())})
    with pytest.raises(KeyboardInterrupt):
        zoo.load("cifar10", root=tmp_path)
    assert everything_in(tmp_path) == set()
    serve(monkeypatch, {"c/cifar": cifar[1]})
    assert len(zoo.load("cifar10", root=tmp_path).test) == 4


def test_a_connection_lost_half_way_is_explained(cifar, monkeypatch, tmp_path):
    serve(monkeypatch, {"c/cifar": Breaks(cifar[1], ConnectionResetError("reset by peer"))})
    with pytest.raises(zoo.ZooError, match="reset by peer"):
        zoo.load("cifar10", root=tmp_path)
    assert everything_in(tmp_path) == set()


def test_of_four_files_none_appears_unless_all_do(fashion, monkeypatch, tmp_path):
    _, contents = fashion
    last = "t10k-labels-idx1-ubyte.gz"
    answers = {f"{m}/{name}": content for m in "ab" for name, content in contents.items()}
    serve(monkeypatch, answers | {f"a/{last}": OSError("down"), f"b/{last}": OSError("down as well")})
    with pytest.raises(zoo.ZooError, match="down as well"):
        zoo.load("fashion-mnist", root=tmp_path)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_a_download_with_the_wrong_hash_is_not_kept(cifar, monkeypatch, tmp_path):
    serve(monkeypatch, {"c/cifar": cifar[1][:-9]})
    with pytest.raises(zoo.ZooError, match="bytes have " + md5(cifar[1])) as caught:
        zoo.load("cifar10", root=tmp_path)
    assert md5(cifar[1][:-9]) in str(caught.value)
    assert everything_in(tmp_path) == set()


@pytest.mark.parametrize(("name", "file"), [("cifar10", "cifar-10-binary.tar.gz"), ("fashion-mnist", "train-images")])
def test_no_network_says_which_files_to_put_where(name, file, tmp_path):
    with pytest.raises(zoo.ZooError, match=file) as caught:
        zoo.load(name, root=tmp_path / "here")
    text = str(caught.value)
    assert str(tmp_path / "here") in text
    assert "put the files there yourself" in text
    assert 'zoo.load("digits")' in text


@pytest.mark.parametrize("name", ["cifar10", "fashion-mnist"])
def test_missing_files_without_leave_to_download(name, tmp_path):
    with pytest.raises(zoo.ZooError, match="download=True"):
        zoo.load(name, root=tmp_path, download=False)
    assert everything_in(tmp_path) == set()


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(zoo.ZooError, match="could not download"):
        zoo.load("cifar10", root=tmp_path / "file")


def test_a_damaged_file_is_named_and_left_alone(fashion, tmp_path):
    _, contents = fashion
    name = "train-images-idx3-ubyte.gz"
    folder = put(tmp_path / "FashionMNIST" / "raw", contents | {name: contents[name][:-1]})
    with pytest.raises(zoo.ZooError, match="Delete it and load again") as caught:
        zoo.load("fashion-mnist", root=tmp_path)
    assert str(folder / name) in str(caught.value)
    assert (folder / name).read_bytes() == contents[name][:-1]


def test_a_pickle_in_the_place_of_a_data_set_is_not_executed(tmp_path):
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(zoo.ZooError, match="damaged or another file"):
        zoo.load("cifar10", root=tmp_path)
