"""Memory aware synapses: parameters that the output is sensitive to are held by a quadratic penalty."""

from __future__ import annotations

from mmcl.data.types import Task
from mmcl.methods.quadratic import Sampled, Tensors
from mmcl.protocols import Model


class MAS(Sampled):
    """A penalty strength * sum_i Omega_i (theta_i - theta*_i)^2 about the weights after the latest task.

    Aljundi et al. 2018, 1711.09601: Omega_i is the mean over samples of the absolute gradient of the
    squared length of the output, summed over tasks. The output is the logits at the answer's positions; answers say
    where these are, and nothing else. The paper's lambda is `strength`, whose penalty has no factor of a half.

    Args:
        strength: of the penalty.
        samples: of each task that Omega is estimated on, chosen by a hash of their ids.
    """

    def __init__(self, *, strength: float = 1.0, samples: int = 128) -> None:
        super().__init__(strength=2 * strength, decay=1.0, samples=samples)

    def measure(self, model: Model, task: Task) -> Tensors:
        """The task's sensitivity."""
        return self.mean_over_samples(
            model, task, lambda logits, targets: logits.square().sum(), lambda gradient: gradient.abs()
        )
