"""The projector of LLaVA-1.5."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from mmcl.model.projectors.checks import Range, check_ranges
from mmcl.model.projectors.standardise import Standardise, calibrate


class MLP(nn.Module):
    """Linear maps with GELU between them; two of them by default, as in LLaVA-1.5.

    Source: LLaVA-1.5 (arXiv 2310.03744), section 3.3; the normalisation of the input is ours.

    Args:
        in_width: width of the encoder's tokens.
        out_width: width of the language model.
        depth: number of linear maps.
        hidden: width between them; default: `out_width`.
        norm: standardise the encoder's channels, which differ in mean and spread by orders of magnitude; see
            `Standardise`. With it one learning rate fits all encoders.

    Raises:
        UserError: an option is out of its range; all such problems at once.
    """

    def __init__(
        self, *, in_width: int, out_width: int, depth: int = 2, hidden: int | None = None, norm: bool = True
    ) -> None:
        super().__init__()
        check_ranges(*mlp_ranges(depth, hidden))
        widths = [in_width, *[hidden or out_width] * (depth - 1), out_width]
        self.norm = Standardise(in_width) if norm else nn.Identity()
        layers: list[nn.Module] = []
        for index, (width, following) in enumerate(pairwise(widths)):
            layers += [nn.GELU()] if index else []
            layers.append(nn.Linear(width, following))
        self.layers = nn.Sequential(*layers)

    def tokens(self, tokens_in: int) -> int:
        """As many as enter."""
        return tokens_in

    def calibrate(self, features: Tensor, spread: float) -> None:
        """Before training, on features [I, T, in_width] of the first images: see `standardise.calibrate`."""
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        calibrate(self, self.norm, last, features, spread)

    def forward(self, features: Tensor) -> Tensor:
        """Features [I, T, in_width] -> tokens [I, T, out_width]."""
        projected: Tensor = self.layers(self.norm(features))
        return projected


def mlp_ranges(depth: int, hidden: int | None) -> list[Range]:
    """What an MLP's options may be, for projectors that end in one too."""
    return [
        ("depth", depth, depth >= 1, "at least 1; LLaVA-1.5 has 2"),
        ("hidden", hidden, hidden is None or hidden >= 1, "at least 1, or null"),
    ]
