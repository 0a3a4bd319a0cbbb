"""Online elastic weight consolidation: one penalty for all earlier tasks, which fades."""

from __future__ import annotations

from mmcl.data.types import Task
from mmcl.methods.quadratic import Sampled, Tensors
from mmcl.protocols import Model


class OnlineEWC(Sampled):
    """A penalty strength / 2 * sum_i F*_i (theta_i - theta*_i)^2 about the weights after the latest task.

    Schwarz et al. 2018, 1805.06370, section 4: F* becomes decay * F* + the task's own. F as in `ewc`.

    Args:
        strength: of the penalty.
        decay: of the earlier tasks' F (the paper's gamma), in [0, 1].
        samples: of each task that F is estimated on, chosen by a hash of their ids.
    """

    def __init__(self, *, strength: float = 1000.0, decay: float = 0.95, samples: int = 128) -> None:
        super().__init__(strength=strength, decay=decay, samples=samples)

    def measure(self, model: Model, task: Task) -> Tensors:
        """The task's Fisher information."""
        return self.fisher(model, task)
