"""Gradient episodic memory: no step that raises the loss of any earlier task's remembered rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmcl.methods.checks import check
from mmcl.methods.projection import GradientMemory
from mmcl.protocols import Model

TOLERANCE = 1e-10
ROUNDS = 10_000


class GEM(GradientMemory):
    """The step nearest to g that goes against no earlier task's gradient: g + G^T v, for the v that solves the dual.

    Lopez-Paz and Ranzato 2017, 1706.08840: min over v >= 0 of v' G G' v / 2 + g' G' v, with a row of
    G for each earlier task. Deviation: each row is the gradient of `batch` remembered rows, drawn anew for each step,
    not of all.

    Args:
        budget: bytes of the memory, such as "2MB" (the default), "500KB", or a number.
        batch: remembered rows of each earlier task whose mean gradient is taken.
        margin: added to v, which pulls towards earlier tasks (the paper's gamma).
        seed: of the choice of rows.
    """

    def __init__(self, *, budget: str | int = "2MB", batch: int = 8, margin: float = 0.5, seed: int = 0) -> None:
        super().__init__(budget=budget, batch=batch, seed=seed)
        check(self, margin=margin >= 0)
        self.margin = margin

    def references(self, model: Model) -> list[Tensor]:
        """A gradient for each earlier task."""
        found = []
        for task in sorted(self.memory.tasks - {self._task}):
            records = self.memory.sample(self.batch, self._rng, exclude=self.memory.tasks - {task})
            found.append(self.gradient_of(model, [record.sample() for record in records]))
        return found

    def project(self, gradient: Tensor, references: Sequence[Tensor]) -> Tensor:
        """The solution of the quadratic programme, where some earlier task's gradient is gone against."""
        rows = torch.stack(list(references))
        along = (rows @ gradient).double()
        if bool((along >= 0).all()):
            return gradient
        v = solve((rows @ rows.T).double(), along) + self.margin
        return gradient + v.float() @ rows


def solve(matrix: Tensor, linear: Tensor) -> Tensor:
    """Argmin over v >= 0 of v' matrix v / 2 + linear' v, by exact steps along one coordinate after another.

    Args:
        matrix: [t, t], positive semi-definite.
        linear: [t].
    """
    v = torch.zeros_like(linear)
    for _ in range(ROUNDS):
        before = v.clone()
        for k in range(len(v)):
            if matrix[k, k] > 0:
                slope = matrix[k] @ v + linear[k]
                v[k] = (v[k] - slope / matrix[k, k]).clamp_min(0)
        if (v - before).abs().max() <= TOLERANCE * (1 + v.abs().max()):
            break
    return v
