"""Feature maps of several depths -> one grid of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def pool_levels(maps: Sequence[Tensor], grid: int) -> Tensor:
    """Average each map over a grid and join the maps by channel.

    Several maps are each divided by their root mean square over the image, because activations of different depths
    differ in scale and the largest would drown the others. One map is left as the model gives it.

    Args:
        maps: [I, C_k, H_k, W_k] each; a map with fewer positions than the grid is repeated.
        grid: positions per side.

    Returns:
        Tokens [I, grid * grid, sum of C_k], row by row.
    """
    if len(maps) > 1:
        maps = [level * level.square().mean((1, 2, 3), keepdim=True).clamp_min(1e-12).rsqrt() for level in maps]
    pooled = [
        level if level.shape[-2:] == (grid, grid) else functional.adaptive_avg_pool2d(level, grid) for level in maps
    ]
    return torch.cat(pooled, 1).flatten(2).transpose(1, 2)
