"""What projectors refuse: options out of their range, and tokens that lie on no square grid that fits."""

from __future__ import annotations

import math

from mmcl.errors import Problem, UserError

Range = tuple[str, object, bool, str]
"""Name of an option, its value, whether that fits, and what would."""


def check_ranges(*ranges: Range) -> None:
    """Refuse options of the projector that are out of their range, all at once.

    Raises:
        UserError: at `model.projector.NAME` of each.
    """
    problems = [
        Problem(f"model.projector.{name}", f"{value} is out of range", f"make it {wanted}")
        for name, value, fits, wanted in ranges
        if not fits
    ]
    if problems:
        raise UserError(problems=problems)


def square_side(tokens: int, multiple: int = 1, least: int = 1) -> int:
    """Side of the square grid that so many tokens form, row by row.

    Args:
        tokens: T of the encoder.
        multiple: sides that the hint of an error offers are multiples of this.
        least: and at least this.

    Raises:
        UserError: T is no square number.
    """
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise UserError(
            f"the encoder's {tokens} tokens form no square grid",
            where="model.projector",
            hint=f"{_grids(fitting_sides(side, multiple, least))} would: leave out the encoder's class and register "
            "tokens (`prefix_tokens: false`), or take a projector without a grid, such as `mlp` or `resampler`",
        )
    return side


def fitting_sides(side: int, multiple: int, least: int = 1) -> list[int]:
    """The nearest multiples of `multiple` up to `side` and above it, those that are at least `least`."""
    below = side // multiple * multiple
    return [each for each in (below, below + multiple) if each >= least] or [least]


def _grids(sides: list[int]) -> str:
    return " or ".join(f"{side} x {side} = {side * side}" for side in sides)
