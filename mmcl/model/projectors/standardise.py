"""Standardised encoder features: the input of the projectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

LEAST = 1e-3
"""Channels that vary less than this share of the mean deviation are not blown up further."""


class Standardise(nn.Module):
    """(x - shift) / scale per channel, with constants that are measured once, on the first images that are trained on.

    Encoder channels differ in mean and spread by orders of magnitude; what tells images apart (colour, say) is often a
    small part of large, constant activations. As the constants never change after they were measured, a sample's tokens
    do not depend on the batch. Until then it does nothing.

    Args:
        width: channels.
    """

    shift: Tensor
    scale: Tensor
    measured: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.register_buffer("measured", torch.zeros((), dtype=torch.bool))

    def measure(self, features: Tensor) -> None:
        """Take mean and standard deviation per channel of features [I, T, W]."""
        flat = features.detach().float().flatten(0, 1)
        deviation = flat.std(0, correction=0)
        self.shift.copy_(flat.mean(0))
        self.scale.copy_(deviation.clamp_min(max(float(deviation.mean()) * LEAST, 1e-8)))
        self.measured.fill_(True)

    def forward(self, features: Tensor) -> Tensor:
        """Features [I, T, W] -> the same, standardised."""
        return (features - self.shift) / self.scale


def calibrate(projector: nn.Module, norm: nn.Module, last: nn.Linear, features: Tensor, spread: float) -> None:
    """Measure the input of an untrained projector, and scale its last layer so that its tokens spread as wanted.

    Args:
        projector: whole.
        norm: its input layer; if that is no `Standardise`, or has measured before, nothing happens.
        last: its last layer.
        features: [I, T, W] of some images that will be trained on.
        spread: standard deviation of the tokens, such as that of the language model's own embeddings.
    """
    if not isinstance(norm, Standardise) or bool(norm.measured):
        return
    norm.measure(features)
    with torch.no_grad():
        factor = spread / float(projector(features).std().clamp_min(1e-8))
        last.weight.mul_(factor)
        last.bias.mul_(factor)
