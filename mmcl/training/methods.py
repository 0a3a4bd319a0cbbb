"""Several methods as one: the hooks of a recipe's list, called in order."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from mmcl.data.types import Samples, Task
from mmcl.errors import UserError
from mmcl.protocols import BASE, Batch, LossSum, Method, Model, Output, Route

TASK_LOSS = "task"
"""The objective's own parts of the loss begin with this, as a method's begin with its name."""


class Methods:
    """The methods that are active in a stage, by the name that the recipe gives them.

    Raises:
        UserError: two methods own the same thing (`Method.owns`).
    """

    def __init__(self, methods: Mapping[str, Method]) -> None:
        self.methods = dict(methods)
        owners: dict[str, str] = {}
        for name, method in self.methods.items():
            for thing in sorted(method.owns):
                if thing in owners:
                    raise UserError(
                        f"`{owners[thing]}` and `{name}` both own the {thing}",
                        where="methods",
                        hint="a list of methods can hold only one of them",
                    )
                owners[thing] = name

    def begin_task(self, model: Model, task: Task, seen: Mapping[str, Sequence[Task]]) -> None:
        """`seen`: for each method, the tasks that it has been through."""
        for name, method in self.methods.items():
            method.begin_task(model, task, seen.get(name, ()))

    def training_samples(self, model: Model, task: Task, samples: Samples, rng: random.Random) -> Samples:
        """Each method gets what the one before made."""
        for method in self.methods.values():
            samples = method.training_samples(model, task, samples, rng)
        return samples

    def assign(self, model: Model, samples: Samples) -> list[Route]:
        """Routes of training samples; base where no method has an opinion."""
        for method in self.methods.values():
            routes = method.assign(model, samples)
            if routes is not None:
                return list(routes)
        return [BASE] * len(samples)

    def needs_hidden(self) -> bool:
        """Whether any loss reads hidden states now."""
        return any(method.needs_hidden() for method in self.methods.values())

    def loss_counts(self, batch: Batch) -> dict[str, float]:
        """Counts of all parts, by `METHOD.PART`."""
        return {
            f"{name}.{part}": float(count)
            for name, method in self.methods.items()
            for part, count in method.loss_counts(batch).items()
        }

    def loss(self, model: Model, batch: Batch, out: Output) -> dict[str, LossSum]:
        """All parts, by `METHOD.PART`; their counts are checked against what was said before.

        Raises:
            RuntimeError: a method's `loss` and `loss_counts` disagree.
        """
        parts: dict[str, LossSum] = {}
        for name, method in self.methods.items():
            said = method.loss_counts(batch)
            made = method.loss(model, batch, out)
            if {part: float(count) for part, count in said.items()} != {k: float(v.count) for k, v in made.items()}:
                raise RuntimeError(
                    f"method {name!r}: loss_counts said {dict(said)}, loss returned "
                    f"{ {part: value.count for part, value in made.items()} }"
                )
            parts.update({f"{name}.{part}": value for part, value in made.items()})
        return parts

    def after_backward(self, model: Model) -> None:
        """In order."""
        for method in self.methods.values():
            method.after_backward(model)

    def end_task(self, model: Model, task: Task) -> None:
        """In order."""
        for method in self.methods.values():
            method.end_task(model, task)

    def select(self, model: Model, samples: Samples) -> list[Route]:
        """Routes at test time. The task is hidden from every method that has not declared that it needs it."""
        for method in self.methods.values():
            routes = method.select(model, [s.hidden(keep_task=method.needs_task_id) for s in samples])
            if routes is not None:
                return list(routes)
        return [BASE] * len(samples)

    def stored_bytes(self) -> dict[str, int]:
        """Bytes that the methods keep, by `METHOD.WHAT`."""
        return {
            f"{name}.{what}": size
            for name, method in self.methods.items()
            for what, size in method.stored_bytes().items()
        }

    def state_dict(self) -> dict[str, Any]:
        """Of each method."""
        return {name: method.state_dict() for name, method in self.methods.items()}
