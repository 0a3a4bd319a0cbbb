"""Sparse updates: of what a task changed, only the largest changes are kept."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from mmcl.data.types import Samples, Task
from mmcl.errors import UserError
from mmcl.protocols import Method, Model


class SparseUpdate(Method):
    """Keep the largest changes of a task and undo the others: a sparse patch, after Model Tailor (2402.12048).

    The choice is over all parameters that train, by the absolute change. Put it first in the list of methods: what
    others do at the end of a task (fill a memory, make prototypes) is then done with the model that stays.

    Args:
        keep: share of the changed numbers to keep, in [0, 1].
    """

    def __init__(self, *, keep: float = 0.1) -> None:
        if not 0 <= keep <= 1:
            raise UserError(f"{keep} is out of range", where="sparse_update.keep", hint="a share in [0, 1]")
        self.keep = keep
        self._before: dict[str, Tensor] | None = None

    def training_samples(self, model: Model, task: Task, samples: Samples, rng: random.Random) -> Samples:
        """Remember where the task starts, when all methods have added what they add."""
        if self._before is None:
            self._before = model.snapshot()
        return samples

    def end_task(self, model: Model, task: Task) -> None:
        """Undo the small changes."""
        if self._before is None:
            return
        parameters = model.trainable()
        before = {name: tensor.to(parameters[name].device) for name, tensor in self._before.items()}
        sizes = torch.cat([(parameters[name].data - tensor).abs().flatten().float() for name, tensor in before.items()])
        kept = round(self.keep * len(sizes))
        # The k-th largest change; ties at it stay too. Everything stays where all is kept, nothing where none is.
        least = sizes.kthvalue(len(sizes) - kept + 1).values if kept else torch.inf
        for name, tensor in before.items():
            data = parameters[name].data
            data.copy_(torch.where((data - tensor).abs().float() >= least, data, tensor))
        self._before = None
