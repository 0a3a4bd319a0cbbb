"""The projector of InternVL, Idefics3 and SmolVLM."""

from __future__ import annotations

from torch import Tensor, nn

from mmcl.errors import UserError
from mmcl.model.projectors.checks import check_ranges, fitting_sides, square_side
from mmcl.model.projectors.mlp import MLP, mlp_ranges


class PixelShuffle(nn.Module):
    """Blocks of r x r neighbouring tokens become one token that holds them all, then an MLP: T becomes T / r^2.

    Formula: for block row i and block column j, y[i, j] = MLP(concat over a, b in 0..r-1 of x[r i + a, r j + b]), a
    being the slower index; features [I, T, W] -> [I, T / r^2, W r^2] -> tokens [I, T / r^2, D]. Nothing of the features
    is lost before the MLP, unlike in `pool`.

    Source: InternVL 1.5 (arXiv 2404.16821), section 3.1: r = 2 and an MLP of depth 2, which are the defaults. Idefics3
    (arXiv 2408.12637) has r = 2 and one linear map, so `depth: 1`, and SmolVLM (arXiv 2504.05299) the same with r up
    to 4. The normalisation of the input is ours; InternVL has a LayerNorm there.

    Args:
        in_width: width of the encoder's tokens.
        out_width: width of the language model.
        factor: r, tokens of a block per side; it must divide the side of the encoder's square grid.
        depth: number of linear maps.
        hidden: width between them; default: `out_width`.
        norm: standardise the channels of the shuffled tokens; see `Standardise`.

    Raises:
        UserError: an option is out of its range; all such problems at once.
    """

    def __init__(
        self,
        *,
        in_width: int,
        out_width: int,
        factor: int = 2,
        depth: int = 2,
        hidden: int | None = None,
        norm: bool = True,
    ) -> None:
        super().__init__()
        check_ranges(("factor", factor, factor >= 1, "at least 1"), *mlp_ranges(depth, hidden))
        self.factor = factor
        self.mlp = MLP(in_width=in_width * factor**2, out_width=out_width, depth=depth, hidden=hidden, norm=norm)

    def tokens(self, tokens_in: int) -> int:
        """One for each block.

        Raises:
            UserError: so many tokens form no square grid, or one whose side the factor does not divide.
        """
        return blocks_per_side(tokens_in, self.factor) ** 2

    def calibrate(self, features: Tensor, spread: float) -> None:
        """Before training, on features [I, T, in_width] of the first images: see `standardise.calibrate`."""
        self.mlp.calibrate(shuffle(features, self.factor), spread)

    def forward(self, features: Tensor) -> Tensor:
        """Features [I, T, in_width] -> tokens [I, T / factor^2, out_width]."""
        projected: Tensor = self.mlp(shuffle(features, self.factor))
        return projected


def shuffle(features: Tensor, factor: int) -> Tensor:
    """Space to depth: features [I, T, W], row by row of a square grid -> [I, T / factor^2, factor^2 W]."""
    images, tokens, width = features.shape
    side = blocks_per_side(tokens, factor)
    blocks = features.reshape(images, side, factor, side, factor, width)
    return blocks.transpose(2, 3).reshape(images, side * side, factor * factor * width)


def blocks_per_side(tokens: int, factor: int) -> int:
    """How many blocks of `factor` tokens a side of the grid has.

    Raises:
        UserError: the grid is no square, or cannot be cut into such blocks.
    """
    side = square_side(tokens, multiple=factor)
    if side % factor:
        sides = " or ".join(str(each) for each in fitting_sides(side, factor))
        factors = ", ".join(str(each) for each in range(1, side + 1) if side % each == 0)
        raise UserError(
            f"{factor} does not divide the side of the encoder's grid of {side} x {side} tokens",
            where="model.projector.factor",
            hint=f"give the encoder an `image_size` (or a `grid`) with {sides} patches a side, or take a factor that "
            f"divides {side}: {factors}",
        )
    return side // factor
