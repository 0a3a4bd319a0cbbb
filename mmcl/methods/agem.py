"""Averaged gradient episodic memory: no step against the mean gradient of remembered rows."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mmcl.methods.projection import GradientMemory
from mmcl.protocols import Model


class AGEM(GradientMemory):
    """Where g . g_ref < 0, the step is taken with g - (g . g_ref / g_ref . g_ref) g_ref.

    Chaudhry et al. 2019, 1812.00420. g_ref is the gradient of the mean loss of rows drawn from all earlier
    tasks, anew for each step.

    Args:
        budget: bytes of the memory, such as "2MB" (the default), "500KB", or a number.
        batch: remembered rows whose mean gradient is taken.
        seed: of the choice of rows.
    """

    def __init__(self, *, budget: str | int = "2MB", batch: int = 16, seed: int = 0) -> None:
        super().__init__(budget=budget, batch=batch, seed=seed)

    def references(self, model: Model) -> list[Tensor]:
        """The one mean gradient."""
        records = self.memory.sample(self.batch, self._rng, exclude={self._task})
        return [self.gradient_of(model, [record.sample() for record in records])]

    def project(self, gradient: Tensor, references: Sequence[Tensor]) -> Tensor:
        """Orthogonal to the mean gradient, if it went against it."""
        (reference,) = references
        along, length = gradient @ reference, reference @ reference
        return gradient - along / length * reference if along < 0 < length else gradient
