"""No projector."""

from __future__ import annotations

from torch import Tensor, nn

from mmcl.errors import UserError


class Identity(nn.Module):
    """The encoder's tokens as they are, for an encoder whose tokens are the language model's embeddings already.

    Formula: y = x; features [I, T, W] -> tokens [I, T, D] with D = W. It has no parameters and no options, and is not
    calibrated: embeddings have their spread already. Leave `projector` out of `model.train`; projector experts take
    `unit: residual` on it.

    Source: the choice `identity` of LLaVA's code, among its kinds of projectors.

    Args:
        in_width: width of the encoder's tokens.
        out_width: width of the language model.

    Raises:
        UserError: the widths differ.
    """

    def __init__(self, *, in_width: int, out_width: int) -> None:
        super().__init__()
        if in_width != out_width:
            raise UserError(
                f"`identity` maps nothing, but the encoder's tokens have width {in_width} and the language model "
                f"takes {out_width}",
                where="model.projector",
                hint="take `linear` or `mlp`, which map one width to the other",
            )

    def tokens(self, tokens_in: int) -> int:
        """As many as enter."""
        return tokens_in

    def forward(self, features: Tensor) -> Tensor:
        """Features [I, T, W], unchanged."""
        return features
