"""Exactly the k that a stable sort would take, through every branch, whatever the numbers."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from prunelab import selection
from prunelab.selection import Values, _kth_lowest, lowest, lowest_by_bits, lowest_where_gone


@pytest.fixture(params=[(1 << 21, 1 << 20, 1 << 17), (16, 8, 5), (3, 64, 7), (0, 1, 1), (1, 4, 64)], ids=str)
def sizes(request, monkeypatch):
    """The real thresholds, then tiny ones, so that small inputs walk down every branch."""
    for name, size in zip(("SORT_AT_MOST", "SAMPLE", "CHUNK"), request.param, strict=True):
        monkeypatch.setattr(selection, name, size)
    return request.param


def by_sorting(values, k):
    flat = torch.cat([v.reshape(-1).double() for v in values])
    gone = torch.zeros(len(flat), dtype=torch.bool)
    gone[flat.sort(stable=True).indices[: max(k, 0)]] = True
    parts = gone.split([v.numel() for v in values])
    return [part.view(v.shape) for v, part in zip(values, parts, strict=True)]


def check(values, k):
    copies = [v.clone() for v in values]
    expected = by_sorting(values, k)
    found = [lowest(values, k)]
    if 0 < k < sum(v.numel() for v in values) and {v.dtype for v in values} in FLOATS:
        found.append(lowest_by_bits([v.detach() for v in values], k))  # what an accelerator would do
    for got in found:
        assert [g.dtype for g in got] == [torch.bool] * len(values)
        assert all(torch.equal(g, e) for g, e in zip(got, expected, strict=True)), (k, values)
    assert all(torch.equal(v, c) for v, c in zip(values, copies, strict=True)), "the input was changed"


FLOATS = [{t} for t in (torch.float16, torch.bfloat16, torch.float32, torch.float64)]


def some_k(n):
    return sorted({0, 1, 2, n // 3, n // 2, n - 2, n - 1, n} & set(range(n + 1)))


def numbers(kind, shape, dice):
    plain = torch.randn(shape, generator=dice)
    few = torch.randint(-2, 3, shape, generator=dice).float()
    return {
        "distinct": plain,
        "few": few,
        "constant": torch.zeros(shape),
        "mostly zero": plain * (torch.rand(shape, generator=dice) < 0.2),
        "infinities": torch.where(few.abs() == 2, few * math.inf, plain),
        "only infinities": torch.where(few > 0, math.inf, -math.inf),
        "signed zeros": few.clamp(0, 1) * torch.where(plain > 0, 1.0, -1.0),
        "skewed": plain.mul(8).exp(),
    }[kind]


KINDS = ["distinct", "few", "constant", "mostly zero", "infinities", "only infinities", "signed zeros", "skewed"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_as_a_stable_sort(sizes, kind, dtype):
    dice = torch.Generator().manual_seed(0)
    for shapes in ([(60,)], [(7, 9), (0,), (3, 2, 5)], [(0, 3), (1,), (40,), ()]):
        values = [numbers(kind, s, dice).to(dtype) for s in shapes]
        for k in some_k(sum(v.numel() for v in values)):
            check(values, k)


def test_many_random_cases(sizes):
    dice = torch.Generator().manual_seed(1)
    for case in range(40):
        lengths = torch.randint(0, 50, (int(torch.randint(1, 5, (), generator=dice)),), generator=dice).tolist()
        values = [numbers(KINDS[case % len(KINDS)], (n,), dice) for n in lengths]
        check(values, int(torch.randint(0, sum(lengths) + 1, (), generator=dice)))


@pytest.mark.parametrize("stride", [2, 3, 4, 8, 9])
def test_data_in_step_with_the_sampling(sizes, stride):
    values = torch.arange(120.0)
    values[::stride] = -1000 - values[::stride]  # what the sample may see has nothing to do with the rest
    for k in some_k(120):
        check([values], k)
        check([-values, values], k)


def test_rows_and_columns_of_different_sizes(sizes):
    table = torch.arange(12.0)[:, None] * torch.ones(12) + torch.arange(12.0) * 100
    for k in range(0, 145, 16):
        check([table], k)


def test_not_contiguous(sizes):
    dice = torch.Generator().manual_seed(2)
    table = torch.randint(0, 4, (6, 10), generator=dice).float()
    for view in (
        table.t(),
        table[:, ::3],
        table.flip(0),
        table[2:3].expand(5, 10),
        table.view(6, 5, 2).permute(2, 0, 1),
    ):
        for k in some_k(view.numel()):
            check([view, table], k)


def test_several_types_at_once(sizes):
    dice = torch.Generator().manual_seed(3)
    plain = torch.rand(30, generator=dice, dtype=torch.float64)
    types = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    for values in ([plain.to(t) for t in types], [plain.to(t) for t in types[::-1]], [plain.half(), plain.bfloat16()]):
        for k in range(0, sum(v.numel() for v in values) + 1, 7):
            check(values, k)


def test_neighbours_that_differ_in_the_last_bit(sizes):
    for dtype in (torch.float32, torch.float64, torch.float16):
        one = torch.ones((), dtype=dtype)
        values = [torch.stack([torch.nextafter(one, one + 1), one, torch.nextafter(one, one - 1)] * 9)]
        for k in range(28):
            check(values, k)


def test_whole_numbers_and_parameters(sizes):
    check([torch.tensor([3, 1, 2, 1])], 2)
    check([torch.nn.Parameter(torch.tensor([3.0, 1, 2, 1]))], 2)


def test_beyond_the_ends(sizes):
    values = [torch.tensor([3.0, 1.0]), torch.tensor([])]
    assert [m.tolist() for m in lowest(values, -1)] == [[False, False], []]
    assert [m.tolist() for m in lowest(values, 99)] == [[True, True], []]
    assert lowest([], 0) == []


@pytest.mark.parametrize(("low", "high"), [(-math.inf, math.inf), (2.0, 2.0), (1.0, 9.0), (5.0, 9.0), (-1.0, 0.0)])
def test_kth_by_hand(sizes, low, high):
    """Whatever the sample made believe."""
    values = Values([torch.tensor([5.0, 2.0, 2.0]), torch.tensor([2.0, 9.0, 1.0])])
    assert [_kth_lowest(values, k, low, high) for k in range(1, 7)] == [1, 2, 2, 2, 5, 9]


@pytest.mark.parametrize("kind", ["distinct", "few", "mostly zero", "infinities"])
def test_above_the_real_threshold(kind):
    dice = torch.Generator().manual_seed(4)
    values = [numbers(kind, (1700, 1000), dice), numbers(kind, (600_001,), dice)]
    assert sum(v.numel() for v in values) > selection.SORT_AT_MOST
    for k in (1, 1_150_000):
        check(values, k)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_what_is_gone_goes_first(sizes, kind, dtype):
    dice = torch.Generator().manual_seed(6)
    values = [numbers(kind, s, dice).nan_to_num(posinf=9, neginf=-9) for s in ((7, 9), (0,), (30,))]
    values = [v.to(dtype) if dtype == torch.int64 else numbers(kind, v.shape, dice).to(dtype) for v in values]
    kept = [torch.rand(v.shape, generator=dice) < 0.6 for v in values]
    marked = [lowest_where_gone(v, m) for v, m in zip(values, kept, strict=True)]
    for k in some_k(93):
        got, expected = lowest(values, k, kept), by_sorting(marked, k)
        assert all(torch.equal(g, e) for g, e in zip(got, expected, strict=True)), (k, values)


class Waits(TorchDispatchMode):
    """Counts the operations whose result the host needs: on an accelerator it would wait for each."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "masked_select", "unique")
        return func(*args, **(kwargs or {}))


def test_an_accelerator_is_never_waited_for():
    dice = torch.Generator().manual_seed(5)
    values = [torch.randn(50, generator=dice) for _ in range(9)]
    with Waits() as waits:
        lowest_by_bits(values, 200)
    assert waits.count == 0
    with Waits() as waits:
        float(values[0].sum())
    assert waits.count == 1, "or else it could not fail"


def test_a_tensor_elsewhere_goes_by_bits(monkeypatch):
    """A meta tensor stands for one on an accelerator: it is no CPU tensor."""
    seen = []
    monkeypatch.setattr(selection, "lowest_by_bits", lambda values, k: seen.append(k) or values)
    lowest([torch.empty(5, device="meta")], 2)
    assert seen == [2]
