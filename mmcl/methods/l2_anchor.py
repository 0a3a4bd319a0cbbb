"""An anchor: all parameters are held alike where the task before left them."""

from __future__ import annotations

import torch

from mmcl.data.types import Task
from mmcl.methods.quadratic import Quadratic, Tensors
from mmcl.protocols import Model


class L2Anchor(Quadratic):
    """A penalty strength / 2 * sum_i (theta_i - theta*_i)^2 about the weights after the latest task.

    The baseline L2 of Kirkpatrick et al. 2017 (1612.00796), EWC with an importance of 1 for all.

    Args:
        strength: of the penalty.
    """

    def __init__(self, *, strength: float = 1.0) -> None:
        super().__init__(strength=strength, decay=0.0)

    def measure(self, model: Model, task: Task) -> Tensors:
        """Ones."""
        return {name: torch.ones(parameter.shape) for name, parameter in model.trainable().items()}
