"""Gradients of remembered rows, which a step may not go against. Shared by A-GEM and GEM."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from mmcl.data.types import Samples, Task
from mmcl.memory.memory import ReplayMemory
from mmcl.memory.quota import parse_bytes
from mmcl.methods.checks import check
from mmcl.methods.distillation import evaluating
from mmcl.protocols import BASE, Batch, Method, Model, Route


class GradientMemory(Method):
    """A memory of earlier tasks (equal shares per task and modality, a reservoir in each) and its gradients.

    The gradients are taken before every optimiser step, with the parameters as they are, in evaluation mode, over the
    route that the row's own task was trained with.

    Args:
        budget: bytes of the memory, such as "2MB".
        batch: remembered rows whose gradient is taken.
        seed: of the choice of rows.
    """

    owns: ClassVar[frozenset[str]] = frozenset({"gradient"})

    def __init__(self, *, budget: str | int, batch: int, seed: int) -> None:
        check(self, batch=batch >= 1)
        where = f"{type(self).__module__.rpartition('.')[2]}.budget"
        self.memory = ReplayMemory(budget_bytes=parse_bytes(budget, where=where), quota="task+modality", seed=seed)
        self.batch, self.seed = batch, seed
        self._routes: dict[str, Route] = {}  # of each task
        self._task = ""
        self._rng = random.Random(seed)

    def begin_task(self, model: Model, task: Task, seen: Sequence[Task]) -> None:
        """Draw anew."""
        self._task = task.name
        self._rng = random.Random(f"{self.seed} {task.name}")

    def loss_counts(self, batch: Batch) -> Mapping[str, float]:
        """No loss; but the routes that rows are trained with are seen here."""
        for sample, route in zip(batch.samples, batch.routes, strict=True):
            self._routes[sample.task] = route
        return {}

    def references(self, model: Model) -> list[Tensor]:
        """Gradients that the step may not go against, each flat over `trainable`; none in the first task."""
        raise NotImplementedError

    def project(self, gradient: Tensor, references: Sequence[Tensor]) -> Tensor:
        """The gradient to step with."""
        raise NotImplementedError

    def after_backward(self, model: Model) -> None:
        """Replace the gradient by its projection."""
        references = self.references(model) if self.memory.tasks - {self._task} else []
        if not references:
            return
        parameters = list(model.trainable().values())
        gradient = flat([parameter.grad for parameter in parameters], parameters)
        projected = self.project(gradient, references)
        if projected is not gradient:
            sizes = [parameter.numel() for parameter in parameters]
            for parameter, part in zip(parameters, torch.split(projected, sizes), strict=True):
                parameter.grad = part.view_as(parameter).to(parameter.dtype)

    def gradient_of(self, model: Model, samples: Samples) -> Tensor:
        """Of the mean cross-entropy of the answers' tokens, flat over `trainable`, float32."""
        parameters = list(model.trainable().values())
        routes = [self._routes.get(sample.task, BASE) for sample in samples]
        batches = model.pack(samples, routes)
        count = sum(len(batch.targets) for batch in batches)
        total = flat([None] * len(parameters), parameters)
        with evaluating(model):
            for batch in batches:
                logits = model.forward(batch).logits.float()
                if logits.requires_grad:
                    loss = cross_entropy(logits, batch.targets.to(logits.device), reduction="sum") / max(1, count)
                    total += flat(torch.autograd.grad(loss, parameters, allow_unused=True), parameters)
        return total

    def end_task(self, model: Model, task: Task) -> None:
        """Offer the task's rows to the memory."""
        self.memory.add(list(task.train), task=task.name)

    def state_dict(self) -> dict[str, Any]:
        """The memory, and the route of each task."""
        routes = {
            task: {"experts": [list(pair) for pair in route.experts], "adapters": list(route.adapters)}
            for task, route in self._routes.items()
        }
        return {"memory": self.memory.state_dict(), "routes": routes}

    def load_state_dict(self, model: Model, state: Mapping[str, Any]) -> None:
        """The reverse."""
        self.memory.load_state_dict(state["memory"])
        self._routes = {
            task: Route(tuple((str(name), float(weight)) for name, weight in kept["experts"]), tuple(kept["adapters"]))
            for task, kept in state["routes"].items()
        }

    def stored_bytes(self) -> Mapping[str, int]:
        """Bytes of the memory."""
        return {"memory": self.memory.bytes}


def flat(gradients: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> Tensor:
    """Gradients in one vector, float32; zeros where there is none."""
    parts = [
        torch.zeros(p.numel(), device=p.device) if g is None else g.detach().flatten().float()
        for g, p in zip(gradients, parameters, strict=True)
    ]
    return torch.cat(parts)
