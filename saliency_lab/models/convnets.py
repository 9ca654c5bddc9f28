"""The small convolutional networks of the literature; `cam_layer` is the last rectified convolution."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from saliency_lab.models.layers import Shape


class ConvNet(nn.Module):
    """Convolutional `features`, then a `classifier` of their flattened output."""

    def __init__(
        self, features: OrderedDict[str, nn.Module], classifier: OrderedDict[str, nn.Module]
    ) -> None:
        super().__init__()
        self.features = nn.Sequential(features)
        self.classifier = nn.Sequential(classifier)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of normalised images (N, C, H, W)."""
        return self.classifier(self.features(x).flatten(1))

    @property
    def cam_layer(self) -> nn.Module:
        """The last ReLU of the features: the deepest map that keeps its place in the image."""
        return [module for module in self.features if isinstance(module, nn.ReLU)][-1]


def _flat_size(features: OrderedDict[str, nn.Module], input_shape: Shape) -> int:
    with torch.no_grad():
        return nn.Sequential(features).eval()(torch.zeros(1, *input_shape)).numel()


def small_cnn(num_classes: int, input_shape: Shape) -> nn.Module:
    """Two strided convolutions (16 and 32 of 4×4) and one hidden layer of 100; Wong & Kolter, ICML 2018."""
    features = OrderedDict[str, nn.Module](
        conv1=nn.Conv2d(input_shape[0], 16, 4, stride=2, padding=1),
        relu1=nn.ReLU(),
        conv2=nn.Conv2d(16, 32, 4, stride=2, padding=1),
        relu2=nn.ReLU(),
    )
    classifier = OrderedDict[str, nn.Module](
        fc1=nn.Linear(_flat_size(features, input_shape), 100),
        relu3=nn.ReLU(),
        fc2=nn.Linear(100, num_classes),
    )
    return ConvNet(features, classifier)


def sgt_cnn(num_classes: int, input_shape: Shape) -> nn.Module:
    """Two 3×3 convolutions (32, 64), max-pooling, dropout, a layer of 128; Ismail et al., NeurIPS 2021."""
    features = OrderedDict[str, nn.Module](
        conv1=nn.Conv2d(input_shape[0], 32, 3),
        relu1=nn.ReLU(),
        conv2=nn.Conv2d(32, 64, 3),
        relu2=nn.ReLU(),
        pool=nn.MaxPool2d(2),
        drop1=nn.Dropout(0.25),
    )
    classifier = OrderedDict[str, nn.Module](
        fc1=nn.Linear(_flat_size(features, input_shape), 128),
        relu3=nn.ReLU(),
        drop2=nn.Dropout(0.5),
        fc2=nn.Linear(128, num_classes),
    )
    return ConvNet(features, classifier)


def lenet5(num_classes: int, input_shape: Shape) -> nn.Module:
    """LeNet-5 with ReLU and max-pooling; LeCun et al., Proceedings of the IEEE, 1998."""
    features = OrderedDict[str, nn.Module](
        conv1=nn.Conv2d(input_shape[0], 6, 5, padding=2),
        relu1=nn.ReLU(),
        pool1=nn.MaxPool2d(2),
        conv2=nn.Conv2d(6, 16, 5),
        relu2=nn.ReLU(),
        pool2=nn.MaxPool2d(2),
    )
    classifier = OrderedDict[str, nn.Module](
        fc1=nn.Linear(_flat_size(features, input_shape), 120),
        relu3=nn.ReLU(),
        fc2=nn.Linear(120, 84),
        relu4=nn.ReLU(),
        fc3=nn.Linear(84, num_classes),
    )
    return ConvNet(features, classifier)
