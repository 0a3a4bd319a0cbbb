"""A perceiver resampler: learned queries read the encoder's tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmcl.model.projectors.checks import check_ranges
from mmcl.model.projectors.standardise import Standardise, calibrate

_LONGEST = 10000.0
"""Ratio of the longest to the shortest wave of the positions, as in the transformer."""


class Resampler(nn.Module):
    """A fixed number of learned queries that read the encoder's tokens through layers of cross-attention.

    Formula, with LN a LayerNorm of its own at each place, and p the positions of the tokens (`positions`):
    x = in(features) [I, T, E]; z = the queries [Q, E], the same for each image; then `depth` times
    z <- z + Attention(q = LN(z), k = [LN(x) + p, LN(z)], v = [LN(x), LN(z)]) and z <- z + MLP(LN(z)) with 4 E hidden
    units and GELU; tokens = out(LN(z)) [I, Q, D]. It takes any number of tokens and always gives Q.

    Source: Flamingo (arXiv 2204.14198), section 3.1, whose queries are among the keys, too; the positions in the keys
    are Qwen-VL's (arXiv 2308.12966), section 2.1, which has a single layer; 64 queries, 3 layers and 16 heads are those
    of Idefics2 (arXiv 2405.02246), section 3.3 and its published configuration. A last linear map follows, as in
    Qwen-VL's code. The normalisation of the input is ours.

    Args:
        in_width: width of the encoder's tokens.
        out_width: width of the language model.
        queries: Q, tokens that leave.
        depth: number of layers.
        heads: of the attention; they must divide the width of the layers.
        width: E, of the layers; default: `out_width`, as in Idefics2. A smaller one saves parameters, about 12 E^2 per
            layer.
        norm: standardise the encoder's channels; see `Standardise`.

    Raises:
        UserError: an option is out of its range; all such problems at once.
    """

    def __init__(
        self,
        *,
        in_width: int,
        out_width: int,
        queries: int = 64,
        depth: int = 3,
        heads: int = 16,
        width: int | None = None,
        norm: bool = True,
    ) -> None:
        super().__init__()
        inner = out_width if width is None else width
        check_ranges(
            ("queries", queries, queries >= 1, "at least 1"),
            ("depth", depth, depth >= 1, "at least 1"),
            ("heads", heads, heads >= 1 and (inner < 1 or inner % heads == 0), _divisors(inner)),
            ("width", width, inner >= 1, "at least 1, or null"),
        )
        self.norm = Standardise(in_width) if norm else nn.Identity()
        self.enter = nn.Linear(in_width, inner)
        self.queries = nn.Parameter(torch.empty(queries, inner).normal_(std=0.02))  # Qwen-VL's
        self.layers = nn.ModuleList(_Layer(inner, heads) for _ in range(depth))
        self.last_norm = nn.LayerNorm(inner)
        self.leave = nn.Linear(inner, out_width)

    def tokens(self, tokens_in: int) -> int:
        """As many as there are queries."""
        return len(self.queries)

    def calibrate(self, features: Tensor, spread: float) -> None:
        """Before training, on features [I, T, in_width] of the first images: see `standardise.calibrate`."""
        calibrate(self, self.norm, self.leave, features, spread)

    def forward(self, features: Tensor) -> Tensor:
        """Features [I, T, in_width] -> tokens [I, queries, out_width]."""
        context: Tensor = self.enter(self.norm(features))
        where = positions(context.shape[1], context.shape[2], context.device).to(context.dtype)
        latents = self.queries.expand(len(context), -1, -1)
        for layer in self.layers:
            latents = layer(latents, context, where)
        projected: Tensor = self.leave(self.last_norm(latents))
        return projected


class _Layer(nn.Module):
    """Queries read tokens and each other, then an MLP; both are residual, with the norm first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_norm, self.context_norm, self.mlp_norm = (nn.LayerNorm(width) for _ in range(3))
        self.query, self.key, self.value, self.output = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        for linear in (self.query, self.key):
            # Scores of about unit spread. The sources' 0.02 does that at their width of 4096; torch's default would
            # give a third of it, and queries that all read the same mean.
            nn.init.normal_(linear.weight, std=1 / math.sqrt(width))

    def forward(self, latents: Tensor, context: Tensor, where: Tensor) -> Tensor:
        """Queries [I, Q, E], tokens [I, T, E] and their positions [T, E] -> queries [I, Q, E]."""
        asking, read = self.query_norm(latents), self.context_norm(context)
        queries = self._by_head(self.query(asking))
        keys = self._by_head(self.key(torch.cat([read + where, asking], 1)))
        values = self._by_head(self.value(torch.cat([read, asking], 1)))
        found = functional.scaled_dot_product_attention(queries, keys, values)  # [I, heads, Q, E / heads]
        latents = latents + self.output(found.transpose(1, 2).flatten(2))
        moved: Tensor = latents + self.mlp(self.mlp_norm(latents))
        return moved

    def _by_head(self, tokens: Tensor) -> Tensor:
        images, count, width = tokens.shape
        return tokens.view(images, count, self.heads, width // self.heads).transpose(1, 2)


def positions(tokens: int, width: int, device: torch.device | None = None, *, grid: bool = True) -> Tensor:
    """Sines and cosines of each token's place, float32 [tokens, width], without parameters.

    A square number of tokens is a grid, row by row, and has two coordinates, row and column; any other number (with a
    class token, say) has one, its index, and so has a text (`grid=False`). The channels take turns: sine of each
    coordinate, cosine of each, at wave lengths that grow geometrically from 2 pi to 2 pi * 10000.
    """
    side = math.isqrt(tokens)
    index = torch.arange(tokens, device=device)
    places = [index // side, index % side] if grid and side * side == tokens else [index]
    channel = torch.arange(width, device=device)
    turn = channel // len(places)  # 0 a sine, 1 the cosine of that wave, 2 the next wave's sine ...
    waves = math.ceil(width / (2 * len(places)))
    frequency = _LONGEST ** -(turn // 2 / max(waves - 1, 1))
    angle = torch.stack(places, 1)[:, channel % len(places)] * frequency
    return torch.where(turn % 2 == 0, angle.sin(), angle.cos())


def _divisors(width: int) -> str:
    found = [str(each) for each in range(1, min(width, 64) + 1) if width % each == 0]
    return f"a divisor of the width {width}: {', '.join(found)}"
