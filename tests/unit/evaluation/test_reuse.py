from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmcl.evaluation.predictions import write_predictions
from mmcl.evaluation.reuse import Answers, Weights, part_of, question_key, structure
from mmcl.methods.expert_units import make_unit
from mmcl.protocols import BASE, Prediction, Route
from mmcl.testing import tiny_assembly, tiny_tasks

ONE = Route((("one", 1.0),), ("one",))
TWO = Route((("two", 1.0),))
MIXED = Route((("one", 0.75), ("two", 0.25)))


def assembly():
    model = tiny_assembly()
    info = model.encoder_info
    for name in ("one", "two"):
        unit = make_unit("copy", model.projector, name=name, rank=2, tokens=info.tokens, width=info.width)
        model.add_expert(name, unit)
        model.add_adapter(name)
    return model


def routes_that_change(part: str) -> set[Route]:
    """The routes whose digest is another one after a parameter of that part has moved by a little."""
    model = assembly()
    before = Weights.of(model, "given")
    name, parameter = next((n, p) for n, p in model.named_parameters() if part in n)
    if name.startswith("encoder."):
        model.set_trainable(["encoder"])
    parameter.data.view(-1)[0] += 1e-6
    after = Weights.of(model, "given")
    return {route for route in (BASE, ONE, TWO, MIXED) if before.route(route) != after.route(route)}


@pytest.mark.parametrize(
    ("part", "changed"),
    [
        ("experts.one.", {ONE, MIXED}),
        ("experts.two.", {TWO, MIXED}),
        (".lora_B.one.", {ONE}),
        (".lora_A.two.", set()),
        (".lora_A.default.", {BASE, ONE, TWO, MIXED}),
        ("projector.", {BASE, ONE, TWO, MIXED}),
        ("encoder.", {BASE, ONE, TWO, MIXED}),
    ],
)
def test_a_route_depends_on_what_it_goes_through(part: str, changed: set[Route]) -> None:
    assert routes_that_change(part) == changed


def test_parts() -> None:
    assert part_of("experts.a b.layers.0.weight") == ("expert", "a b")
    assert part_of("language.model.layers.0.q_proj.lora_A.one.weight") == ("adapter", "one")
    assert part_of("language.model.layers.0.q_proj.lora_B.default.weight") == ("shared", "")
    assert part_of("language.model.layers.0.q_proj.base_layer.weight") == ("shared", "")


def test_weights_of_a_mixture_and_what_tensors_do_not_say() -> None:
    model = assembly()
    weights = Weights.of(model, "given")
    assert weights.route(MIXED) != weights.route(Route((("one", 0.25), ("two", 0.75))))
    assert weights.route(BASE) != Weights.of(model, "other code").route(BASE)
    assert Weights.of(model, "given").route(MIXED) == weights.route(MIXED)
    before = structure(model.experts["one"])
    model.experts["one"].scale = 2.0
    assert structure(model.experts["one"]) != before
    assert Weights.of(model, "given").route(ONE) != weights.route(ONE)
    assert Weights.of(model, "given").route(TWO) == weights.route(TWO)


def test_a_question_is_its_words_its_image_its_route_and_the_options() -> None:
    model = assembly()
    weights = Weights.of(model, "given")
    one, two, three = tiny_tasks()[0].test[:3]  # the first two ask differently about one image

    def key(sample, route=BASE, options=("greedy", 8)) -> str:
        (item,) = model.items([sample], [route], [[False]])
        return question_key(item, weights, options)

    assert key(one) == key(one.replace(id="x", task="y", answers=("z",), group="g", metadata={"a": 1}))
    assert key(one) != key(one.replace(images=three.images))
    keys = [key(one), key(two), key(one, ONE), key(one, TWO), key(one, options=("greedy", 9))]
    assert len(set(keys)) == len(keys)


def test_answers_of_other_weights_are_not_kept_in_memory_but_found_again(tmp_path: Path) -> None:
    def row(key: str, stage: str) -> Prediction:
        return Prediction("1", "t", "q", f"at {stage}", ("a",), metadata={"answer_key": key, "measured_at": stage})

    one, two = (Weights({"w": torch.tensor(value)}, {}, "") for value in (1.0, 2.0))
    answers = Answers()
    assert not answers.under(one)
    write_predictions(tmp_path / "1.jsonl", [row("k", "01"), row("taken over", "00")])
    answers.add([row("k", "01"), row("taken over", "00")], "01")
    answers.add_file(one.shared, tmp_path / "1.jsonl", "01")
    assert {key: known.text for key, known in answers.under(one).items()} == {"k": "at 01"}
    assert not answers.under(two)
    assert {key: known.origin for key, known in answers.under(one).items()} == {"k": "01"}
