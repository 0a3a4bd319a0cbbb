"""Penalties on parameters against their formulas: EWC, online EWC, MAS, SI, an anchor."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from mmcl.errors import UserError
from mmcl.methods.ewc import EWC
from mmcl.methods.l2_anchor import L2Anchor
from mmcl.methods.mas import MAS
from mmcl.methods.online_ewc import OnlineEWC
from mmcl.methods.si import SI
from mmcl.testing import tiny_assembly, tiny_tasks

ALL = [EWC, OnlineEWC, MAS, SI, L2Anchor]


def gradient(model: Any, sample: Any, value: Any) -> dict[str, torch.Tensor]:
    (batch,) = model.pack([sample])
    scalar = value(model.forward(batch).logits.float(), batch.targets)
    names, parameters = zip(*model.trainable().items(), strict=True)
    found = torch.autograd.grad(scalar, parameters, allow_unused=True)
    return {name: each for name, each in zip(names, found, strict=True) if each is not None}


def log_likelihood(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return -cross_entropy(logits, targets, reduction="sum")


def penalty(model: Any, method: Any) -> float:
    (batch,) = model.pack(tiny_tasks()[0].train)
    found = method.loss(model, batch, model.forward(batch))["penalty"]
    assert found.count == 1
    return float(found.total.detach())


def ended(model: Any, method: Any) -> Any:
    task, _ = tiny_tasks(train=4)
    method.begin_task(model, task, [])
    method.end_task(model, task)
    return method


def move(model: Any, by: float = 0.01) -> None:
    for parameter in model.trainable().values():
        parameter.data += by


@pytest.mark.parametrize(
    ("kind", "value", "read"),
    [
        (EWC, log_likelihood, torch.square),
        (OnlineEWC, log_likelihood, torch.square),
        (MAS, lambda logits, _: logits.square().sum(), torch.abs),
    ],
)
def test_the_importance_is_a_mean_over_single_samples(model: Any, kind: Any, value: Any, read: Any) -> None:
    method = ended(model, kind())
    samples = tiny_tasks(train=4)[0].train
    for name, found in method.importance.items():
        wanted = sum(read(gradient(model, sample, value)[name]) for sample in samples) / 4
        assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-7), name
    assert sum(float(found.sum()) for found in method.importance.values()) > 0


@pytest.mark.parametrize(("kind", "factor"), [(EWC, 0.5), (OnlineEWC, 0.5), (MAS, 1.0), (L2Anchor, 0.5)])
def test_the_penalty_is_zero_at_the_anchor_and_as_written_elsewhere(model: Any, kind: Any, factor: float) -> None:
    method = ended(model, kind(strength=3.0))
    assert penalty(model, method) == 0
    move(model)
    wanted = 3.0 * factor * sum(float(found.sum()) * 0.01**2 for found in method.importance.values())
    assert penalty(model, method) == pytest.approx(wanted, rel=1e-3)


def test_ewc_is_the_sum_of_the_penalties_of_every_task(model: Any) -> None:
    """Two anchors: each task's own Fisher information about the weights after that task (equation 3)."""
    method = EWC(strength=2.0)
    kept = []
    for task in tiny_tasks(train=4):
        method.begin_task(model, task, [])
        method.end_task(model, task)
        alone = EWC()
        alone.begin_task(model, task, [])
        alone.end_task(model, task)
        kept.append((alone.importance, model.snapshot()))
        move(model, 0.05)
    here = model.snapshot()
    wanted = sum(
        float((fisher[name] * (here[name] - anchor[name]).square()).sum()) for fisher, anchor in kept for name in fisher
    )
    assert penalty(model, method) == pytest.approx(wanted, rel=1e-3)  # strength / 2 is 1
    pull = method.pull(model)
    for name, found in pull.items():
        by_hand = sum(2.0 * fisher[name] * (here[name] - anchor[name]) for fisher, anchor in kept)
        assert torch.allclose(found, by_hand, rtol=1e-3, atol=1e-6)


def test_online_ewc_fades_and_moves_its_anchor(model: Any) -> None:
    once, twice = ended(model, OnlineEWC()), ended(model, OnlineEWC(decay=0.5))
    twice.end_task(model, tiny_tasks(train=4)[0])
    for name, found in twice.importance.items():
        assert torch.allclose(found, 1.5 * once.importance[name], rtol=1e-4)
    move(model)
    twice.end_task(model, tiny_tasks(train=4)[0])
    assert penalty(model, twice) == 0


@pytest.mark.parametrize("kind", ALL)
def test_the_gradient_of_the_penalty_is_the_pull(model: Any, train: Any, kind: Any) -> None:
    method = kind(strength=5.0)
    train(tiny_tasks(), method, model=model)
    move(model)
    (batch,) = model.pack(tiny_tasks()[0].train)
    total = method.loss(model, batch, model.forward(batch))["penalty"].total
    found = torch.autograd.grad(total, list(model.trainable().values()), allow_unused=True)
    pull = method.pull(model)
    for (name, _), value in zip(model.trainable().items(), found, strict=True):
        assert (value is None) == (name not in pull)
        if value is not None:
            assert torch.allclose(value, pull[name], rtol=1e-4, atol=1e-7)


def test_si_sums_what_each_step_lowered_the_loss_by(model: Any) -> None:
    """Two steps by hand: omega = -sum of gradient * change, over the whole change squared + xi."""
    task, _ = tiny_tasks()
    method = SI(xi=0.5)
    method.begin_task(model, task, [])
    start = model.snapshot()
    changes = (0.03, -0.01)
    gradients = []
    for seed, change in enumerate(changes):
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.trainable().values():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        gradients.append({name: p.grad.clone() for name, p in model.trainable().items()})
        method.after_backward(model)
        move(model, change)
    found = method.measure(model, task)
    for name, value in found.items():
        omega = -sum(each[name] * change for each, change in zip(gradients, changes, strict=True))
        assert torch.allclose(value, (omega / (0.02**2 + 0.5)).clamp_min(0), atol=1e-5)
        assert start[name].shape == value.shape


def test_si_leaves_its_own_penalty_out_of_the_gradient(model: Any, train: Any) -> None:
    method = SI(strength=1e6)
    train(tiny_tasks()[:1], method, model=model)
    move(model)
    method.begin_task(model, tiny_tasks()[1], [])
    pull = method.pull(model)
    assert sum(float(value.abs().sum()) for value in pull.values()) > 0
    for name, parameter in model.trainable().items():
        parameter.grad = pull.get(name, torch.zeros_like(parameter)).clone()
    method.after_backward(model)
    move(model, -0.02)  # against the pull, which would count as progress
    assert all(float(value.abs().max()) < 1e-4 for value in method.measure(model, tiny_tasks()[1]).values())


@pytest.mark.parametrize("kind", ALL)
def test_a_strong_penalty_keeps_the_weights_and_none_changes_nothing(train: Any, kind: Any) -> None:
    first = train(tiny_tasks()[:1]).snapshot()
    plain = train(tiny_tasks()).snapshot()
    off = train(tiny_tasks(), kind(strength=0.0)).snapshot()
    assert all(torch.equal(plain[name], off[name]) for name in plain)
    held = train(tiny_tasks(), kind(strength=1e6 if kind is not SI else 1e4)).snapshot()

    def way(end: dict[str, torch.Tensor]) -> float:
        return sum(float((end[name] - first[name]).square().sum()) for name in first)

    assert way(held) < 0.7 * way(plain)


@pytest.mark.parametrize("kind", ALL)
def test_it_goes_on_where_it_was_saved(train: Any, kind: Any) -> None:
    first, second = tiny_tasks()
    method, copy = kind(), kind()
    model = train([first], method)
    copy.load_state_dict(model, method.state_dict())
    move(model)
    assert penalty(model, copy) == penalty(model, method)
    for each in (method, copy):
        each.begin_task(model, second, [first])
        each.end_task(model, second)
    assert all(torch.equal(copy.importance[name], value) for name, value in method.importance.items())
    assert sum(method.stored_bytes().values()) == 8 * sum(value.numel() for value in method.importance.values())


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (EWC, {"strength": -1.0}),
        (EWC, {"samples": 0}),
        (OnlineEWC, {"decay": 2.0}),
        (MAS, {"samples": 0}),
        (SI, {"xi": 0.0}),
        (L2Anchor, {"strength": -1.0}),
    ],
)
def test_options_out_of_range(kind: Any, options: dict[str, Any]) -> None:
    (option,) = options
    with pytest.raises(UserError, match="is out of range") as caught:
        kind(**options)
    assert option in str(caught.value)


def test_no_earlier_task_no_penalty() -> None:
    (batch,) = tiny_assembly().pack(tiny_tasks()[0].train)
    assert all(kind().loss_counts(batch) == {} for kind in ALL)
