"""EWC: the Fisher information by hand, a penalty that is nothing at the anchor and nothing without strength."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from mmcl.errors import UserError
from mmcl.methods.ewc import EWC
from mmcl.testing import tiny_assembly, tiny_tasks


def gradient_of(model, sample) -> dict[str, torch.Tensor]:
    (batch,) = model.pack([sample])
    loss = cross_entropy(model.forward(batch).logits.float(), batch.targets, reduction="sum")
    names, parameters = zip(*model.trainable().items(), strict=True)
    values = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {name: value for name, value in zip(names, values, strict=True) if value is not None}


def ended(model, **options) -> EWC:
    method = EWC(**options)
    task, _ = tiny_tasks(train=4)
    method.begin_task(model, task, [])
    method.end_task(model, task)
    return method


def test_the_fisher_is_the_mean_squared_gradient_of_single_samples() -> None:
    model = tiny_assembly()
    for parameter in model.trainable().values():  # a fresh adapter has gradients of zero on one side
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    method = ended(model)
    task, _ = tiny_tasks(train=4)
    for name, value in method.fisher.items():
        wanted = sum(gradient_of(model, sample)[name].square() for sample in task.train) / 4
        assert torch.allclose(value, wanted, rtol=1e-4, atol=1e-8)
    assert sum(float(value.sum()) for value in method.fisher.values()) > 0
    twice = ended(model, decay=0.5)
    twice.end_task(model, task)
    for name, value in twice.fisher.items():
        assert torch.allclose(value, 1.5 * method.fisher[name], rtol=1e-4)


def test_the_penalty_is_zero_at_the_anchor_and_as_written_elsewhere() -> None:
    model = tiny_assembly()
    method = ended(model, strength=3.0)
    task, _ = tiny_tasks()
    (batch,) = model.pack(task.train)
    out = model.forward(batch)
    assert method.loss(model, batch, out)["penalty"].total.item() == 0
    for parameter in model.trainable().values():
        parameter.data += 0.01
    wanted = 3.0 / 2 * sum(float((value * 0.01**2).sum()) for value in method.fisher.values())
    found = method.loss(model, batch, out)["penalty"]
    assert found.total.item() == pytest.approx(wanted, rel=1e-3)
    assert found.count == 1


def test_no_strength_no_penalty_and_no_earlier_task_no_penalty() -> None:
    model = tiny_assembly()
    (batch,) = model.pack(tiny_tasks()[0].train)
    assert ended(model, strength=0.0).loss_counts(batch) == {}
    assert EWC().loss_counts(batch) == {}


@pytest.mark.parametrize("options", [{"strength": -1.0}, {"decay": 2.0}, {"samples": 0}])
def test_options_out_of_range(options: dict) -> None:
    with pytest.raises(UserError):
        EWC(**options)
