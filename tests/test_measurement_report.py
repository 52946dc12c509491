"""`measure`: everything at once, refusals before any work, and a model left as it was."""

import copy
import math
import re

import pytest
import torch
from torch import nn

import prunelab.measurement as measurement
from prunelab.core import PruneError
from prunelab.masking import apply, bake
from prunelab.measurement import compare, count, evaluate, macs, measure, peak_memory, stored_bytes


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


@pytest.fixture
def data():
    torch.manual_seed(1)
    return torch.randn(100, 1, 8, 8), torch.randint(0, 3, (100,))


def test_each_field_is_what_its_own_function_says(data):
    model = network()
    found = measure(model, data, rounds=7)
    judged = evaluate(model, data)
    assert (found.accuracy, found.loss, found.n) == (judged.accuracy, judged.loss, 100)
    assert found.interval == judged.interval
    assert (found.parameters, found.nonzero) == count(model)
    assert found.bytes == stored_bytes(model)
    assert found.macs == macs(model, data[0])
    assert found.peak_memory == peak_memory(model, data[0][:64])
    assert found.batch == found.latency["cpu"].batch == 64
    assert set(found.latency) == ({"cpu", "cuda"} if torch.cuda.is_available() else {"cpu"})
    assert found.latency["cpu"].p10 <= found.latency["cpu"].p50 <= found.latency["cpu"].p90


def test_zeroed_weights_cost_the_same_macs_and_removed_ones_do_not(data):
    dense, zeroed, removed = network(), network(), network()
    with torch.no_grad():
        zeroed[0].weight[:2] = 0
    removed[0], removed[1], removed[4] = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(72, 3)
    dense, zeroed, removed = (measure(m, data, rounds=7) for m in (dense, zeroed, removed))
    assert dense.macs == zeroed.macs == 2 * removed.macs
    assert dense.parameters == zeroed.parameters > removed.parameters
    assert dense.nonzero == zeroed.nonzero + 18
    assert zeroed.sparsity == pytest.approx(1 - zeroed.nonzero / zeroed.parameters)
    assert dense.bytes["dense"] == zeroed.bytes["dense"]
    assert zeroed.bytes["csr"] < dense.bytes["csr"]


def test_without_data_all_but_accuracy(data):
    found = measure(network(), None, example=data[0], batch_size=1, rounds=7)
    assert (found.accuracy, found.interval, found.loss, found.n) == (None, None, None, 0)
    assert found.batch == 1
    assert found.macs > 0
    assert "accuracy" not in str(found)


def test_an_example_replaces_the_data_s_inputs_for_all_but_accuracy(data):
    found = measure(network(), data, example=torch.randn(2, 1, 8, 8), rounds=7)
    assert (found.n, found.batch) == (100, 2)


def test_splits_and_formats_can_be_chosen(data):
    class Data:
        train = valid = tuple(t[:50] for t in data)
        test = data

    found = measure(network(), Data(), formats=("csr",), devices=("cpu",), rounds=7)
    assert (found.n, list(found.bytes)) == (100, ["csr"])
    assert measure(network(), Data(), split="valid", rounds=7).n == 50


def test_the_model_is_as_it_was(data):
    model = network().train()
    model[1].eval()
    model(data[0]).sum().backward()
    seen = []
    handle = model.register_forward_hook(lambda module, *_: seen.append(module.training))
    before, grads = copy.deepcopy(model.state_dict()), [p.grad.clone() for p in model.parameters()]
    parameters, state = list(model.parameters()), torch.get_rng_state()
    measure(model, data, rounds=7)
    assert [m.training for m in model] == [True, False, True, True, True]
    assert seen
    assert not any(seen)
    assert list(model._forward_hooks) == [handle.id]
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert all(torch.equal(g, p.grad) for g, p in zip(grads, model.parameters(), strict=True))
    assert torch.equal(state, torch.get_rng_state())


def test_masks_are_refused_by_name_before_the_model_runs(data):
    model = network()
    apply(model, {"0.weight": torch.rand(4, 1, 3, 3) > 0.5, "4.weight": torch.rand(3, 144) > 0.5})
    ran = []
    model.register_forward_hook(lambda *_: ran.append(1))
    with pytest.raises(PruneError, match=r"wears masks, on 0.weight, 4.weight.*pl.bake\(model\)"):
        measure(model, data)
    assert not ran
    assert measure(bake(model), data, rounds=7).nonzero < 487


def test_nan_is_refused_by_name(data):
    model = network()
    with torch.no_grad():
        model[4].weight[0, 0] = math.nan
    with pytest.raises(PruneError, match=r"4.weight \(3, 144\) of Sequential holds NaN"):
        measure(model, data)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"data": None}, "nothing to run the model on: give data, or example="),
        ({"data": []}, "empty"),
        ({"data": (torch.zeros(0, 1, 8, 8), torch.zeros(0, dtype=torch.long))}, "empty"),
        ({"data": (torch.zeros(4, 1, 8, 8), torch.full((4,), 7))}, r"outputs are \(4, 3\), the labels \(4,\)"),
        (
            {"data": (torch.zeros(4, 1, 9, 9), torch.zeros(4, dtype=torch.long))},
            r"cannot run on inputs of \(4, 1, 9, 9\)",
        ),
        ({"formats": ("tar",)}, r"formats=\('tar',\)"),
        ({"devices": ("tpu",)}, r"devices=\('tpu',\)"),
        ({"devices": "cpu"}, r"devices='cpu': give a tuple"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"threads": True}, "threads=True"),
        ({"rounds": 1}, "rounds=1: give a whole number of at least 7"),
    ],
)
def test_bad_input_is_refused_and_the_mode_comes_back(data, options, says):
    model = network().train()
    with pytest.raises(PruneError, match=says):
        measure(model, **{"data": data, **options})
    assert all(m.training for m in model.modules())


def test_compare_hangs_on_measure():
    assert measure.compare is compare is measurement.compare


def test_it_reads_as_text_and_as_a_table_with_row_headers(data):
    found = measure(network(), data, rounds=7)
    assert repr(found) == str(found)
    assert re.search(r"^accuracy +\d+\.\d % \[\d+\.\d, \d+\.\d\] of 100$", str(found), re.M)
    assert re.search(
        r"^latency, cpu +[\d.]+ (s|ms|µs) \[[\d.]+, [\d.]+\] \(batch 64, 1 thread, cpu\)$", str(found), re.M
    )
    page = found._repr_html_()
    assert page.count('scope="row"') == len(str(found).splitlines()) - 1
    versus = compare({"<dense>": network(), "b": network()}, data, rounds=7)
    assert re.search(r"^b +[\d.]+ (s|ms|µs) \[.*\] +[\d.]+x \[[\d.]+, [\d.]+\]$", str(versus), re.M)
    assert "&lt;dense&gt;" in versus._repr_html_()


@pytest.mark.gpu
def test_a_gpu_is_timed_on_a_copy(data, gpu):
    model = network()
    found = measure(model, data, rounds=7)
    assert found.latency[gpu.type].device == gpu.type
    assert all(p.device.type == "cpu" for p in model.parameters())
