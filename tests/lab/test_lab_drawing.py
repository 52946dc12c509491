"""The drawing one can touch: its numbers are the library's, and nothing of it needs a kernel, a script or a network."""

from __future__ import annotations

import base64
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

import prunelab as pl
from prunelab import lab, zoo
from prunelab.lab.show import drawing
from prunelab.lab.show.readings import read
from prunelab.lab.workshop import course


@pytest.fixture
def data():
    """A few digits."""
    whole = zoo.load("digits")
    return SimpleNamespace(train=TensorDataset(*whole.train[:64]), valid=TensorDataset(*whole.valid[:40]))


@pytest.fixture
def model():
    """A network of the course's shape, an eighth as wide."""
    return zoo.cnn(width=4)


def unpacked(html):
    """The facts and the signed bytes that the page gets."""
    facts, signed = (re.search(rf'data-{name}="data:[^,]+,([^"]+)"', html)[1] for name in ("facts", "weights"))
    return json.loads(base64.b64decode(facts)), torch.tensor(np.frombuffer(base64.b64decode(signed), np.int8).copy())


def test_the_weights_that_go_are_those_of_the_librarys_masks(model, data, shown):
    lab.drawing(model, data)
    facts, signed = unpacked(shown[0][0]["text/html"])
    groups, scores = pl.granularity.weights(model), pl.criteria.magnitude(model)
    flat = torch.cat([w.detach().flatten() for w in pl.prunable(model).values()])
    assert torch.equal(signed.sign().float(), flat.sign())
    for percent in (0, 1, 37, 70, 98):
        keep = pl.allocate(scores, groups, percent / 100)
        masks = pl.expand(model, groups, keep)
        stays = torch.cat([masks[name].flatten() for name in pl.prunable(model)])
        assert torch.equal(signed.abs().int() > percent, stays)
        assert facts["ways"][0]["weights"][percent] == sum(row.kept for row in pl.report(groups, keep).layers)


def test_the_filters_that_go_are_those_that_shrink_removes(model, data, shown):
    lab.drawing(model, data)
    facts, _ = unpacked(shown[0][0]["text/html"])
    way = facts["ways"][1]
    images = data.valid[:2][0]
    groups, scores = pl.granularity.filters(model, images), pl.criteria.magnitude(model)
    assert way["steps"] == 4
    for step in range(way["steps"]):
        keep = pl.allocate(scores, groups, step / 4, "layer")
        small = pl.shrink(model, groups, keep)
        assert {name: [n > step for n in leaves] for name, leaves in facts["leaves"].items()} == {
            name: k.tolist() for name, k in keep.items()
        }
        assert way["parameters"][step] == sum(p.numel() for p in small.parameters())
        assert way["bytes"][step] == pl.measurement.stored_bytes(small)["dense"]
        assert way["macs"][step] == pl.measurement.macs(small, images[:1])
        # What the browser draws has the shrunk layers' shapes.
        for layer, weight in zip(facts["layers"], pl.prunable(small).values(), strict=True):
            rows = [n > step for n in facts["leaves"].get(layer["filters"], [9] * layer["rows"])]
            columns = [n > step for n in facts["leaves"].get(layer["inputs"], [9] * layer["columns"])]
            assert sum(rows) * sum(columns) * layer["kernel"][0] * layer["kernel"][1] == weight.numel()


def test_what_is_read_is_what_the_pruned_network_reads(model, data):
    found = lab.drawing(model, data)
    assert found.weights.stale[0] == read(model, data.valid)
    assert found.weights.stale[70] == read(lab.pruned(model, "global", 0.7), data.valid)
    small = pl.shrink(model, groups := pl.granularity.filters(model, data.valid[:2][0]),
                      pl.allocate(pl.criteria.magnitude(model), groups, 0.75, "layer"))  # fmt: skip
    pl.recovery.recalibrate_batchnorm(small, data.train[:])
    assert found.filters.accuracy(0.75) == pl.measurement.evaluate(small, data.valid).accuracy


def test_the_model_is_left_as_it_was_and_twice_is_the_same_to_the_letter(model, data, shown):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    lab.drawing(model, data)
    lab.drawing(model, data)
    assert shown[0] == shown[1]
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_page_without_scripts_styles_and_our_attributes_says_everything(model, data, shown):
    found = lab.drawing(model, data)
    html = shown[0][0]["text/html"]
    bare = re.sub(r"<(script|style|svg)\b.*?</\1>| (?:class|data-\w+|style)=\"[^\"]*\"", "", html, flags=re.S)
    assert "Run this cell to make it move." in bare
    assert re.search(r'<img alt="The network drawn [^"]+" src="data:image/png;base64,', bare)
    for way in (found.weights, found.filters):
        for step, reading in way.fresh.items():
            assert f"{way.weights[step]:,}" in bare
            assert f"{way.sizes[step][0]:,}" in bare
            assert lab.measured(reading.accuracy, "%") in bare


def test_the_page_asks_nobody(model, data, shown):
    lab.drawing(model, data)
    outside = re.sub(r'data:[\w/+-]+;base64,[^"]+', "", shown[0][0]["text/html"])
    assert not re.search(r"https?:|fetch\(|import\b|XMLHttp|@import|url\((?!\$)", outside)


def test_what_nbval_compares_does_not_depend_on_the_machine(model, data, shown):
    """Another network of the same shape, which every number of the drawing but the counts depends on."""
    from configparser import RawConfigParser

    rules = RawConfigParser()
    rules.read("tests/nbval_sanitize.cfg", encoding="utf-8")
    for net in (model, zoo.cnn(width=4, seed=1)):
        lab.drawing(net, data)
    texts = [bundle["text/html"] for bundle, _ in shown]
    for section in rules.sections():
        texts = [re.sub(rules[section]["regex"], rules[section]["replace"], text) for text in texts]
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("net", "says"),
    [
        (lambda: zoo.mlp(), "MLP|Sequential has no convolution"),
        (lambda: zoo.cnn(width=80), r"weights; at most 400,000 fit in the page"),
    ],
)
def test_what_cannot_be_drawn_is_refused(net, says, data, shown):
    with pytest.raises(pl.PruneError, match=says):
        lab.drawing(net(), data)
    assert shown == []


def test_a_network_without_batchnorm_is_drawn_with_what_there_is(data, shown):
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(4 * 14 * 14, 10)
    )
    found = lab.drawing(net, data)
    assert found.weights.fresh == {}
    assert "no BatchNorm" in shown[0][0]["text/plain"]


def test_the_stored_drawings_are_at_most_a_megabyte():
    stored = [
        "".join(out["data"]["text/html"])
        for path in course.notebooks()
        for cell in course.read(path).cells
        for out in cell.get("outputs", [])
        if "pl-drawing" in "".join(out.get("data", {}).get("text/html", ""))
    ]
    assert stored
    assert max(map(len, stored)) < 1_000_000
    script = (drawing.HERE / "drawing.js").read_text(encoding="utf-8")
    assert all(script in html for html in stored), "publish the notebook again: its script is an older one"
