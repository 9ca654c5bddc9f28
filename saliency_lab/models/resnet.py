"""The ResNets of He et al., CVPR 2016, for small images."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from saliency_lab.models.layers import Shape


class Residual(nn.Module):
    """relu(x + F(x)) with F two 3×3 convolutions; a 1×1 convolution on the way round where shapes differ."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.shortcut = (
            nn.Identity()
            if stride == 1 and channels_in == channels
            else nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )
        )
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, channels, H / stride, W / stride)."""
        return self.relu(self.shortcut(x) + self.body(x))


class ResNet(nn.Module):
    """A 3×3 stem, stages of residual blocks (each later stage at half the resolution), mean pooling."""

    def __init__(self, channels_in: int, widths: Sequence[int], depth: int, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels_in, widths[0], 3, padding=1, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(),
        )
        blocks = []
        width_in = widths[0]
        for stage, width in enumerate(widths):
            for block in range(depth):
                blocks.append(Residual(width_in, width, 2 if stage > 0 and block == 0 else 1))
                width_in = width
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(width_in, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of normalised images (N, C, H, W)."""
        return self.fc(self.pool(self.blocks(self.stem(x))).flatten(1))

    @property
    def cam_layer(self) -> nn.Module:
        """The last residual block."""
        return self.blocks[-1]


def resnet8(num_classes: int, input_shape: Shape) -> nn.Module:
    """CIFAR ResNet with 1 block per stage, 1×1 convolutions as shortcuts; after He et al., CVPR 2016.

    Widths 16, 32, 64. Section 4.2 of the paper pads with zeros where the width changes (option A), which
    needs no parameters; here a 1×1 convolution projects (option B).
    """
    return ResNet(input_shape[0], (16, 32, 64), 1, num_classes)


def resnet20(num_classes: int, input_shape: Shape) -> nn.Module:
    """CIFAR ResNet with 3 blocks per stage, 1×1 convolutions as shortcuts; after He et al., CVPR 2016.

    `resnet8` with three times the blocks: the paper's ResNet-20 but for the shortcuts (option B for A).
    """
    return ResNet(input_shape[0], (16, 32, 64), 3, num_classes)


def resnet18(num_classes: int, input_shape: Shape) -> nn.Module:
    """ResNet-18 (widths 64 to 512, 2 blocks per stage) with a stem for 32×32; He et al., CVPR 2016."""
    return ResNet(input_shape[0], (64, 128, 256, 512), 2, num_classes)
