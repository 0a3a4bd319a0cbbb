"""The one training loop: plan, pack, forward, loss, backward, step.

The loss of an optimiser step is the sum over its parts of (sum over batches and processes) / (count over the same), so
neither the layout of the batches nor the number of processes changes it.
"""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import nn

from mmcl.data.setting import ORIGIN
from mmcl.data.types import Sample, Samples, Task
from mmcl.errors import UserError
from mmcl.model.features import preload
from mmcl.model.parts import rate_of
from mmcl.model.transfer import on_device
from mmcl.protocols import Batch, Objective
from mmcl.training.methods import TASK_LOSS, Methods

if TYPE_CHECKING:
    from accelerate import Accelerator

    from mmcl.model.assembly import Assembly
    from mmcl.progress import Progress
    from mmcl.recipe.spec import TrainSpec

T = TypeVar("T")


class Watch(Protocol):
    """Looks at a model while it trains."""

    def steps(self, total: int) -> set[int]:
        """After how many of the `total` steps it wants to look; 0 is before the first."""

    def measure(self, model: Assembly, methods: Methods, samples: int, tokens: int) -> None:
        """Look; so many samples and tokens have been trained on."""


@dataclass
class Cost:
    """What training one stage took.

    Attributes:
        seconds: wall clock.
        samples: samples trained on, replayed ones included.
        tokens: positions that went through the language model, padding not counted.
        steps: optimiser steps.
        losses: the loss of each step.
        mixture: how many of the samples came from which task.
    """

    seconds: float = 0.0
    samples: int = 0
    tokens: int = 0
    steps: int = 0
    losses: list[float] = field(default_factory=list)
    mixture: Counter[str] = field(default_factory=Counter)


def train_task(
    model: Assembly,
    methods: Methods,
    task: Task,
    spec: TrainSpec,
    objective: Objective,
    *,
    accelerator: Accelerator,
    rng: random.Random,
    progress: Progress,
    label: str,
    watch: Watch | None = None,
) -> Cost:
    """Train on one task. `methods.begin_task` has been called; `end_task` is the caller's.

    `watch` may look at the model, but not change it: a stage that is watched ends the same.

    Raises:
        UserError: the task has no training samples; the loss is not finite.
    """
    cost = Cost()
    started = time.perf_counter()
    parameters = model.trainable()
    if parameters:
        plan = plan_steps(model, methods, task, spec, rng)
        optimiser = make_optimiser(parameters, spec)
        schedule = make_schedule(optimiser, spec, len(plan))
        preload(model, plan, progress, label)
        everything = list({id(sample): sample for samples in plan for sample in samples}.values())
        objective.begin(model, everything, methods.assign(model, everything))
        stops = watch.steps(len(plan)) if watch else set()
        if watch and 0 in stops:
            watch.measure(model, methods, 0, 0)
        losses: list[torch.Tensor] = []
        # No thread prepares the rows: an accelerator still works on the step before while this goes on, and on a CPU
        # a second thread's pool costs the first one's matrix products a quarter of their speed.
        ready = ((samples, prepare(model, methods, objective, samples, spec)) for samples in plan)
        for samples, batches in progress.track(ready, label=f"train {label}", total=len(plan), unit="step"):
            losses.append(backward(model, methods, objective, batches, accelerator))
            if len(losses) > 1:  # one step late, so that an accelerator has its next step before it is asked
                cost.losses.append(finite(losses[-2], task, cost.steps))
            reduce_gradients(parameters.values(), accelerator)
            methods.after_backward(model)
            if spec.clip:
                nn.utils.clip_grad_norm_(parameters.values(), spec.clip)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad(set_to_none=True)
            cost.steps += 1
            cost.samples += len(samples)
            cost.mixture.update(str(sample.metadata.get(ORIGIN, sample.task)) for sample in samples)
            cost.tokens += sum(sum(batch.lengths) for batch in batches)
            if watch and cost.steps in stops:
                watch.measure(model, methods, cost.samples, cost.tokens)
        cost.losses.append(finite(losses[-1], task, cost.steps))
    cost.seconds = time.perf_counter() - started
    return cost


def plan_steps(
    model: Assembly, methods: Methods, task: Task, spec: TrainSpec, rng: random.Random
) -> list[list[Sample]]:
    """The samples of every optimiser step of the stage, all epochs."""
    own = list(task.train)
    if not own:
        raise UserError("no training samples", where=f"task {task.name}", hint="give it a `train` file with rows")
    plan: list[list[Sample]] = []
    for epoch in range(math.ceil(spec.epochs)):
        mixed = list(methods.training_samples(model, task, shuffled(own, spec.shuffle, rng), rng))
        share = min(1.0, spec.epochs - epoch)
        mixed = mixed[: max(1, round(len(mixed) * share))]
        plan += [mixed[start : start + spec.batch_size] for start in range(0, len(mixed), spec.batch_size)]
    return plan if spec.max_steps is None else plan[: spec.max_steps]


def shuffled(samples: Samples, by: str, rng: random.Random) -> list[Sample]:
    """Shuffle samples, or whole images with all of their samples, which lets packing share the images' prefix."""
    if by == "sample":
        result = list(samples)
        rng.shuffle(result)
        return result
    groups: dict[tuple[str, ...], list[Sample]] = {}
    for position, sample in enumerate(samples):
        key = tuple(image.digest for image in sample.images) or (f"text {position}",)
        groups.setdefault(key, []).append(sample)
    order = list(groups.values())
    rng.shuffle(order)
    return [sample for group in order for sample in group]


def make_optimiser(parameters: Mapping[str, nn.Parameter], spec: TrainSpec) -> torch.optim.Optimizer:
    """AdamW with a learning rate per part (`TrainSpec.learning_rates`); vectors and norms have no weight decay."""
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        rate = rate_of(name, spec.learning_rates, spec.learning_rate)
        groups.setdefault((rate, parameter.ndim > 1), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": members,
                "lr": rate,
                "weight_decay": spec.weight_decay if decays else 0.0,
            }
            for (rate, decays), members in groups.items()
        ],
        # A stage is short: with the usual 0.999 the second moment would still be that of its first steps at its end.
        betas=(0.9, 0.95),
        fused=True,
    )


def make_schedule(optimiser: torch.optim.Optimizer, spec: TrainSpec, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up over a share of the stage's steps, then the decay that the recipe names; re-warmed each stage."""
    warm = max(1, round(spec.warmup * steps)) if spec.warmup else 0

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / (warm + 1)
        if spec.schedule == "constant":
            return 1.0
        done = (step - warm) / max(1, steps - warm)
        return 1.0 - done if spec.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))

    return torch.optim.lr_scheduler.LambdaLR(optimiser, factor)


def prepare(model: Assembly, methods: Methods, objective: Objective, samples: Samples, spec: TrainSpec) -> list[Batch]:
    """Routes, tokens and rows of one optimiser step."""
    rows = [row for sample in samples for row in objective.rows(sample)]
    return model.pack(
        rows,
        methods.assign(model, rows),
        row_tokens=spec.row_tokens,
        supervise=[objective.supervise(row) for row in rows],
    )


def backward(
    model: Assembly,
    methods: Methods,
    objective: Objective,
    batches: Sequence[Batch],
    accelerator: Accelerator,
) -> torch.Tensor:
    """Accumulate the gradient of one optimiser step over this process's share of the batches; returns the loss."""
    said = [{**_own(objective.counts(batch)), **methods.loss_counts(batch)} for batch in batches]
    counts: dict[str, float] = {}
    for of_batch in said:
        for part, count in of_batch.items():
            counts[part] = counts.get(part, 0.0) + count
    total = torch.zeros((), device=model.device)
    model.train()
    for batch in mine(batches, accelerator):
        batch = on_device(batch, model.device)
        out = model.forward(batch, hidden=methods.needs_hidden())
        parts = {**_own(objective.loss(model, batch, out)), **methods.loss(model, batch, out)}
        loss = torch.stack([part.total / counts[name] for name, part in parts.items() if counts[name]]).sum()
        if loss.requires_grad:  # text-only or replayed rows may reach nothing that trains
            accelerator.backward(loss)
        total += loss.detach()
    model.eval()
    if accelerator.num_processes > 1:
        total = accelerator.reduce(total, reduction="sum")
    return total


def _own(parts: Mapping[str, T]) -> dict[str, T]:
    """The objective's parts under names that no method's part has."""
    return {f"{TASK_LOSS}.{name}": part for name, part in parts.items()}


def finite(loss: torch.Tensor, task: Task, step: int) -> float:
    """The loss of a step (from 1) as a number.

    Raises:
        UserError: it is none.
    """
    value = float(loss)
    if not math.isfinite(value):
        raise UserError(
            f"the loss is {value} at step {step}",
            where=f"task {task.name}",
            hint="lower train.learning_rate (or a part's in train.learning_rates), lengthen train.warmup, or set "
            "train.clip; finished stages are kept",
        )
    return value


def mine(batches: Sequence[Batch], accelerator: Accelerator) -> Iterator[Batch]:
    """This process's share."""
    yield from batches[accelerator.process_index :: accelerator.num_processes]


def reduce_gradients(parameters: Any, accelerator: Accelerator) -> None:
    """Add up the processes' gradients, in one message."""
    if accelerator.num_processes == 1:
        return
    wanted = list(parameters)
    flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in wanted])
    flat = accelerator.reduce(flat, reduction="sum")
    for parameter, gradient in zip(wanted, flat.split([p.numel() for p in wanted]), strict=True):
        parameter.grad = gradient.view_as(parameter).clone()
