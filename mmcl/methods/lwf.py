"""Learning without forgetting: the model before a task says what to answer to the task's own questions."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from torch import Tensor

from mmcl.data.types import Samples, Task
from mmcl.methods.checks import check
from mmcl.methods.distillation import kl_divergence, teach
from mmcl.protocols import Batch, LossSum, Method, Model, Output


class LwF(Method):
    """A loss strength * T^2 * KL(model before the task || model), on the current samples; no earlier data are kept.

    Li and Hoiem 2016, 1606.09282: their cross-entropy of softened outputs differs from the divergence by
    the teacher's entropy, which has no gradient. The outputs are the distributions at the answers' positions.
    Deviation: the paper records the old outputs once; here the teacher runs on each batch, which needs no memory.

    Args:
        strength: of the loss (the paper's lambda_o).
        temperature: of the softened distributions.
    """

    def __init__(self, *, strength: float = 1.0, temperature: float = 2.0) -> None:
        check(self, strength=strength >= 0, temperature=temperature > 0)
        self.strength, self.temperature = strength, temperature
        self._teacher: dict[str, Tensor] | None = None

    def begin_task(self, model: Model, task: Task, seen: Sequence[Task]) -> None:
        """Take the model as teacher, from the second task on."""
        self._teacher = model.snapshot() if seen else None

    def training_samples(self, model: Model, task: Task, samples: Samples, rng: random.Random) -> Samples:
        """What other methods added since `begin_task` belongs to the teacher too."""
        if self._teacher is not None:
            self._teacher |= model.snapshot([name for name in model.trainable() if name not in self._teacher])
        return samples

    def loss_counts(self, batch: Batch) -> Mapping[str, float]:
        """The supervised positions."""
        return {"logits": float(len(batch.targets))} if self._teacher is not None and self.strength else {}

    def loss(self, model: Model, batch: Batch, out: Output) -> Mapping[str, LossSum]:
        """The divergence from the teacher."""
        counts = self.loss_counts(batch)
        if not counts or self._teacher is None:
            return {}
        theirs = teach(model, batch, self._teacher, hidden=False)
        total = self.strength * kl_divergence(out.logits, theirs.logits, temperature=self.temperature)
        return {"logits": LossSum(total, counts["logits"])}

    def end_task(self, model: Model, task: Task) -> None:
        """Let the teacher go."""
        self._teacher = None
