"""WiSE-FT, selective tuning and learning without forgetting against their formulas."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mmcl.errors import UserError
from mmcl.methods.lwf import LwF
from mmcl.methods.selective import Selective
from mmcl.methods.wise_ft import WiSEFT
from mmcl.testing import tiny_assembly, tiny_tasks


def test_wise_ft_goes_back_a_part_of_the_way(train: Any) -> None:
    start, end = train([]).snapshot(), train(tiny_tasks()[:1]).snapshot()
    found = train(tiny_tasks()[:1], WiSEFT(alpha=0.3)).snapshot()
    for name, value in found.items():
        assert torch.allclose(value, 0.7 * start[name] + 0.3 * end[name], atol=1e-6)
    assert any(not torch.equal(start[name], end[name]) for name in start)


@pytest.mark.parametrize(("back_to", "same"), [("start", True), ("previous", False)])
def test_wise_ft_of_nothing_forgets_the_task_or_all_tasks(train: Any, back_to: Any, same: bool) -> None:
    first = WiSEFT(alpha=1.0)
    start = train([]).snapshot()
    model = train(tiny_tasks()[:1], first)  # alpha 1 is fine-tuning
    plain = train(tiny_tasks()[:1]).snapshot()
    assert all(torch.allclose(model.snapshot()[name], value, atol=1e-7) for name, value in plain.items())
    both = train(tiny_tasks(), WiSEFT(alpha=0.0, back_to=back_to)).snapshot()
    assert all(torch.allclose(both[name], value, atol=1e-6) for name, value in start.items())
    half = train(tiny_tasks(), WiSEFT(alpha=0.5, back_to=back_to)).snapshot()
    method = WiSEFT(alpha=0.5, back_to=back_to)
    model = train(tiny_tasks()[:1], method)
    copy = WiSEFT(alpha=0.5, back_to=back_to)
    copy.load_state_dict(model, method.state_dict())
    resumed = train(tiny_tasks()[1:], copy, model=model).snapshot()
    assert all(torch.equal(half[name], value) for name, value in resumed.items())
    assert (sum(method.stored_bytes().values()) > 0) == same


def test_selective_trains_its_matrices_and_no_others() -> None:
    model = tiny_assembly()
    for part, words in (("attention", {"q_proj", "k_proj", "v_proj", "o_proj"}), ("mlp", {"gate_proj", "up_proj"})):
        model.set_trainable(model.recipe_train)
        Selective(part=part).begin_task(model, tiny_tasks()[0], [])  # type: ignore[arg-type]
        names = [name for name in model.trainable() if name.startswith("language.")]
        assert {word for name in names for word in name.split(".") if word.endswith("_proj")} == words
        assert all(".lora_" in name for name in names)  # the recipe trains adapters, not the matrices themselves
        assert any(name.startswith("projector.") for name in model.trainable())


def test_selective_of_the_whole_language_model() -> None:
    model = tiny_assembly(train=("projector", "language"))
    model.recipe_train = ("projector", "language")
    Selective(part="mlp").begin_task(model, tiny_tasks()[0], [])
    names = [name for name in model.trainable() if name.startswith("language.")]
    assert names and not any(".lora_" in name or "down_proj" in name or "embed" in name for name in names)
    model.set_trainable(["projector"])
    with pytest.raises(UserError, match="no matrices of the part `mlp`"):
        Selective(part="mlp").begin_task(model, tiny_tasks()[0], [])


def test_lwf_is_nothing_where_teacher_and_student_are_one(model: Any) -> None:
    first, second = tiny_tasks()
    method = LwF(strength=2.0, temperature=3.0)
    (batch,) = model.pack(second.train)
    method.begin_task(model, first, [])
    assert method.loss_counts(batch) == {}  # nothing to hold to
    method.begin_task(model, second, [first])
    out = model.forward(batch)
    found = method.loss(model, batch, out)["logits"]
    assert float(found.total.detach()) == pytest.approx(0, abs=1e-4)
    assert found.count == len(batch.targets)
    teacher = out.logits.detach().double()
    for parameter in model.trainable().values():
        parameter.data += 0.02
    out = model.forward(batch)
    p, q = (teacher / 3).softmax(-1), (out.logits.detach().double() / 3).softmax(-1)
    wanted = 2.0 * 9 * float((p * (p.log() - q.log())).sum())  # strength * T^2 * KL(teacher || student)
    assert float(method.loss(model, batch, out)["logits"].total.detach()) == pytest.approx(wanted, rel=1e-3)
    method.end_task(model, second)
    assert method.loss_counts(batch) == {}


def test_lwf_holds_the_answers_of_the_model_before(train: Any) -> None:
    first, second = tiny_tasks()
    before = train([first], steps=8)
    plain, held = train([first, second], steps=8), train([first, second], LwF(strength=50.0), steps=8)
    (batch,) = before.pack(second.train)
    target = before.forward(batch).logits.softmax(-1)

    def apart(model: Any) -> float:
        return float((model.forward(batch).logits.softmax(-1) - target).abs().sum())

    assert apart(held) < 0.5 * apart(plain)
    off = train([first, second], LwF(strength=0.0), steps=8).snapshot()
    assert all(torch.equal(off[name], value) for name, value in plain.snapshot().items())


@pytest.mark.parametrize(
    ("kind", "options"),
    [(WiSEFT, {"alpha": 2.0}), (WiSEFT, {"back_to": "x"}), (Selective, {"part": "x"}), (LwF, {"temperature": 0.0})],
)
def test_options_out_of_range(kind: Any, options: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        kind(**options)
