"""Digits: fixed, split by scan, rendered without touching anybody's random numbers or sharing memory."""

import dataclasses
import time

import numpy as np
import pytest
import torch

from prunelab import zoo
from prunelab.zoo import data as module

SPLITS = ("train", "valid", "test")
ORIGINS = [504, 213, 1356, 851, 26]  # the first scans of the test split
MEANS = [0.21946819, 0.21788676, 0.21847313]  # of the pixels of each split


@pytest.fixture(scope="module")
def data():
    return zoo.load("digits")


def test_shapes_types_and_ranges(data):
    assert data.name == "digits"
    assert data.shape == (1, 16, 16)
    assert data.classes == tuple("0123456789")
    for split, scans in zip(SPLITS, (1000, 300, 497), strict=True):
        images, labels = getattr(data, split).tensors
        assert images.shape == (4 * scans, 1, 16, 16)
        assert images.dtype == torch.float32
        assert labels.dtype == torch.int64
        assert labels.unique().tolist() == list(range(10))
        assert images.isfinite().all()
        # Paper is 0 and ink 1, give or take five deviations of the noise.
        assert -0.8 < images.min() < 0 < 0.9 < images.max() < 1.8


def test_repr_says_what_it_is(data):
    text = repr(data)
    assert text == "Data('digits': 1x16x16 images of 10 classes; train 4000, valid 1200, test 1988)"


def test_splits_share_no_scan_and_use_them_all(data):
    scans = [set(data.origin[split].tolist()) for split in SPLITS]
    assert [len(s) for s in scans] == [1000, 300, 497]
    assert set.union(*scans) == set(range(1797))


def test_origin_leads_to_the_scan(data):
    originals, labels = zoo.scans()
    assert originals.shape == (1797, 8, 8)
    assert originals.min() == 0
    assert originals.max() == 1
    for split in SPLITS:
        images, own = getattr(data, split).tensors
        origin = data.origin[split]
        assert torch.equal(own, labels[origin])
        assert torch.equal(origin.bincount(minlength=1797).unique(), torch.tensor([0, 4]))
        # A view looks more like its own scan than like the average one: correlate 16x16 with 8x8 enlarged.
        large = torch.nn.functional.interpolate(originals[:, None], size=16, mode="bilinear")
        z = (large - large.mean(0)).flatten(1)
        own_score = (images.flatten(1) * z[origin]).sum(1).mean()
        other_score = (images.flatten(1) * z[origin.roll(1)]).sum(1).mean()
        assert own_score > 5 * other_score.abs()


def test_every_split_has_every_class_in_proportion(data):
    _, labels = zoo.scans()
    share = labels.bincount() / len(labels)
    for split in SPLITS:
        origin = data.origin[split].unique()
        assert ((labels[origin].bincount() - share * len(origin)).abs() <= 1).all()


def test_the_first_images_are_of_different_scans(data):
    assert len(data.origin["train"][:1000].unique()) == 1000


def test_four_views_of_a_scan_differ(data):
    images = data.train.tensors[0].reshape(4, 1000, 16, 16)
    for view in range(1, 4):
        assert ((images[0] - images[view]).abs().mean(dim=(1, 2)) > 0.1).all()


def test_two_renderings_are_equal_and_random_numbers_untouched(data):
    torch.manual_seed(3)
    np.random.seed(3)
    before, before_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()
    module._rendered.cache_clear()
    start = time.perf_counter()
    again = zoo.load("digits")
    assert time.perf_counter() - start < 2  # 0.15 s on a quiet machine
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], before_numpy)
    for split in SPLITS:
        for a, b in zip(getattr(data, split).tensors, getattr(again, split).tensors, strict=True):
            assert torch.equal(a, b)
        assert torch.equal(data.origin[split], again.origin[split])


def test_the_rendering_is_the_one_the_checkpoints_were_trained_on(data):
    """Written down once: whoever changes a constant of the rendering has to remake the checkpoints too."""
    assert data.origin["test"][:5].tolist() == ORIGINS
    means = [getattr(data, split).tensors[0].double().mean().item() for split in SPLITS]
    assert means == pytest.approx(MEANS, abs=1e-6)


def test_the_seed_of_the_caller_changes_nothing(data):
    torch.manual_seed(99)
    module._rendered.cache_clear()
    assert torch.equal(zoo.load("digits").test.tensors[0], data.test.tensors[0])


def test_writing_into_the_data_spoils_nothing_for_the_next_caller():
    first = zoo.load("digits")
    first.train.tensors[0].zero_()
    first.train.tensors[1].fill_(7)
    first.origin["train"].zero_()
    second = zoo.load("digits")
    assert second.train.tensors[0].std() > 0.1
    assert len(second.train.tensors[1].unique()) == 10
    assert len(second.origin["train"].unique()) == 1000


def test_data_is_frozen(data):
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.train = data.test


@pytest.mark.parametrize("name", ["mnist", "Digits", "", 3, None, ["digits"]])
def test_an_unknown_name_is_told_the_known_ones(name):
    with pytest.raises(zoo.ZooError, match="digits, fashion-mnist, cifar10") as caught:
        zoo.load(name)
    assert repr(name) in str(caught.value)


def test_more_views_are_of_the_training_scans_and_new(data):
    more = zoo.data.more_views(2)
    images, labels = more.tensors
    assert images.shape == (2000, 1, 16, 16)
    own, own_labels = data.train.tensors
    assert torch.equal(labels, own_labels[:1000].repeat(2))
    assert ((images[:1000] - own[:1000]).abs().mean(dim=(1, 2, 3)) > 0.05).all(), "pictures of the set itself"
    assert ((images[:1000] - images[1000:]).abs().mean(dim=(1, 2, 3)) > 0.05).all(), "the same picture twice"
    assert torch.equal(zoo.data.more_views(1).tensors[0], images[:1000])
    assert not torch.equal(zoo.data.more_views(1, seed=2).tensors[0], images[:1000])
