"""Methods for editing: a codebook whose edits give way to each other, and a loss that holds what is unrelated."""

from __future__ import annotations

import random

import pytest
import torch

from mmcl.data.streams.shapes import Shapes
from mmcl.data.types import Sample, Task, Turn
from mmcl.errors import UserError
from mmcl.methods.edit_codebook import EditCodebook
from mmcl.methods.locality import UNRELATED, Locality
from mmcl.testing import tiny_assembly, tiny_tasks


def edit(name: str, question: str) -> Task:
    turns = (Turn("user", question), Turn("assistant", "x"))
    return Task(name, [Sample("1", name, turns)])


def test_edits_that_lie_near_each_other_share_the_room_between_them() -> None:
    model = tiny_assembly()
    method = EditCodebook(radius=2.0)
    questions = {"one": "who leads the team?", "two": "what is the price of tea?"}
    for name, question in questions.items():
        task = edit(name, question)
        method.begin_task(model, task, [])
        method.end_task(model, task)
    state = method.state_dict()["keys"]
    one, two = (state[name]["text"][0] for name in questions)
    half = float(1 - one @ two) / 2
    assert 0 < half < 1
    assert float(state["one"]["radius"]) == pytest.approx(half, rel=1e-4)
    assert float(state["two"]["radius"]) == pytest.approx(half, rel=1e-4)
    asked = [edit(name, question).train[0].hidden() for name, question in questions.items()]
    assert [route.adapters for route in method.select(model, asked)] == [("one",), ("two",)]


def test_locality_starts_at_nothing_and_pulls_back() -> None:
    model = tiny_assembly()
    method = Locality(source=Shapes(tasks=["letter"], train_size=8, test_size=4), ratio=0.5, weight=2.0)
    task, _ = tiny_tasks()
    method.begin_task(model, task, [])
    samples = method.training_samples(model, task, task.train, random.Random(0))
    assert sum(sample.task == UNRELATED for sample in samples) == len(task.train)
    batches = model.pack(samples)

    def total() -> torch.Tensor:
        parts = [method.loss(model, batch, model.forward(batch)) for batch in batches]
        return sum((part["unrelated"].total for part in parts if part), start=torch.zeros(()))

    assert total().item() == pytest.approx(0, abs=1e-4)
    for parameter in model.trainable().values():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    moved = total()
    assert moved.item() > 0.01
    moved.backward()
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in model.trainable().values())
    method.end_task(model, task)
    assert method.state_dict() == {}


@pytest.mark.parametrize(("method", "options"), [(EditCodebook, {"radius": 0.0}), (EditCodebook, {"text_weight": 2.0})])
def test_options_out_of_range(method: type, options: dict[str, float]) -> None:
    with pytest.raises(UserError):
        method(**options)
