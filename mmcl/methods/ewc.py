"""Elastic weight consolidation: what mattered for earlier tasks is held by a quadratic penalty."""

from __future__ import annotations

from mmcl.data.types import Task
from mmcl.methods.quadratic import Sampled, Tensors
from mmcl.protocols import Model


class EWC(Sampled):
    """A penalty strength / 2 * sum_k sum_i F_k,i (theta_i - theta*_k,i)^2 over earlier tasks k.

    Kirkpatrick et al. 2017, 1612.00796, equation 3. F_k is the diagonal of the empirical Fisher information: the mean
    over samples of the squared gradient of a sample's summed log-likelihood, with the answers of the training set, as
    in most ports (the paper's own is over answers drawn from the model). The sum over tasks is kept exactly, in the
    memory of one.

    Args:
        strength: of the penalty (the paper's lambda).
        samples: of each task that F is estimated on, chosen by a hash of their ids.
    """

    def __init__(self, *, strength: float = 1000.0, samples: int = 128) -> None:
        super().__init__(strength=strength, decay=None, samples=samples)

    def measure(self, model: Model, task: Task) -> Tensors:
        """The task's Fisher information."""
        return self.fisher(model, task)
