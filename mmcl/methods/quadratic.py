"""Quadratic penalties on parameters: what mattered before is held where it was.

Shared by the methods that differ only in how they measure what mattered (EWC, MAS, SI, a plain anchor).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from mmcl.data.types import Sample, Samples, Task
from mmcl.memory.selection import random_key
from mmcl.methods.checks import check
from mmcl.methods.distillation import evaluating
from mmcl.protocols import BASE, Batch, LossSum, Method, Model, Output, Route

Tensors = dict[str, Tensor]


class Quadratic(Method):
    """A penalty strength / 2 * (sum_i I_i (theta_i - anchor_i)^2 + c) on the parameters that train.

    With `decay` None each task keeps a penalty of its own, as in the papers of EWC and MAS: a sum of quadratics is one
    quadratic about the mean of the anchors, weighted by importance, so that memory does not grow. Else there is one
    penalty, about the weights after the latest task, with I = decay * I + the task's own.

    Args:
        strength: of the penalty; 0 switches it off.
        decay: of the importance for earlier tasks, in [0, 1]; None keeps every task's own penalty.
    """

    def __init__(self, *, strength: float, decay: float | None) -> None:
        check(self, strength=strength >= 0, decay=decay is None or 0 <= decay <= 1)
        self.strength, self.decay = strength, decay
        self.importance: Tensors = {}
        self.anchor: Tensors = {}
        self.constant = 0.0

    def measure(self, model: Model, task: Task) -> Tensors:
        """The importance of each parameter that trains for the task that ends, on the CPU."""
        raise NotImplementedError

    def loss_counts(self, batch: Batch) -> Mapping[str, float]:
        """The penalty counts once per batch, so that a step has it once, however many batches it has."""
        return {"penalty": 1.0} if self.importance and self.strength else {}

    def loss(self, model: Model, batch: Batch, out: Output) -> Mapping[str, LossSum]:
        """The penalty on the parameters that train now."""
        if not self.loss_counts(batch):
            return {}
        terms = [(weight * (parameter - anchor).square()).sum() for parameter, weight, anchor in self._held(model)]
        total = torch.stack(terms).sum() if terms else torch.zeros((), device=out.logits.device)
        return {"penalty": LossSum(self.strength / 2 * (total + self.constant), 1.0)}

    def pull(self, model: Model) -> Tensors:
        """The penalty's gradient, strength * I (theta - anchor), of each parameter that trains and is held."""
        names = [name for name in model.trainable() if name in self.importance]
        values = (
            self.strength * weight * (parameter.detach() - anchor) for parameter, weight, anchor in self._held(model)
        )
        return dict(zip(names, values, strict=True))

    def _held(self, model: Model) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for name, parameter in model.trainable().items():
            if name in self.importance:
                yield (
                    parameter,
                    self.importance[name].to(parameter.device),
                    self.anchor[name].to(parameter.device),
                )

    def end_task(self, model: Model, task: Task) -> None:
        """Add the task's importance, and move the anchors."""
        found = self.measure(model, task)
        here = {name: tensor.float().cpu() for name, tensor in model.snapshot(list(found)).items()}
        for name, own in found.items():
            before = self.importance.get(name)
            if before is None:
                self.importance[name], self.anchor[name] = own, here[name]
            elif self.decay is not None:
                self.importance[name] = self.decay * before + own
            else:
                total = before + own
                share = torch.where(total > 0, own / total.clamp_min(torch.finfo(total.dtype).tiny), 1.0)
                apart = here[name] - self.anchor[name]
                self.constant += float((before * share * apart.square()).sum())
                self.importance[name] = total
                self.anchor[name] = self.anchor[name] + share * apart
        if self.decay is not None:
            self.anchor |= {
                name: tensor.float().cpu() for name, tensor in model.snapshot(list(self.importance)).items()
            }

    def state_dict(self) -> dict[str, Any]:
        """Importance, anchors, and the penalty's constant."""
        return {"importance": dict(self.importance), "anchor": dict(self.anchor), "constant": self.constant}

    def load_state_dict(self, model: Model, state: Mapping[str, Any]) -> None:
        """The reverse."""
        self.importance, self.anchor = dict(state["importance"]), dict(state["anchor"])
        self.constant = float(state["constant"])

    def stored_bytes(self) -> Mapping[str, int]:
        """Bytes of importance and anchors."""
        tensors = [*self.importance.values(), *self.anchor.values()]
        return {"importance": sum(tensor.numel() * tensor.element_size() for tensor in tensors)}


class Sampled(Quadratic):
    """A penalty whose importance is a mean over single samples of the task.

    Args:
        strength: see `Quadratic`.
        decay: see `Quadratic`.
        samples: of each task that the importance is measured on, chosen by a hash of their ids.
    """

    def __init__(self, *, strength: float, decay: float | None, samples: int) -> None:
        super().__init__(strength=strength, decay=decay)
        check(self, samples=samples >= 1)
        self.samples = samples
        self._routes: dict[tuple[str, str], Route] = {}

    def begin_task(self, model: Model, task: Task, seen: Sequence[Task]) -> None:
        """Forget the routes of the task before."""
        self._routes = {}

    def loss_counts(self, batch: Batch) -> Mapping[str, float]:
        """As ever; and remember how rows are routed, for when they are run again at the end of the task."""
        for sample, route in zip(batch.samples, batch.routes, strict=True):
            self._routes[sample.task, sample.id] = route
        return super().loss_counts(batch)

    def mean_over_samples(
        self, model: Model, task: Task, value: Callable[[Tensor, Tensor], Tensor], read: Callable[[Tensor], Tensor]
    ) -> Tensors:
        """Mean over samples of what `read` makes of the gradient of `value`, a scalar of logits [n, V] and targets."""
        chosen = sorted(task.train, key=lambda sample: random_key(sample, 0))[: self.samples]
        parameters = model.trainable()
        total = {name: torch.zeros_like(parameter, dtype=torch.float32) for name, parameter in parameters.items()}
        for gradients in sample_gradients(model, chosen, [self._route(sample) for sample in chosen], value):
            for name, gradient in gradients.items():
                total[name] += read(gradient)
        self._routes = {}
        return {name: (tensor / max(1, len(chosen))).cpu() for name, tensor in total.items()}

    def fisher(self, model: Model, task: Task) -> Tensors:
        """The diagonal of the empirical Fisher information: the mean squared gradient of a sample's log-likelihood."""

        def negative(logits: Tensor, targets: Tensor) -> Tensor:
            return cross_entropy(logits, targets, reduction="sum")

        return self.mean_over_samples(model, task, negative, lambda gradient: gradient.square())

    def _route(self, sample: Sample) -> Route:
        return self._routes.get((sample.task, sample.id), BASE)


def sample_gradients(
    model: Model, samples: Samples, routes: Sequence[Route], value: Callable[[Tensor, Tensor], Tensor]
) -> Iterator[Tensors]:
    """Of each sample, the gradient (float32) of a scalar of its logits [n, V] and targets [n], by parameter."""
    parameters = model.trainable()
    with evaluating(model):
        for sample, route in zip(samples, routes, strict=True):
            for batch in model.pack([sample], [route]):
                logits = model.forward(batch).logits.float()
                if logits.requires_grad:
                    scalar = value(logits, batch.targets.to(logits.device))
                    found = torch.autograd.grad(scalar, list(parameters.values()), allow_unused=True)
                    pairs = zip(parameters, found, strict=True)
                    yield {name: gradient.float() for name, gradient in pairs if gradient is not None}
