"""The plain networks: named layers, any image size, initial weights that depend on the seed alone."""

import pytest
import torch

from prunelab import zoo


@pytest.mark.parametrize(("build", "parameters"), [(zoo.cnn, 82_282), (zoo.mlp, 108_210)])
def test_parameter_counts(build, parameters):
    assert sum(p.numel() for p in build().parameters()) == parameters


@pytest.mark.parametrize("size", [8, 9, 16, 28, 32])
@pytest.mark.parametrize("channels", [1, 3])
def test_cnn_takes_any_image_from_8_pixels(size, channels):
    model = zoo.cnn(classes=7, channels=channels, width=4)
    assert model(torch.randn(2, channels, size, size)).shape == (2, 7)


def test_mlp_flattens_its_input():
    model = zoo.mlp(classes=3, inputs=2 * 5 * 5, hidden=(6,))
    assert model(torch.randn(4, 2, 5, 5)).shape == (4, 3)
    assert zoo.mlp(inputs=4, hidden=())(torch.randn(2, 4)).shape == (2, 10)


def test_layers_have_names():
    convolutional = ["conv1", "bn1", "conv2", "bn2", "conv3", "bn3", "conv4", "bn4", "fc1", "fc2"]
    assert [name for name, m in zoo.cnn().named_children() if [*m.parameters()]] == convolutional
    assert [name for name, m in zoo.mlp().named_children() if [*m.parameters()]] == ["fc1", "fc2", "fc3"]


@pytest.mark.parametrize("build", [zoo.cnn, zoo.mlp])
def test_the_seed_alone_decides_the_weights(build):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = build(seed=5).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second, other = build(seed=5).state_dict(), build(seed=6).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["fc1.weight"], other["fc1.weight"])
    assert torch.equal(build().state_dict()["fc1.weight"], build(seed=0).state_dict()["fc1.weight"])


def test_weights_are_made_on_the_cpu_even_under_another_default_device():
    with torch.device("meta"):
        assert zoo.cnn(width=2).fc1.weight.device.type == "cpu"


@pytest.mark.parametrize("wrong", [0, -1, 2.5, "10", True])
def test_sizes_that_are_no_counts(wrong):
    with pytest.raises(zoo.ZooError, match=r"classes=.*at least 1"):
        zoo.cnn(classes=wrong)
    with pytest.raises(zoo.ZooError, match=r"hidden\[1\]=.*at least 1"):
        zoo.mlp(hidden=(3, wrong))
