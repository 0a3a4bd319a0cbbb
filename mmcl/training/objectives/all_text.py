"""Continual pre-training and domain adaptation: the loss is on all text."""

from __future__ import annotations

from mmcl.data.types import Sample
from mmcl.protocols import Objective


class AllText(Objective):
    """Cross-entropy on every text token, prompts included; image tokens are never targets."""

    def supervise(self, row: Sample) -> tuple[bool, ...]:
        """All turns."""
        return (True,) * len(row.turns)
