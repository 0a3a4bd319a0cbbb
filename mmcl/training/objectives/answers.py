"""Supervised fine-tuning: the loss is on the assistant's turns only."""

from __future__ import annotations

from torch.nn.functional import cross_entropy

from mmcl.data.types import Sample
from mmcl.protocols import Batch, LossSum, Model, Output


class Answers:
    """Cross-entropy on the answers (prompt and image tokens masked), as in LLaVA (2304.08485, section 4)."""

    def supervise(self, sample: Sample) -> tuple[bool, ...]:
        """The assistant's turns."""
        return tuple(turn.role == "assistant" for turn in sample.turns)

    def loss(self, model: Model, batch: Batch, out: Output) -> LossSum:
        """Summed cross-entropy over supervised tokens."""
        return token_loss(batch, out)


def token_loss(batch: Batch, out: Output) -> LossSum:
    """Cross-entropy summed over the batch's supervised tokens, in float32."""
    targets = batch.targets.to(out.logits.device)
    return LossSum(cross_entropy(out.logits.float(), targets, reduction="sum"), len(targets))
