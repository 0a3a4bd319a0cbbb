"""The loss on a corpus: captions and documents have no questions to ask, but a model can forget them all the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from mmcl.data.types import Sample, Task
from mmcl.protocols import Objective

if TYPE_CHECKING:
    from mmcl.model.assembly import Assembly
    from mmcl.training.methods import Methods

DEFINITION = "mean cross-entropy (nats) per supervised token, over routes chosen as for a test question"


def corpus_samples(task: Task) -> tuple[Sequence[Sample], bool]:
    """What a corpus's loss is measured on, and whether it was kept out of training."""
    return (task.heldout, True) if task.heldout else (task.train, False)


@torch.no_grad()
def corpus_loss(model: Assembly, methods: Methods, samples: Sequence[Sample], objective: Objective) -> float:
    """The mean loss per supervised token.

    Args:
        model: the assembly.
        methods: of the stage; they choose the routes without seeing the task.
        samples: conversations.
        objective: says which turns are supervised.
    """
    supervise = [objective.supervise(sample) for sample in samples]
    total, count = 0.0, 0
    for batch in model.pack(samples, methods.select(model, samples), supervise=supervise):
        logits = model.forward(batch).logits.float()
        targets = batch.targets.to(logits.device)
        total += float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
        count += len(targets)
    return total / count
