"""Sequential fine-tuning."""

from __future__ import annotations

from mmcl.protocols import Method


class Finetune(Method):
    """Train on each task in turn and nothing else: the lower baseline, which shows what is forgotten."""

    needs_boundaries = False
