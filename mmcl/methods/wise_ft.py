"""WiSE-FT: after each task, weights half-way back to where they came from."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from mmcl.data.types import Samples, Task
from mmcl.errors import UserError
from mmcl.methods.checks import check
from mmcl.protocols import Method, Model


class WiSEFT(Method):
    """After each task theta = (1 - alpha) * theta_0 + alpha * theta_1, of the parameters that trained.

    Wortsman et al. 2022, 2109.01903. theta_0 are the weights before the task, or before the first one. For
    adapters this is a mean of their factors, not of their products, which are no longer of low rank.

    Args:
        alpha: share of the weights that the task ends with, in [0, 1]; 1 is fine-tuning, 0 forgets the task.
        back_to: `previous`, the weights before the task, or `start`, those before the first task.
    """

    def __init__(self, *, alpha: float = 0.5, back_to: Literal["previous", "start"] = "previous") -> None:
        check(self, alpha=0 <= alpha <= 1)
        if back_to not in ("previous", "start"):
            raise UserError(f"`{back_to}` is unknown", where="wise_ft.back_to", hint="previous, or start")
        self.alpha, self.back_to = alpha, back_to
        self._from: dict[str, Tensor] = {}

    def begin_task(self, model: Model, task: Task, seen: Sequence[Task]) -> None:
        """Forget where the task before came from."""
        if self.back_to == "previous":
            self._from = {}

    def training_samples(self, model: Model, task: Task, samples: Samples, rng: random.Random) -> Samples:
        """Note where the task starts, with what other methods have added."""
        new = [name for name in model.trainable() if name not in self._from]
        self._from |= {name: tensor.cpu() for name, tensor in model.snapshot(new).items()}
        return samples

    def end_task(self, model: Model, task: Task) -> None:
        """Go back a part of the way."""
        for name, parameter in model.trainable().items():
            if name in self._from:
                parameter.data.lerp_(self._from[name].to(parameter.device), 1 - self.alpha)

    def state_dict(self) -> dict[str, Any]:
        """The start, where that is what weights go back to."""
        return {"from": dict(self._from) if self.back_to == "start" else {}}

    def load_state_dict(self, model: Model, state: Mapping[str, Any]) -> None:
        """The reverse."""
        self._from = dict(state["from"])

    def stored_bytes(self) -> Mapping[str, int]:
        """Bytes of the start."""
        kept = self._from.values() if self.back_to == "start" else ()
        return {"start": sum(tensor.numel() * tensor.element_size() for tensor in kept)}
