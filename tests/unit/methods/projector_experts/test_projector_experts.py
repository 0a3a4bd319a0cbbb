from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mmcl.data.types import Task
from mmcl.errors import UserError
from mmcl.methods.expert_units import expert_name
from mmcl.methods.projector_experts import ProjectorExperts
from mmcl.protocols import BASE, Route

UNITS = ("copy", "lora", "residual")


def start(world: Any, *, train: tuple[str, ...] = ("projector", "language.lora"), **options: Any) -> Any:
    model, method = world.build(train=train), ProjectorExperts(**options)
    method.setup(model)
    return model, method


def tasks_of(world: Any, count: int = 3) -> list[Task]:
    """Tasks that disagree: other colours, the same questions, other answers."""
    colours = (world.red, world.green, world.blue, world.gray)
    return [
        world.task(f"t{k}", colours[k], world.shape, seed=k, answer=str(k), count=30, tests=6) for k in range(count)
    ]


def tensors(model: Any, keep: Callable[[str], bool]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if keep(name)}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return bool(first) and first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def logits(model: Any, samples: Any, routes: Any) -> Tensor:
    return torch.cat([model.forward(batch).logits for batch in model.pack(samples, routes)])


@pytest.mark.parametrize("unit", UNITS)
def test_a_new_expert_gives_the_logits_of_base(world: Any, unit: Any) -> None:
    (task,) = tasks_of(world, 1)
    model, method = start(world, unit=unit, adapter=True)
    base = logits(model, task.train[:4], [BASE] * 4)
    method.begin_task(model, task, ())
    routes = method.assign(model, task.train[:4])
    assert {route.label for route in routes} == {"t0"}
    assert torch.equal(logits(model, task.train[:4], routes), base)


def test_what_trains(world: Any) -> None:
    tasks = tasks_of(world, 2)
    for options, wanted in (
        ({}, {"experts.t1", "default"}),
        ({"freeze_shared": True}, {"experts.t1"}),
        ({"adapter": True}, {"experts.t1", "default", "t1"}),
        ({"adapter": True, "freeze_shared": True}, {"experts.t1", "t1"}),
    ):
        model, method = start(world, **options)
        world.learn(model, method, *tasks)
        names = set(model.trainable())
        experts = {".".join(name.split(".")[:2]) for name in names if not name.startswith("language.")}
        adapters = {name.split(".")[-2] for name in names if name.startswith("language.")}
        assert experts | adapters == wanted, options


@pytest.mark.parametrize("unit", UNITS)
def test_base_and_old_experts_stay_bit_identical(world: Any, unit: Any) -> None:
    tasks = tasks_of(world)
    model, method = start(world, unit=unit, adapter=True)
    first = tensors(model, lambda name: name.startswith("projector."))
    world.learn(model, method, tasks[0], steps=2)
    old = tensors(model, lambda name: name.startswith("experts.t0.") or ".t0." in name)
    new = tensors(model, lambda name: name.startswith("experts."))
    assert any(not torch.equal(value, new[name]) for name, value in _fresh(world, unit, tasks[0]).items())
    world.learn(model, method, *tasks[1:], steps=2)
    assert same(old, tensors(model, lambda name: name.startswith("experts.t0.") or ".t0." in name))
    assert same(first, tensors(model, lambda name: name.startswith("projector.")))


def _fresh(world: Any, unit: str, task: Task) -> dict[str, Tensor]:
    model, method = start(world, unit=unit)
    method.begin_task(model, task, ())
    return tensors(model, lambda name: name.startswith("experts."))


def test_oracle_with_everything_shared_frozen_forgets_nothing(world: Any) -> None:
    tasks = tasks_of(world)
    model, method = start(world, router="oracle", freeze_shared=True, adapter=True)
    after: dict[str, Tensor] = {}
    for task in tasks:
        before = logits(model, task.train[:4], [BASE] * 4)
        world.learn(model, method, task, steps=3)
        after[task.name] = logits(model, task.train[:4], _oracle(model, method, task))
        assert not torch.equal(before, after[task.name])
    for task in tasks:
        assert torch.equal(logits(model, task.train[:4], _oracle(model, method, task)), after[task.name])


def _oracle(model: Any, method: ProjectorExperts, task: Task) -> list[Route]:
    return list(method.select(model, [sample.hidden(keep_task=True) for sample in task.train[:4]]))


def test_a_shared_lora_that_trains_forgets_all_the_same(world: Any) -> None:
    tasks = tasks_of(world, 2)
    model, method = start(world, router="oracle")
    world.learn(model, method, tasks[0], steps=2)
    before = logits(model, tasks[0].train[:4], _oracle(model, method, tasks[0]))
    world.learn(model, method, tasks[1], steps=2)
    assert not torch.equal(logits(model, tasks[0].train[:4], _oracle(model, method, tasks[0])), before)


def test_replayed_rows_reach_shared_parts_only(world: Any) -> None:
    tasks = tasks_of(world, 2)
    model, method = start(world)
    world.learn(model, method, tasks[0], steps=1)
    method.begin_task(model, tasks[1], ())
    replayed = tasks[0].train[:3]
    world.loss(model, replayed, method.assign(model, replayed)).backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert reached and all(".lora_" in name for name in reached)
    mixed = [*replayed, *tasks[1].train[:3]]
    world.loss(model, mixed, method.assign(model, mixed)).backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and name.startswith("experts.")}
    assert moved and all(name.startswith("experts.t1.") for name in moved)


def test_a_mixed_batch_equals_its_rows(world: Any) -> None:
    tasks = tasks_of(world)
    model, method = start(world, router="mixture", top_k=2, temperature=1.0, unit="lora")
    world.learn(model, method, *tasks, steps=2)
    samples = [sample for k in range(3) for sample in (task.train[k] for task in tasks)]
    routes = list(method.select(model, samples))
    assert len({route.label for route in routes}) > 1
    together = {}
    for batch in model.pack(samples, routes):
        out = model.forward(batch)
        for index, sample in enumerate(batch.samples):
            together[sample.id] = out.logits[batch.target_sample == index]
    for sample, route in zip(samples, routes, strict=True):
        assert torch.allclose(together[sample.id], logits(model, [sample], [route]), atol=1e-5)


@pytest.mark.parametrize("unit", UNITS)
def test_save_load_and_go_on(world: Any, unit: Any) -> None:
    tasks = tasks_of(world, 4)
    model, method = start(world, unit=unit, adapter=True)
    world.learn(model, method, *tasks[:3], steps=1)
    questions = world.hidden([sample for task in tasks for sample in task.test])
    routes = list(method.select(model, questions))

    again, fresh = start(world, unit=unit, adapter=True)
    fresh.load_state_dict(again, method.state_dict())
    again.load_state(model.state())
    assert list(fresh.select(again, questions)) == routes
    assert fresh.stored_bytes() == method.stored_bytes()
    old = {name: tensor for name, tensor in model.state().items() if name.startswith("experts.")}
    old = {name: tensor.clone() for name, tensor in old.items()}
    for continued, by in ((model, method), (again, fresh)):
        torch.manual_seed(7)
        world.learn(continued, by, tasks[3], steps=1)
        assert same(old, tensors(continued, lambda name: name in old))
    assert same(dict(model.state()), dict(again.state()))
    assert list(fresh.select(again, questions)) == list(method.select(model, questions))


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("fallback", [None, 0.01])
def test_growth_is_as_predicted(world: Any, unit: Any, fallback: float | None) -> None:
    model, method = start(world, unit=unit, rank=3, fallback=fallback)
    predicted = method.growth(model)
    # prototypes: 12 numbers of the image and 64 of the text in float32, 2 spreads, 3 thresholds
    assert predicted["bytes"] == 4 * (12 + 64) + 8 * (2 if fallback is None else 5)
    for count, task in enumerate(tasks_of(world), start=1):
        world.learn(model, method, task)
        assert sum(p.numel() for p in model.experts.parameters()) == count * predicted["parameters"]
        assert method.stored_bytes() == {"prototypes": count * predicted["bytes"], "scale": 4 * 12}
    assert ProjectorExperts(router="oracle").growth(model)["bytes"] == 0


def test_two_copies_of_a_task_make_one_expert(world: Any) -> None:
    red = world.task("red", world.red, world.shape)
    copy = world.task("copy", world.red, world.shape, seed=9)
    other_image = world.task("blue", world.blue, world.shape)
    other_text = world.task("poem", world.red, world.poem)
    words = world.task("words", None, world.shape)
    model, method = start(world, expansion="similarity", tau=0.9)
    world.learn(model, method, red, copy, other_image, other_text, words)
    assert list(model.experts) == ["red", "blue", "poem", "words"]
    assert method.expert_of("copy") == "red"
    labels = [route.label for route in method.select(model, world.hidden(copy.test))]
    assert labels.count("red") >= 0.9 * len(labels)
    assert any(name.startswith("experts.red.") for name in _trained_by(model, method, copy))
    model, method = start(world)
    world.learn(model, method, red, copy)
    assert list(model.experts) == ["red", "copy"]


def _trained_by(model: Any, method: ProjectorExperts, task: Task) -> set[str]:
    method.begin_task(model, task, ())
    return set(model.trainable())


def test_where_a_new_expert_starts(world: Any) -> None:
    near = world.task("near", (0.8, 0.2, 0.1), world.shape, seed=5)
    for options, wanted in (
        ({"init": "base"}, "projector"),
        ({"init": "last"}, "experts.t1"),
        ({"init": "nearest", "init_threshold": -10.0}, "experts.t0"),
        ({"init": "nearest", "init_threshold": 1.0}, "projector"),
    ):
        model, method = start(world, **options)
        world.learn(model, method, *tasks_of(world, 2), steps=1)
        method.begin_task(model, near, ())
        assert torch.equal(model.experts["near"].second.weight, model.get_submodule(wanted).second.weight), options
        assert not torch.equal(model.experts["t0"].second.weight, model.experts["t1"].second.weight)


def test_a_residual_expert_standardises_its_tasks_images(world: Any) -> None:
    (task,) = tasks_of(world, 1)
    model, method = start(world, unit="residual")
    method.begin_task(model, task, ())
    features = torch.cat(model.image_features([sample.images[0] for sample in task.train]))
    assert torch.allclose(model.experts["t0"].shift, features.mean(0), atol=1e-6)
    world.learn(model, method, world.task("words", None, world.shape))
    assert torch.equal(model.experts["words"].shift, torch.zeros(12))


def test_a_task_that_comes_again_trains_its_own_expert(world: Any) -> None:
    tasks = tasks_of(world, 2)
    model, method = start(world)
    world.learn(model, method, *tasks)
    assert all(not name.startswith("experts.t1.") for name in _trained_by(model, method, tasks[0]))
    assert any(name.startswith("experts.t0.") for name in model.trainable())
    assert list(model.experts) == ["t0", "t1"]


def test_samples_of_other_tasks_in_a_blurry_stream(world: Any) -> None:
    tasks = tasks_of(world)
    model, method = start(world)
    leaky = Task("t1", [*tasks[1].train, tasks[0].train[0], tasks[2].train[0]])
    world.learn(model, method, tasks[0], leaky)
    assert [method.expert_of(name) for name in ("t0", "t1", "t2", "t3")] == ["t0", "t1", "t1", "base"]
    assert list(method.assign(model, [tasks[0].train[0].replace(task="t3")])) == [BASE]
    world.learn(model, method, tasks[2])
    assert method.expert_of("t2") == "t2"


@pytest.mark.parametrize(
    ("train", "options", "message"),
    [
        (("encoder", "language.lora"), {}, "the encoder"),
        (("language", "language.lora"), {}, "input embeddings"),
        (("*",), {"router": "oracle"}, "must stay frozen while expert"),
        (("language.*lora*",), {"router": "oracle", "adapter": True}, "must stay frozen while expert"),
    ],
)
def test_training_what_must_stay_frozen_is_refused(world: Any, train: Any, options: Any, message: str) -> None:
    model, method = start(world, train=train, **options)
    with pytest.raises(UserError, match=message):
        world.learn(model, method, *tasks_of(world, 2))


def test_what_routes_do_not_compare_may_train(world: Any) -> None:
    (task,) = tasks_of(world, 1)
    for train, options in (
        (("encoder", "projector"), {"router": "oracle"}),
        (("encoder", "projector"), {"text_weight": 1.0}),
        (("language", "language.lora"), {"text_weight": 0.0}),
        (("encoder", "projector"), {"freeze_shared": True}),
        (("experts", "language.lora"), {}),
    ):
        model, method = start(world, train=("projector",), **options)
        model.recipe_train = train
        world.learn(model, method, task)
        assert any(name.startswith("experts.t0.") for name in model.trainable())


def test_a_unit_that_does_not_fit_is_refused_at_setup(world: Any) -> None:
    model = world.build()
    model.projector = torch.nn.Identity()
    with pytest.raises(UserError, match="no linear layer"):
        ProjectorExperts(unit="lora").setup(model)


def test_options_out_of_range_are_reported_together() -> None:
    with pytest.raises(UserError) as caught:
        ProjectorExperts(rank=0, tau=1.5, text_weight=-1, temperature=0, top_k=0, fallback=1.0, key_steps=0)
    where = [problem.where for problem in caught.value.problems]
    names = ["rank", "tau", "text_weight", "temperature", "top_k", "fallback", "key_steps"]
    assert where == [f"projector_experts.{name}" for name in names]


def test_names_of_experts(world: Any) -> None:
    for task, taken, wanted in (
        ("shape", [], "shape"),
        ("was für Farbe", [], "was für Farbe"),
        ("v1.0", [], "v1_0"),
        ("v1_0", ["v1_0"], "v1_0_"),
        ("base", [], "base_"),
        ("default", [], "default_"),
        ("type", [], "type_"),
        ("training", [], "training_"),
    ):
        assert expert_name(task, dict.fromkeys(taken)) == wanted
    model, method = start(world, adapter=True)
    world.learn(model, method, world.task("v1.0", world.red, world.shape), world.task("type", world.blue, world.shape))
    assert list(model.experts) == ["v1_0", "type_"]
