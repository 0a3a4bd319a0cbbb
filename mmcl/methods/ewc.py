"""Elastic weight consolidation: what mattered for earlier tasks is held by a quadratic penalty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from mmcl.data.types import Sample, Samples, Task
from mmcl.errors import Problem, UserError
from mmcl.memory.selection import random_key
from mmcl.methods.distillation import evaluating
from mmcl.protocols import BASE, Batch, LossSum, Method, Model, Output, Route


class EWC(Method):
    """A penalty strength / 2 * sum_i F_i (theta_i - theta*_i)^2 (Kirkpatrick et al. 2017, 1612.00796, equation 3).

    F is the diagonal of the empirical Fisher information: the mean over samples of the squared gradient of a sample's
    summed log-likelihood. It is kept in one sum over tasks, with one anchor, as in online EWC (Schwarz et al. 2018,
    1805.06370, section 4): after each task F becomes decay * F + the task's own, the anchor the weights as they are.

    Args:
        strength: of the penalty.
        decay: of the earlier tasks' F, in [0, 1]; 1 keeps all of it.
        samples: of each task that F is estimated on, chosen by a hash of their ids.
    """

    def __init__(self, *, strength: float = 1000.0, decay: float = 1.0, samples: int = 128) -> None:
        wrong = {"strength": strength < 0, "decay": not 0 <= decay <= 1, "samples": samples < 1}
        problems = [Problem(f"ewc.{name}", "is out of range") for name, bad in wrong.items() if bad]
        if problems:
            raise UserError(problems=problems)
        self.strength, self.decay, self.samples = strength, decay, samples
        self.fisher: dict[str, Tensor] = {}
        self.anchor: dict[str, Tensor] = {}
        self._routes: dict[tuple[str, str], Route] = {}

    def begin_task(self, model: Model, task: Task, seen: Sequence[Task]) -> None:
        """Forget the routes of the task before."""
        self._routes = {}

    def loss_counts(self, batch: Batch) -> Mapping[str, float]:
        """The penalty counts once per batch, so that a step has it once, however many batches it has."""
        for sample, route in zip(batch.samples, batch.routes, strict=True):
            self._routes[sample.task, sample.id] = route
        return {"penalty": 1.0} if self.fisher and self.strength else {}

    def loss(self, model: Model, batch: Batch, out: Output) -> Mapping[str, LossSum]:
        """The penalty on the parameters that train now."""
        if not self.loss_counts(batch):
            return {}
        terms = [
            (
                self.fisher[name].to(parameter.device) * (parameter - self.anchor[name].to(parameter.device)).square()
            ).sum()
            for name, parameter in model.trainable().items()
            if name in self.fisher
        ]
        total = torch.stack(terms).sum() if terms else torch.zeros((), device=out.logits.device)
        return {"penalty": LossSum(self.strength / 2 * total, 1.0)}

    def end_task(self, model: Model, task: Task) -> None:
        """Add the task's Fisher information, and anchor the weights where they are."""
        chosen = sorted(task.train, key=lambda sample: random_key(sample, 0))[: self.samples]
        found = self._fisher(model, chosen)
        for name, value in found.items():
            before = self.fisher.get(name)
            self.fisher[name] = value if before is None else self.decay * before + value
        self.anchor |= {name: tensor.cpu() for name, tensor in model.snapshot(list(self.fisher)).items()}

    def _fisher(self, model: Model, samples: Samples) -> dict[str, Tensor]:
        """Mean squared gradient of each parameter that trains, sample by sample, on the CPU."""
        parameters = model.trainable()
        total = {name: torch.zeros_like(parameter, dtype=torch.float32) for name, parameter in parameters.items()}
        with evaluating(model):
            for sample in samples:
                for batch in model.pack([sample], [self._route(sample)]):
                    logits = model.forward(batch).logits.float()
                    if not logits.requires_grad:
                        continue
                    loss = cross_entropy(logits, batch.targets.to(logits.device), reduction="sum")
                    values = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
                    for name, value in zip(parameters, values, strict=True):
                        if value is not None:
                            total[name] += value.float().square()
        return {name: (value / max(1, len(samples))).cpu() for name, value in total.items()}

    def _route(self, sample: Sample) -> Route:
        return self._routes.get((sample.task, sample.id), BASE)

    def state_dict(self) -> dict[str, Any]:
        """F and the anchor."""
        return {"fisher": dict(self.fisher), "anchor": dict(self.anchor)}

    def load_state_dict(self, model: Model, state: Mapping[str, Any]) -> None:
        """The reverse."""
        self.fisher, self.anchor = dict(state["fisher"]), dict(state["anchor"])

    def stored_bytes(self) -> Mapping[str, int]:
        """Bytes of both."""
        tensors = [*self.fisher.values(), *self.anchor.values()]
        return {"fisher": sum(tensor.numel() * tensor.element_size() for tensor in tensors)}
