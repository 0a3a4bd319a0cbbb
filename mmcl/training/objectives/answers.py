"""Supervised fine-tuning: the loss is on the assistant's turns only."""

from __future__ import annotations

from mmcl.protocols import Objective


class Answers(Objective):
    """Cross-entropy on the answers (prompt and image tokens masked), as in LLaVA (2304.08485, section 4)."""
