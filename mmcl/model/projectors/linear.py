"""The projector of LLaVA."""

from __future__ import annotations

from torch import Tensor, nn


class Linear(nn.Module):
    """One linear map from vision features to the language model's width, as in LLaVA.

    Source: LLaVA (arXiv 2304.08485), section 4.1; the normalisation of the input is ours.

    Args:
        in_width: width of the encoder's tokens.
        out_width: width of the language model.
        norm: LayerNorm on the input. Encoders differ in scale by a factor of 100; with it one learning rate fits all.
    """

    def __init__(self, *, in_width: int, out_width: int, norm: bool = True) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(in_width) if norm else nn.Identity()
        self.map = nn.Linear(in_width, out_width)

    def tokens(self, tokens_in: int) -> int:
        """As many as enter."""
        return tokens_in

    def forward(self, features: Tensor) -> Tensor:
        """Features [I, T, in_width] -> tokens [I, T, out_width]."""
        projected: Tensor = self.map(self.norm(features))
        return projected
