"""The projector of DeCo."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from mmcl.errors import UserError
from mmcl.model.projectors.checks import check_ranges, square_side
from mmcl.model.projectors.mlp import MLP, mlp_ranges


class Pool(nn.Module):
    """Average over the cells of a coarser grid, then an MLP: any square grid of tokens becomes `grid` x `grid`.

    Formula: y[i, j] = MLP(mean of x over rows floor(i S / G) .. ceil((i + 1) S / G) - 1 and the columns alike), for a
    side S of the encoder's grid and G = `grid`; neighbouring cells overlap where G does not divide S. Features
    [I, S^2, W] -> [I, G^2, W] -> tokens [I, G^2, D].

    Source: DeCo (arXiv 2405.20985), "2D adaptive pooling", whose published code has 144 tokens and an MLP of depth 2:
    the defaults. The normalisation is ours, and comes after the average, which makes channels spread less.

    Args:
        in_width: width of the encoder's tokens.
        out_width: width of the language model.
        grid: G, tokens that leave per side; at most the side of the encoder's square grid.
        depth: number of linear maps.
        hidden: width between them; default: `out_width`.
        norm: standardise the channels of the averaged tokens; see `Standardise`.

    Raises:
        UserError: an option is out of its range; all such problems at once.
    """

    def __init__(
        self,
        *,
        in_width: int,
        out_width: int,
        grid: int = 12,
        depth: int = 2,
        hidden: int | None = None,
        norm: bool = True,
    ) -> None:
        super().__init__()
        check_ranges(("grid", grid, grid >= 1, "at least 1"), *mlp_ranges(depth, hidden))
        self.grid = grid
        self.mlp = MLP(in_width=in_width, out_width=out_width, depth=depth, hidden=hidden, norm=norm)

    def tokens(self, tokens_in: int) -> int:
        """`grid` x `grid`.

        Raises:
            UserError: so many tokens form no square grid, or one that is smaller than `grid`.
        """
        self._side(tokens_in)
        return self.grid**2

    def calibrate(self, features: Tensor, spread: float) -> None:
        """Before training, on features [I, T, in_width] of the first images: see `standardise.calibrate`."""
        self.mlp.calibrate(self._pooled(features), spread)

    def forward(self, features: Tensor) -> Tensor:
        """Features [I, T, in_width] -> tokens [I, grid^2, out_width]."""
        projected: Tensor = self.mlp(self._pooled(features))
        return projected

    def _pooled(self, features: Tensor) -> Tensor:
        images, tokens, width = features.shape
        side = self._side(tokens)
        maps = features.transpose(1, 2).reshape(images, width, side, side)
        return functional.adaptive_avg_pool2d(maps, self.grid).flatten(2).transpose(1, 2)

    def _side(self, tokens: int) -> int:
        side = square_side(tokens, least=self.grid)
        if side < self.grid:
            raise UserError(
                f"the encoder's grid of {side} x {side} tokens is smaller than {self.grid} x {self.grid}",
                where="model.projector.grid",
                hint=f"make it at most {side}, or give the encoder an `image_size` (or a `grid`) with at least "
                f"{self.grid} patches a side",
            )
        return side
