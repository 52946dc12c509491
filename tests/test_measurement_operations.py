"""MACs against hand counts and torchvision's published figures."""

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from prunelab.core import PruneError
from prunelab.measurement import macs


def test_linear_and_convolution_by_hand():
    assert macs(nn.Linear(30, 20), torch.randn(5, 30)) == 600
    grouped = nn.Conv2d(4, 8, 3, groups=2, padding=1, stride=2)
    assert macs(grouped, torch.randn(2, 4, 10, 12)) == (4 // 2) * 8 * 9 * (5 * 6)


def test_a_sample_is_the_same_in_any_batch():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(3 * 36, 5))
    assert macs(model, torch.randn(1, 1, 8, 8)) == macs(model, torch.randn(64, 1, 8, 8)) == 9 * 3 * 36 + 540


def test_zeros_are_multiplied_like_any_number():
    model = nn.Linear(30, 20)
    nn.init.zeros_(model.weight)
    assert macs(model, torch.randn(5, 30)) == 600


def encoder(tokens=50, width=64, hidden=256):
    projections, mlp, attention = 4 * width * width, 2 * width * hidden, 2 * tokens * width
    return nn.TransformerEncoderLayer(width, 4, hidden, batch_first=True), tokens * (projections + mlp + attention)


def test_kernels_that_fuse_are_not_missed():
    layer, expected = encoder()
    assert macs(layer, torch.randn(2, 50, 64)) == expected
    assert macs(nn.LSTM(32, 64, batch_first=True), torch.randn(2, 10, 32)) == 10 * 4 * 64 * (32 + 64)

    class Attention(nn.Module):
        def forward(self, x):
            return F.scaled_dot_product_attention(x, x, x)

    assert macs(Attention(), torch.randn(1, 4, 50, 64)) == 2 * 4 * 50 * 50 * 64


@pytest.mark.parametrize(
    ("build", "weights"),
    [
        (torchvision.models.resnet18, torchvision.models.ResNet18_Weights.IMAGENET1K_V1),
        (torchvision.models.mobilenet_v2, torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1),
        (torchvision.models.vit_b_16, torchvision.models.ViT_B_16_Weights.IMAGENET1K_V1),
    ],
)
def test_published_figures_are_met(build, weights):
    with torch.device("meta"):  # shapes alone: no arithmetic is done
        model, example = build(), torch.randn(1, 3, 224, 224)
    assert macs(model, example) / 1e9 == pytest.approx(weights.meta["_ops"], rel=0.005)


def test_inputs_may_be_several_or_by_keyword():
    class Two(nn.Linear):
        def forward(self, x, scale):
            return super().forward(x) * scale

    x = torch.randn(4, 3)
    assert macs(Two(3, 2), (x, torch.tensor(2.0))) == macs(Two(3, 2), {"x": x, "scale": x[:, :1]}) == 6


def test_model_and_torch_settings_are_as_before():
    layer, _ = encoder()
    layer.train()
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    state = torch.get_rng_state()
    hooks = len(layer._forward_hooks), len(torch.nn.modules.module._global_forward_hooks)
    for example in (torch.randn(2, 50, 64), torch.randn(2, 50, 63)):
        state = torch.get_rng_state()
        if example.shape[-1] == 63:
            with pytest.raises(PruneError, match=r"cannot run on inputs of \(1, 50, 63\)"):
                macs(layer, example)
        else:
            macs(layer, example)
        assert torch.backends.mha.get_fastpath_enabled()
        assert torch.backends.mkldnn.enabled == torch.backends.mkldnn.is_available()
        assert torch.backends.cudnn.enabled
        assert torch.backends.cuda.flash_sdp_enabled()
        assert layer.training
        assert layer.dropout.training
    assert torch.equal(state, torch.get_rng_state())
    assert hooks == (len(layer._forward_hooks), len(torch.nn.modules.module._global_forward_hooks))
    assert all(torch.equal(before[k], v) for k, v in layer.state_dict().items())


@pytest.mark.parametrize("example", [torch.zeros(0, 30), None, (), torch.tensor(1.0)])
def test_an_example_without_a_sample_is_refused(example):
    with pytest.raises(PruneError, match="the example holds no sample"):
        macs(nn.Linear(30, 20), example)
