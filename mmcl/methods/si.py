"""Synaptic intelligence: what lowered the loss on its way is held by a quadratic penalty."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mmcl.data.types import Task
from mmcl.methods.checks import check
from mmcl.methods.quadratic import Quadratic, Tensors
from mmcl.protocols import Model


class SI(Quadratic):
    """A penalty strength * sum_i Omega_i (theta_i - theta*_i)^2 about the weights after the latest task.

    Zenke et al. 2017, 1703.04200: along the way of a task omega_i sums -g_i * (change of theta_i)
    over the steps, with the gradient g of the loss without this penalty; afterwards Omega_i grows by
    omega_i / ((whole change of theta_i)^2 + xi), what is negative left out. The gradient is that of the whole step,
    before clipping.

    Args:
        strength: of the penalty (the paper's c).
        xi: keeps the quotient finite where a parameter hardly moved.
    """

    def __init__(self, *, strength: float = 1.0, xi: float = 1e-3) -> None:
        super().__init__(strength=2 * strength, decay=1.0)
        check(self, xi=xi > 0)
        self.xi = xi
        self._omega: Tensors = {}
        self._start: Tensors = {}
        self._last: Tensors = {}
        self._gradient: Tensors = {}

    def begin_task(self, model: Model, task: Task, seen: Sequence[Task]) -> None:
        """Start a way."""
        self._omega, self._start, self._last, self._gradient = {}, {}, {}, {}

    def after_backward(self, model: Model) -> None:
        """Add what the step before did, now that its change is seen; note the gradient of this one."""
        self._account(model)
        pull = self.pull(model) if self.importance else {}
        self._gradient = {
            name: parameter.grad.detach().float() - pull.get(name, torch.zeros((), device=parameter.device))
            for name, parameter in model.trainable().items()
            if parameter.grad is not None
        }
        self._last = {name: tensor.float() for name, tensor in model.snapshot().items()}
        for name, tensor in self._last.items():
            self._start.setdefault(name, tensor)

    def _account(self, model: Model) -> None:
        parameters = model.trainable()
        for name, gradient in self._gradient.items():
            change = parameters[name].detach().float() - self._last[name]
            self._omega[name] = self._omega.get(name, torch.zeros_like(change)) - gradient * change
        self._gradient = {}

    def measure(self, model: Model, task: Task) -> Tensors:
        """The task's part of Omega."""
        self._account(model)
        found = {}
        for name, parameter in model.trainable().items():
            if name in self._omega:
                whole = parameter.detach().float() - self._start[name]
                found[name] = (self._omega[name] / (whole.square() + self.xi)).clamp_min(0).cpu()
        self._omega, self._start, self._last = {}, {}, {}
        return found
