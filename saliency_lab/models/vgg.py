"""VGG-11 with batch normalisation, for small images."""

from __future__ import annotations

from torch import Tensor, nn

from saliency_lab.models.layers import Shape


class VGG(nn.Module):
    """3×3 convolutions with max-pooling between the stages, mean pooling, one linear layer."""

    def __init__(self, stages: tuple[tuple[int, ...], ...], num_classes: int, channels_in: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for stage, widths in enumerate(stages):
            if stage > 0:
                layers.append(nn.MaxPool2d(2, ceil_mode=True))
            for width in widths:
                layers += [
                    nn.Conv2d(channels_in, width, 3, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                ]
                channels_in = width
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels_in, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of normalised images (N, C, H, W)."""
        return self.fc(self.pool(self.features(x)).flatten(1))

    @property
    def cam_layer(self) -> nn.Module:
        """The last ReLU of the features."""
        return self.features[-1]


def vgg11_bn(num_classes: int, input_shape: Shape) -> nn.Module:
    """VGG-11 with batch normalisation and one linear layer, for 32×32; Simonyan & Zisserman, ICLR 2015."""
    return VGG(((64,), (128,), (256, 256), (512, 512), (512, 512)), num_classes, input_shape[0])
