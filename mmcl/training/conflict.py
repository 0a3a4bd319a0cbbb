"""Do two sets of samples pull the weights the same way? The cosine between their gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmcl.data.types import Samples
from mmcl.protocols import Objective

if TYPE_CHECKING:
    from mmcl.model.assembly import Assembly


def gradient(model: Assembly, samples: Samples, objective: Objective) -> dict[str, Tensor]:
    """The gradient of the mean loss over the samples, for each parameter that trains; what was there is kept."""
    parameters = model.trainable()
    supervise = [objective.supervise(sample) for sample in samples]
    batches = model.pack(samples, supervise=supervise)
    count = sum(objective.counts(batch)["tokens"] for batch in batches)
    found = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    for batch in batches:
        part = objective.loss(model, batch, model.forward(batch))["tokens"]
        values = torch.autograd.grad(part.total / count, list(parameters.values()), allow_unused=True)
        for name, value in zip(found, values, strict=True):
            if value is not None:
                found[name] += value
    return found


def gradient_cosine(model: Assembly, one: Samples, other: Samples, objective: Objective) -> float:
    """Cosine in [-1, 1] between the gradients of two sets of samples: negative where learning one undoes the other.

    The diagnostic of Lopez-Paz and Ranzato (2017, 1706.08840, section 3) and of gradient surgery (Yu et al. 2020,
    2001.06782). 0 where one of them has no gradient.
    """
    first, second = (
        torch.cat([value.flatten().float() for value in gradient(model, samples, objective).values()])
        for samples in (one, other)
    )
    norm = first.norm() * second.norm()
    return float(first @ second / norm) if norm > 0 else 0.0
