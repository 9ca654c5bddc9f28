"""scikit-learn's handwritten digits, brought to the size of MNIST."""

from __future__ import annotations

import torch

from saliency_lab.data.images import Split, stratified_order


def read_digits() -> tuple[Split, Split, tuple[str, ...]]:
    """1,797 digits of 8×8, up-sampled bilinearly to 28×28; a fixed, stratified fifth is the test part.

    Alpaydin & Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998. Embedded: nothing is
    downloaded.
    """
    from sklearn.datasets import load_digits

    small, labels = load_digits(return_X_y=True)
    grey = torch.from_numpy(small).float().reshape(-1, 1, 8, 8) / 16
    large = torch.nn.functional.interpolate(grey, size=(28, 28), mode="bilinear", align_corners=False)
    both = Split((large * 255).round().to(torch.uint8), torch.from_numpy(labels).long())
    order = stratified_order(both.labels, 0, "digits test")
    count = round(0.2 * len(both))
    train, test = both.select(order[count:].sort().values), both.select(order[:count].sort().values)
    return train, test, tuple("0123456789")
