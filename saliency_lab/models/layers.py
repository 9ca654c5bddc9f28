"""Normalisation as a layer, and the layer that a model declares for CAM methods."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from saliency_lab._common.arguments import check_count, check_numbers
from saliency_lab._common.errors import InputError, unknown_name
from saliency_lab._common.inference import check_module

Shape = tuple[int, int, int]
"""Channels, height and width of an image."""


class Normalised(nn.Module):
    """A model of images in [0, 1] from a `net` that expects (x − mean) / std, channel by channel.

    Parameters
    ----------
    net : nn.Module
        Takes normalised images and returns logits.
    mean, std : float or sequence of float
        One value, or one per channel, in units of [0, 1]; std > 0.

    Raises
    ------
    InputError
        If `net` is no torch module (whose weights a function that calls one would hide), or a value is out of
        range.

    Examples
    --------
    >>> model = Normalised(nn.Flatten(), mean=0.5, std=0.25)
    >>> model(torch.tensor([[[[0.5, 1.0]]]]))
    tensor([[0., 2.]])
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, net: nn.Module, mean: float | Sequence[float] = 0.0, std: float | Sequence[float] = 1.0
    ) -> None:
        super().__init__()
        check_module(net, "net")
        first = next(net.parameters(), None)
        device = None if first is None else first.device
        for name, values in (("mean", mean), ("std", std)):
            check_numbers(values.squeeze() if isinstance(values, Tensor) else values, name)
        self.register_buffer("mean", _by_channel("mean", mean, device))
        self.register_buffer("std", _by_channel("std", std, device))
        if not (torch.isfinite(self.mean).all() and torch.isfinite(self.std).all() and (self.std > 0).all()):
            raise InputError(f"mean must be finite and std finite and above 0, not mean={mean}, std={std}")
        if (self.mean > 1).any():
            raise InputError(
                f"mean must be in units of [0, 1], as images are, not mean={mean}; divide mean and std by 255"
            )
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits of images.

        Parameters
        ----------
        x : Tensor
            Images (N, C, H, W) in [0, 1].

        Returns
        -------
        Tensor
            Logits (N, K).
        """
        return self.net(self.normalise(x))

    def normalise(self, x: Tensor) -> Tensor:
        """Compute (x − mean) / std, channel by channel.

        Parameters
        ----------
        x : Tensor
            Images (N, C, H, W) in [0, 1].

        Returns
        -------
        Tensor
            Normalised images (N, C, H, W).
        """
        return ((x - self.mean) / self.std).to(x.dtype)


class BinaryLogits(nn.Module):
    """The logits of both classes from a `net` that returns one logit z per image, that of class 1.

    They are (−z/2, z/2): their softmax is the sigmoid of z, and their difference is z.

    Parameters
    ----------
    net : nn.Module
        Returns z, of shape (N,) or (N, 1), without the final sigmoid; or, with `output`, one z per label.
    output : int, optional
        The column of the outputs (N, K) of a multi-label network to explain, as "label absent" and "present".

    Raises
    ------
    InputError
        If `net` is no torch module, or returns another shape.

    Examples
    --------
    >>> model = BinaryLogits(nn.Flatten(0))
    >>> model(torch.tensor([[3.0], [-1.0]]))
    tensor([[-1.5000,  1.5000],
            [ 0.5000, -0.5000]])
    """

    def __init__(self, net: nn.Module, output: int | None = None) -> None:
        super().__init__()
        check_module(net, "net")
        if output is not None:
            check_count(output, "output", least=0, most=2**31 - 1)
        self.net, self.output = net, output

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits of both classes.

        Parameters
        ----------
        x : Tensor
            Images (N, C, H, W) in [0, 1].

        Returns
        -------
        Tensor
            Logits (N, 2): (−z/2, z/2).

        Raises
        ------
        InputError
            If `net` does not return one logit per image, or has no such `output`.
        """
        z = self.net(x)
        lacks = self.output is not None and not (z.ndim == 2 and self.output < z.shape[1])
        z = z if self.output is None or lacks else z[:, self.output]
        if lacks or z.shape not in ((len(x),), (len(x), 1)):
            column = "" if self.output is None else f" with a column {self.output}"
            raise InputError(
                f"BinaryLogits needs a network that returns one logit per image, (N,) or (N, 1), or (N, K)"
                f"{column or ' and output=k'}; {type(self.net).__name__} returned {tuple(z.shape)}"
            )
        z = z.reshape(-1, 1) / 2
        return torch.cat([-z, z], 1)


def _by_channel(name: str, values: float | Sequence[float], device: torch.device | None) -> Tensor:
    """Return one value, or one per channel, as (1, 1, 1) or (C, 1, 1)."""
    try:
        return torch.as_tensor(values, dtype=torch.float32, device=device).reshape(-1, 1, 1)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{name} must be a number, or one per channel, not {values!r}") from None


def declared_cam_layer(model: nn.Module) -> str | None:
    """Return the name of the layer that the model declares for CAM methods, or None if it declares none.

    A model, or the part of it that a wrapper wraps, declares it by an attribute or property `cam_layer`: the
    module, or its name, such as "features.3" (assign the name rather than the module, which torch would
    register a second time).

    Raises
    ------
    InputError
        If there is no such module.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    >>> net.cam_layer = "1"
    >>> declared_cam_layer(Normalised(net))
    'net.1'
    """
    for prefix, module in model.named_modules():
        declared = getattr(module, "cam_layer", None)
        if isinstance(declared, str):
            layers = dict(module.named_modules())
            if declared not in layers:
                raise unknown_name(f"layer of {type(module).__name__} (its cam_layer):", declared, layers)
            return f"{prefix}.{declared}".strip(".")
        if isinstance(declared, nn.Module):
            names = [name for name, each in model.named_modules() if each is declared]
            if not names:
                raise InputError(f"the cam_layer of {type(module).__name__} is none of its modules")
            return names[0]
    return None
