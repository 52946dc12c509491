"""A calibration set is fixed, and never empty."""

import pytest
import torch
from torch.nn import functional as F

from prunelab import Calibration, PruneError

X, Y = torch.randn(10, 2, generator=torch.Generator().manual_seed(0)), torch.arange(10) % 2


def test_the_first_samples_in_order_every_time():
    for _ in range(2):
        calib = Calibration.of((X, Y), samples=5, batch_size=2)
        assert [len(y) for _, y in calib.batches] == [2, 2, 2]
        assert torch.equal(torch.cat([x for x, _ in calib.batches]), X[:6])
    assert calib.loss is F.cross_entropy


def test_samples_fewer_than_a_batch_and_more_than_the_data():
    assert [len(y) for _, y in Calibration.of((X, Y), samples=3).batches] == [3]
    assert sum(len(y) for _, y in Calibration.of((X, Y), samples=1000, batch_size=4).batches) == 10


def test_another_split():
    class Splits:
        train, valid = (X, Y), (X[:2], Y[:2])

    assert torch.equal(Calibration.of(Splits, split="valid").batches[0][0], X[:2])


@pytest.mark.parametrize(("samples", "batch_size"), [(0, 1), (-1, 1), (1, 0)])
def test_counts_below_one(samples, batch_size):
    with pytest.raises(PruneError, match="at least 1"):
        Calibration.of((X, Y), samples=samples, batch_size=batch_size)


class Nothing:
    def __iter__(self):
        return iter(())


@pytest.mark.parametrize("empty", [[], (X[:0], Y[:0]), Nothing()])
def test_empty(empty):
    with pytest.raises(PruneError, match="empty"):
        Calibration.of(empty)
    with pytest.raises(PruneError, match="calibration set is empty"):
        Calibration(())


def test_a_generator_is_refused():
    with pytest.raises(PruneError, match="only once"):
        Calibration.of(b for b in [(X, Y)])
