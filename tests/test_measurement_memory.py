"""Peak memory against cases small enough to follow by hand."""

import pytest
import torch
from torch import nn

from prunelab.core import PruneError
from prunelab.measurement import peak_memory


def test_a_linear_layer_makes_its_output():
    assert peak_memory(nn.Linear(1000, 2000), torch.randn(10, 1000)) == 10 * 2000 * 4


def test_what_is_no_longer_needed_is_written_off():
    # Made in turn: 80 kB, 80 kB (the first is alive still), then 0.4 kB once only the second is needed.
    model = nn.Sequential(nn.Linear(1000, 2000), nn.ReLU(), nn.Linear(2000, 10))
    assert peak_memory(model, torch.randn(10, 1000)) == 2 * 80_000


def test_in_place_and_views_take_nothing_more():
    model = nn.Sequential(nn.Linear(1000, 2000), nn.ReLU(inplace=True), nn.Unflatten(1, (40, 50)), nn.Flatten())
    assert peak_memory(model, torch.randn(10, 1000)) == 80_000


def test_a_residual_is_held_until_it_is_added():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(100, 100), nn.Linear(100, 100)

        def forward(self, x):
            y = self.a(x)
            return y + self.b(torch.relu_(self.b(y)))

    # Alive at once: y, the argument of the outer b, its result; then y, that result, and the sum.
    assert peak_memory(Residual(), torch.randn(5, 100)) == 3 * 5 * 100 * 4


def test_weights_inputs_and_constants_are_not_activations():
    class Adds(nn.Module):
        constant = torch.ones(1000)

        def forward(self, x):
            return (x.view(10, 100) + self.constant.view(10, 100)).view(-1)

    assert peak_memory(Adds(), torch.randn(1000)) == 4000


def test_it_grows_with_the_batch():
    model, example = nn.Linear(10, 10), torch.randn(64, 10)
    assert [peak_memory(model, example, batch_size=n) for n in (1, 8, 64)] == [40, 320, 2560]


def test_attention_is_seen_unfused():
    layer = nn.TransformerEncoderLayer(64, 4, 256, batch_first=True)
    assert peak_memory(layer, torch.randn(8, 50, 64)) > 3 * 8 * 50 * 64 * 4  # queries, keys and values at the least


def test_the_same_number_every_time_and_nothing_else_changed():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5)).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    example = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    assert len({peak_memory(model, example) for _ in range(3)}) == 1
    assert torch.equal(state, torch.get_rng_state())
    assert all(m.training for m in model.modules())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_inputs_the_model_cannot_take_are_refused():
    with pytest.raises(PruneError, match=r"Linear cannot run on inputs of \(2, 3\) torch.float32"):
        peak_memory(nn.Linear(4, 4), torch.randn(2, 3))


@pytest.mark.gpu
def test_on_a_gpu_the_allocator_is_asked(gpu):
    model = nn.Linear(1000, 2000).to(gpu)
    assert peak_memory(model, torch.randn(10, 1000)) >= 80_000
