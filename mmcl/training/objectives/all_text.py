"""Continual pre-training and domain adaptation: the loss is on all text."""

from __future__ import annotations

from mmcl.data.types import Sample
from mmcl.protocols import Batch, LossSum, Model, Output
from mmcl.training.objectives.answers import token_loss


class AllText:
    """Cross-entropy on every text token, prompts included; image tokens are never targets."""

    def supervise(self, sample: Sample) -> tuple[bool, ...]:
        """All turns."""
        return (True,) * len(sample.turns)

    def loss(self, model: Model, batch: Batch, out: Output) -> LossSum:
        """Summed cross-entropy over supervised tokens."""
        return token_loss(batch, out)
