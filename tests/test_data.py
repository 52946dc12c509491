"""Everything that counts as data gives the same batches; everything else says what to give."""

from collections import UserDict, namedtuple
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from prunelab.core import PruneError
from prunelab.data import batches, count, has_splits, mapped, split_of, tensors, to
from prunelab.running import call

X, Y = torch.arange(10.0).view(5, 2), torch.arange(5)


class Map(Dataset):
    """As torchvision's datasets: `.train` says which split it is, it doesn't hold one."""

    train = True

    def __len__(self):
        return 5

    def __getitem__(self, i):
        return X[i], int(Y[i])


class Stream(IterableDataset):
    def __iter__(self):
        yield from zip(X, Y, strict=True)


class Unsized:
    def __init__(self, *items):
        self.items = items

    def __iter__(self):
        return iter(self.items)


class UserDicts(Dataset):
    """Items of a type of mapping that is no dict, as Hugging Face's BatchEncoding."""

    def __init__(self, items):
        self.items = [UserDict(i) for i in items]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


PAIRS = [(X[:2], Y[:2]), (X[2:4], Y[2:4]), (X[4:], Y[4:])]
KINDS = {
    "pair": (X, Y),
    "list of two tensors": [X, Y],
    "TensorDataset": TensorDataset(X, Y),
    "Dataset with a .train flag": Map(),
    "IterableDataset": Stream(),
    "DataLoader": DataLoader(TensorDataset(X, Y), 2),
    "DataLoader of an IterableDataset": DataLoader(Stream(), 2),
    "list of batches": PAIRS,
    "unsized iterable": Unsized(*PAIRS),
    "splits": SimpleNamespace(train=(X, Y), valid=(X[:1], Y[:1])),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_batches_again_and_again(kind):
    for _ in range(2):
        got = list(batches(KINDS[kind], size=2))
        assert len(got) == count(KINDS[kind], size=2) == 3
        assert torch.equal(torch.cat([x for x, _ in got]), X)
        assert torch.equal(torch.cat([y for _, y in got]), Y)


@pytest.mark.parametrize("kind", ["pair", "TensorDataset", "Dataset with a .train flag", "splits"])
def test_shuffling_is_seeded_and_keeps_pairs(kind):
    def epoch(seed):
        return torch.cat([y for _, y in batches(KINDS[kind], size=2, shuffle=torch.Generator().manual_seed(seed))])

    assert torch.equal(epoch(3), epoch(3))
    assert any(not torch.equal(epoch(3), epoch(s)) for s in range(4, 9))
    assert epoch(3).sort().values.tolist() == [0, 1, 2, 3, 4]
    for x, y in batches(KINDS[kind], size=2, shuffle=torch.Generator().manual_seed(0)):
        assert torch.equal(x[:, 0], 2.0 * y)


def test_shuffling_the_whole_disturbs_no_other_dice():
    before = torch.get_rng_state()
    list(batches((X, Y), shuffle=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), before)


def test_splits():
    splits = KINDS["splits"]
    assert has_splits(splits)
    assert split_of(splits, "valid")[0].shape == (1, 2)
    assert not has_splits((X, Y))
    assert not has_splits(Map())
    with pytest.raises(PruneError, match="no split 'test'"):
        list(batches(splits, "test"))


@pytest.mark.parametrize(
    "empty",
    [
        [],
        (X[:0], Y[:0]),
        TensorDataset(X[:0], Y[:0]),
        DataLoader(TensorDataset(X[:1], Y[:1]), 2, drop_last=True),
        SimpleNamespace(train=[]),
    ],
)
def test_empty_data(empty):
    for use in (count, lambda d: list(batches(d))):
        with pytest.raises(PruneError, match="train data is empty"):
            use(empty)


def test_an_iterable_without_length_can_be_empty_too():
    with pytest.raises(PruneError, match="train data is empty"):
        count(Unsized())


def test_a_generator_is_refused_before_it_is_used_up():
    once = (b for b in PAIRS)
    with pytest.raises(PruneError, match=r"generator, which can be read only once: give list"):
        count(once)
    with pytest.raises(PruneError, match="generator"):
        list(batches(once))
    assert len(list(once)) == 3


@pytest.mark.parametrize("wrong", [None, 3, "digits", X, {"x": X}])
def test_what_is_no_data(wrong):
    with pytest.raises(PruneError, match="give a DataLoader"):
        list(batches(wrong))


def test_unpaired_tensors():
    with pytest.raises(PruneError, match="5 inputs but 4 targets"):
        count((X, Y[:4]))


def test_batch_size_zero():
    for use in (count, lambda d, size: list(batches(d, size=size))):
        with pytest.raises(PruneError, match="batch size of 0"):
            use((X, Y), size=0)


def test_to_keeps_the_nest():
    Both = namedtuple("Both", "a b")
    nest = {"t": X, "pair": (X, [Y]), "named": Both(X, Y), "n": 3}
    moved = to(nest, torch.device("meta"))
    assert moved["t"].device.type == moved["pair"][1][0].device.type == moved["named"].b.device.type == "meta"
    assert isinstance(moved["named"], Both)
    assert isinstance(moved["pair"], tuple)
    assert moved["n"] == 3


def test_every_tensor_of_a_nest_is_found_and_changed():
    Both = namedtuple("Both", "a b")
    nest = {"t": X, "pair": (Y, [X, 3]), "named": Both(X, "text")}
    assert [t is w for t, w in zip(tensors(nest), (X, Y, X, X), strict=True)] == [True] * 4
    assert list(tensors("text")) == []
    changed = mapped(torch.zeros_like, nest)
    assert changed["pair"][1][1] == 3
    assert changed["named"].b == "text"
    assert [t.shape for t in tensors(changed)] == [t.shape for t in tensors(nest)]
    assert not any(t.any() for t in tensors(changed))


@pytest.mark.parametrize("called", ["labels", "label"])
def test_dicts_with_labels_become_inputs_by_keyword_and_targets(called):
    items = [{"ids": x, called: y, "mask": x > 3} for x, y in zip(X, Y, strict=True)]
    for data in (DataLoader(items, 2), UserDicts(items)):
        got = list(batches(data, size=2))
        assert all(list(inputs) == ["ids", "mask"] for inputs, _ in got)
        assert torch.equal(torch.cat([inputs["ids"] for inputs, _ in got]), X)
        assert torch.equal(torch.cat([y for _, y in got]), Y)
    unlabelled = [{"ids": X}]
    assert list(batches(unlabelled)) == unlabelled, "nothing is taken for a label"


def test_data_without_values():
    with pytest.raises(PruneError, match=r"\(3,\) is on the meta device"):
        to({"x": [torch.zeros(3, device="meta")]}, torch.device("cpu"))


def test_call_by_position_keyword_and_logits():
    class Two(nn.Module):
        def forward(self, a, b):
            return SimpleNamespace(logits=a - b)

    one, two = torch.ones(1), 2 * torch.ones(1)
    assert call(nn.Identity(), one) is one
    assert call(Two(), (one, two)) == -1
    assert call(Two(), {"b": one, "a": two}) == 1
