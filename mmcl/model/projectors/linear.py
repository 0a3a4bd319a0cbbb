"""The projector of LLaVA."""

from __future__ import annotations

from torch import Tensor, nn

from mmcl.model.projectors.standardise import Standardise, calibrate


class Linear(nn.Module):
    """One linear map from vision features to the language model's width, as in LLaVA.

    Source: LLaVA (arXiv 2304.08485), section 4.1; the normalisation of the input is ours.

    Args:
        in_width: width of the encoder's tokens.
        out_width: width of the language model.
        norm: standardise the encoder's channels, which differ in mean and spread by orders of magnitude; see
            `Standardise`. With it one learning rate fits all encoders.
    """

    def __init__(self, *, in_width: int, out_width: int, norm: bool = True) -> None:
        super().__init__()
        self.norm = Standardise(in_width) if norm else nn.Identity()
        self.map = nn.Linear(in_width, out_width)

    def tokens(self, tokens_in: int) -> int:
        """As many as enter."""
        return tokens_in

    def calibrate(self, features: Tensor, spread: float) -> None:
        """Before training, on features [I, T, in_width] of the first images: see `standardise.calibrate`."""
        calibrate(self, self.norm, self.map, features, spread)

    def forward(self, features: Tensor) -> Tensor:
        """Features [I, T, in_width] -> tokens [I, T, out_width]."""
        projected: Tensor = self.map(self.norm(features))
        return projected
