"""A small residual network: what one layer adds to, another has to match."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from .networks import counts, seeded


class Residual(nn.Module):
    """relu(x + f(x)), f two 3x3 convolutions with BatchNorm; where the size changes, x passes a 1x1 convolution."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        same = before == after and stride == 1
        self.skip = nn.Identity() if same else nn.Conv2d(before, after, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(n, before, h, w) -> (n, after, h / stride, w / stride)."""
        inner = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.skip(x) + self.bn2(self.conv2(inner)))


class ResidualNetwork(nn.Module):
    """A stem, residual blocks that halve the picture from the second on, an average, a linear layer."""

    def __init__(self, classes: int, channels: int, widths: tuple[int, ...]):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0])
        sizes = zip((widths[0], *widths), widths, strict=False)
        self.blocks = nn.ModuleList(Residual(a, b, stride=1 + (i > 0)) for i, (a, b) in enumerate(sizes))
        self.fc = nn.Linear(widths[-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        """(n, channels, h, w) -> (n, classes)."""
        x = F.relu(self.norm(self.stem(images)))
        for block in self.blocks:
            x = block(x)
        return self.fc(x.mean((2, 3)))


def resnet(
    classes: int = 10, channels: int = 1, widths: tuple[int, ...] = (32, 48, 64), *, seed: int = 0
) -> ResidualNetwork:
    """A small residual network, a block for each of `widths`; images (n, channels, h, w) -> (n, classes).

    The seed decides the initial weights; torch's global generator is left alone. Raises ZooError for a size that is
    no count. He et al. 2016, arXiv 1512.03385.
    """
    counts(classes=classes, channels=channels, **{f"widths[{i}]": size for i, size in enumerate(widths)})
    return seeded(seed, lambda: ResidualNetwork(classes, channels, tuple(widths)))
