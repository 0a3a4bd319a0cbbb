"""A projector that reads the question: in rows, in answers, and never what is to be learned."""

from __future__ import annotations

import pytest
import torch

from mmcl.data.types import Sample, Turn
from mmcl.methods.projector_experts import ProjectorExperts
from mmcl.model.assembly import Assembly
from mmcl.model.visual import questions
from mmcl.protocols import Route
from mmcl.recipe.spec import PluginSpec
from mmcl.testing import tiny_assembly, tiny_tasks
from mmcl.training.objectives.all_text import AllText
from mmcl.training.objectives.answers import Answers

OPTIONS = {"queries": 3, "depth": 2, "heads": 4, "width": 16}


def model(packing: str = "packed", *, text: bool = True, queries: int = 3) -> Assembly:
    assembly = tiny_assembly(
        encoder=PluginSpec("tiny", {"tokens": 16, "width": 64}),
        projector=PluginSpec("qformer", {**OPTIONS, "text": text, "queries": queries}),
    )
    assembly.packed = packing == "packed"
    return assembly


def samples() -> list[Sample]:
    """Several questions of an image, two images in a sample, several turns, and text alone."""
    found = [sample for task in tiny_tasks() for sample in task.train[:4]]
    first, second = found[0], next(each for each in found if each.images[0].digest != found[0].images[0].digest)
    asked = [
        first.replace(id=f"{k}", turns=(Turn("user", f"<image>\nquestion {k}?"), Turn("assistant", "red")))
        for k in range(3)
    ]
    both = first.replace(
        id="both",
        images=(first.images[0], second.images[0]),
        turns=(
            Turn("user", "<image> left?"),
            Turn("assistant", "a"),
            Turn("user", "<image> right?"),
            Turn("assistant", "b"),
        ),
    )
    text = Sample(id="text", task=first.task, turns=(Turn("user", "two and two?"), Turn("assistant", "four")))
    return [*found, *asked, both, text]


def loss_and_gradients(assembly: Assembly) -> tuple[float, torch.Tensor]:
    total = 0.0
    for batch in assembly.pack(samples(), row_tokens=200):
        loss = Answers().loss(assembly, batch, assembly.forward(batch))["tokens"].total
        loss.backward()
        total += loss.item()
    return total, torch.cat([p.grad.flatten() for p in assembly.trainable().values() if p.grad is not None])


def test_packed_is_padded() -> None:
    packed, padded = loss_and_gradients(model()), loss_and_gradients(model("padded"))
    assert packed[0] == pytest.approx(padded[0], rel=1e-5)
    assert float((packed[1] - padded[1]).norm() / padded[1].norm()) < 1e-4


def test_answers_do_not_depend_on_company() -> None:
    assembly = model()
    assert assembly.generate(samples()) == [assembly.generate([sample])[0] for sample in samples()]


def test_questions_share_an_image_only_where_it_does_not_depend_on_them() -> None:
    asked = samples()[-5:-2]
    assert len({sample.images[0].digest for sample in asked}) == 1
    reading, blind = model(), model(text=False)
    (row,) = reading.pack(asked, row_tokens=1000)
    assert len(row.images) == 3 and row.image_texts == ("question 0?", "question 1?", "question 2?")
    (row,) = blind.pack(asked, row_tokens=1000)
    assert len(row.images) == 1 and row.image_texts == ("",)


def test_the_question_changes_the_tokens_and_the_answer_does_not() -> None:
    assembly = model()
    asked = samples()[-5]
    other = asked.replace(turns=(Turn("user", "<image>\nanother?"), asked.turns[1]))
    answered = asked.replace(turns=(asked.turns[0], Turn("assistant", "something else")))

    def visual(sample: Sample) -> torch.Tensor:
        (batch,) = assembly.pack([sample])
        with torch.no_grad():
            return assembly.inputs(batch)["inputs_embeds"][0, batch.is_image[0]]

    assert not torch.equal(visual(asked), visual(other))
    assert torch.equal(visual(asked), visual(answered))


def test_an_image_never_knows_what_is_to_be_learned() -> None:
    both = samples()[-2]
    assert questions(both, Answers().supervise(both)) == ("left?", "right?")
    assert questions(both, AllText().supervise(both)) == ("", "")
    (batch,) = model().pack([both], supervise=[AllText().supervise(both)])
    assert batch.image_texts == ("", "")


def test_its_experts_read_the_question_too() -> None:
    for unit, queries in (("copy", 3), ("lora", 3), ("residual", 16)):  # the last needs as many tokens as enter
        assembly, task = model(queries=queries), tiny_tasks()[0]
        method = ProjectorExperts(unit=unit, rank=2, router="oracle")
        method.setup(assembly)
        method.begin_task(assembly, task, ())
        route = Route(((task.name, 1.0),))
        asked = samples()[-5]
        other = asked.replace(turns=(Turn("user", "<image>\nanother?"), asked.turns[1]))
        rows = [assembly.pack([sample], [route])[0] for sample in (asked, other)]
        with torch.no_grad():
            one, two = (assembly.inputs(row)["inputs_embeds"][0, row.is_image[0]] for row in rows)
        assert not torch.equal(one, two)
