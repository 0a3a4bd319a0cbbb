from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from mmcl.data.types import Sample, Task
from mmcl.methods.projector_experts import ProjectorExperts
from mmcl.methods.routers import Matcher, Prototype, fit_keys, image_scale, mean_vectors, unit
from mmcl.protocols import BASE, Route


def routed(world: Any, *tasks: Task, **options: Any) -> tuple[Any, ProjectorExperts]:
    """A model and a method that has been through the tasks, without training."""
    model, method = world.build(), ProjectorExperts(**options)
    method.setup(model)
    world.learn(model, method, *tasks)
    return model, method


def accuracy(labels: list[str], samples: list[Sample]) -> float:
    return sum(label == sample.task for label, sample in zip(labels, samples, strict=True)) / len(samples)


def select(model: Any, method: ProjectorExperts, samples: list[Sample]) -> list[str]:
    return [route.label for route in method.select(model, [sample.hidden() for sample in samples])]


def three_colours(world: Any) -> list[Task]:
    return [
        world.task(name, getattr(world, name), world.shape, seed=seed)
        for seed, name in enumerate(("red", "green", "blue"))
    ]


def questions_of(tasks: list[Task]) -> list[Sample]:
    return [sample for task in tasks for sample in task.test]


@pytest.mark.parametrize("router", ["prototype", "key", "mixture"])
def test_separable_tasks_are_told_apart(world: Any, router: Any) -> None:
    tasks = three_colours(world)
    model, method = routed(world, *tasks, router=router, key_steps=500)
    assert accuracy(select(model, method, questions_of(tasks)), questions_of(tasks)) >= 0.95


def test_indistinguishable_tasks_are_told_apart_by_chance(world: Any) -> None:
    tasks = [world.task(name, world.gray, world.shape, tests=300, seed=seed) for seed, name in enumerate("ab")]
    model, method = routed(world, *tasks, fallback=None)
    samples = questions_of(tasks)
    assert 0.4 <= accuracy(select(model, method, samples), samples) <= 0.6
    # Nothing else of a sample is read either.
    assert list(method.select(model, samples)) == list(method.select(model, world.hidden(samples)))


def test_a_route_depends_on_its_sample_alone(world: Any) -> None:
    tasks = three_colours(world)
    model, method = routed(world, *tasks, router="mixture", top_k=2)
    samples = questions_of(tasks)
    together = list(method.select(model, world.hidden(samples)))
    assert together == [method.select(model, [sample])[0] for sample in world.hidden(samples)]
    order = list(range(len(samples)))
    random.Random(0).shuffle(order)
    shuffled = method.select(model, world.hidden([samples[k] for k in order]))
    assert [together[k] for k in order] == list(shuffled)


def same_images(world: Any) -> list[Task]:
    """Two tasks that ask different things of the same images."""
    rng = np.random.default_rng(0)
    images = [world.image(world.gray, rng) for _ in range(200)]
    tasks = []
    for name in ("shape", "color"):
        questions = getattr(world, name)
        rows = [world.sample(k, name, [image], questions[k % 3]) for k, image in enumerate(images)]
        tasks.append(Task(name, rows[:100], rows[100:]))
    return tasks


def test_same_images_need_the_text(world: Any) -> None:
    tasks = same_images(world)
    samples = questions_of(tasks)
    for weight, low, high in ((0.5, 0.95, 1.0), (1.0, 0.95, 1.0), (0.0, 0.4, 0.6)):
        model, method = routed(world, *tasks, text_weight=weight, fallback=None)
        assert low <= accuracy(select(model, method, samples), samples) <= high, weight


def test_decisions_by_part_for_the_report(world: Any) -> None:
    tasks = same_images(world)
    model, method = routed(world, *tasks, fallback=None)
    samples = questions_of(tasks)
    labels = method.decisions(model, samples)
    assert list(labels["both"]) == select(model, method, samples)
    assert accuracy(list(labels["text"]), samples) >= 0.95
    assert 0.4 <= accuracy(list(labels["image"]), samples) <= 0.6
    assert ProjectorExperts(router="oracle").decisions(model, samples) == {}


def test_foreign_samples_go_to_base(world: Any) -> None:
    tasks = three_colours(world)[:2]
    foreign_image = list(world.task("x", world.blue, world.shape).test)
    foreign_text = list(world.task("x", world.red, world.poem).test)
    model, method = routed(world, *tasks)
    for samples in (foreign_image, foreign_text):
        assert select(model, method, samples) == ["base"] * len(samples)
        assert all(route == BASE for route in method.select(model, samples))
    own = select(model, method, questions_of(tasks))
    assert own.count("base") <= 0.1 * len(own)
    model, method = routed(world, *tasks, fallback=None)
    assert "base" not in select(model, method, foreign_image + foreign_text)


def test_the_fallback_share_is_a_quantile_of_the_tasks_own_samples(world: Any) -> None:
    task = world.task("red", world.red, world.shape, count=200)
    model, method = routed(world, task, fallback=0.2)
    assert select(model, method, list(task.train)).count("base") == 40


def test_later_tasks_do_not_move_an_old_threshold(world: Any) -> None:
    tasks = three_colours(world)
    model, method = routed(world, tasks[0])
    vectors = mean_vectors(model, [tasks[0].test[0]], method._scale)
    limit = dict(method._prototypes["red"].threshold)
    near = method._matcher().own_nearness(vectors, ("image", "text"), "red")
    assert set(limit) == {"image+text", "image", "text"}
    # A wide task makes the common spread larger.
    spread = method._matcher().spread["text"]
    world.learn(model, method, world.task("wide", world.gray, [*world.poem, *world.color, *world.shape]))
    assert method._matcher().spread["text"] > spread
    assert method._prototypes["red"].threshold == limit
    assert method._matcher().own_nearness(vectors, ("image", "text"), "red") == near


def test_a_missing_part_does_not_decide(world: Any) -> None:
    tasks = [world.task("red", world.red, world.shape), world.task("blue", world.blue, world.color, seed=1)]
    model, method = routed(world, *tasks)
    rng = np.random.default_rng(5)
    text_only = [world.sample(k, "blue", [], world.color[k % 3]) for k in range(6)]
    image_only = [world.sample(k, "blue", [world.image(world.blue, rng)], "") for k in range(6)]
    assert select(model, method, text_only) == ["blue"] * 6
    assert select(model, method, image_only).count("blue") >= 5
    model, method = routed(world, *tasks, text_weight=0.0)
    assert select(model, method, text_only) == ["base"] * 6


def test_tasks_without_a_part_are_no_candidates_for_samples_that_have_it(world: Any) -> None:
    tasks = [world.task("red", world.red, world.shape), world.task("words", None, world.poem, seed=1)]
    options = {"fallback": None, "calibrated": False, "text_weight": 0.95}  # the text alone would decide for `words`
    model, method = routed(world, *tasks, **options)
    mixed = [world.task("x", world.blue, world.poem).test[0]]
    assert select(model, method, mixed) == ["red"]
    assert select(model, method, list(tasks[1].test)) == ["words"] * len(tasks[1].test)
    model, method = routed(world, tasks[1], **options)
    assert select(model, method, mixed) == ["base"]


def test_images_of_a_sample_are_averaged(world: Any) -> None:
    model, _ = routed(world)
    rng = np.random.default_rng(0)
    one, two = world.image(world.red, rng), world.image(world.blue, rng)
    first, second = model.image_features([one, two])
    wanted = ((first.mean(0) + second.mean(0)) / 2).double()
    pair = mean_vectors(model, [world.sample(0, "t", [one, two], "")])
    assert torch.allclose(pair["image"], wanted / wanted.norm(), atol=1e-6)
    assert "text" not in pair


def test_prototypes_are_means_and_do_not_depend_on_the_order(world: Any) -> None:
    task = world.task("red", world.red, world.shape)
    model, method = routed(world, task)
    known = method._prototypes["red"]
    pooled = [f.mean(0) for f in model.image_features([s.images[0] for s in task.train])]
    scale = torch.stack(pooled).std(0, correction=0)
    images = np.stack([unit(f / scale).numpy() for f in pooled]).astype(np.float64)
    texts = model.text_features([s.question for s in task.train])
    texts = (texts / texts.norm(dim=1, keepdim=True)).numpy().astype(np.float64)
    for part, vectors in (("image", images), ("text", texts)):
        mean = vectors.mean(0)
        anchor = mean / np.linalg.norm(mean)
        assert np.allclose(known.anchors[part].numpy(), anchor, atol=1e-6)
        assert known.spread[part] == pytest.approx(float((1 - vectors @ anchor).mean()), abs=1e-6)
    plain = routed(world, task, calibrated=False)[1]._prototypes["red"].anchors["image"]
    assert torch.allclose(plain, unit(torch.stack([unit(f) for f in pooled]).mean(0)), atol=1e-6)
    _, other = routed(world, Task("red", list(reversed(task.train))))
    assert all(torch.allclose(known.anchors[p], other._prototypes["red"].anchors[p], atol=1e-7) for p in known.anchors)


def test_image_channels_are_scaled_by_the_first_task_with_images(world: Any) -> None:
    words, red = world.task("words", None, world.shape), world.task("red", world.red, world.shape)
    model, method = routed(world, words)
    assert method._scale is None
    world.learn(model, method, red)
    pooled = torch.stack([f.mean(0) for f in model.image_features([sample.images[0] for sample in red.train])])
    scale = method._scale
    assert scale is not None and torch.allclose(scale, pooled.std(0, correction=0), atol=1e-6)
    world.learn(model, method, world.task("gray", world.gray, world.shape, seed=3))
    assert method._scale is scale
    one_image = image_scale(model, [red.train[0]] * 3)
    assert one_image is not None and torch.equal(one_image, torch.ones(12))


def corner(degrees: float) -> torch.Tensor:
    return torch.tensor([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))])


def test_nearness_by_hand() -> None:
    known = {
        "a": Prototype({"image": corner(0).float(), "text": corner(0).float()}, {"image": 0.1, "text": 0.4}),
        "b": Prototype({"image": corner(90).float(), "text": corner(60).float()}, {"image": 0.3, "text": 0.2}),
    }
    vectors = {"image": corner(60), "text": corner(0)}
    plain = Matcher(known, text_weight=0.25, calibrated=False)
    cos = np.cos(np.radians([60, 30]))
    assert plain.nearness(vectors, ("image", "text")).tolist() == pytest.approx(
        [0.75 * cos[0] + 0.25, 0.75 * cos[1] + 0.25 * 0.5]
    )
    scaled = Matcher(known, text_weight=0.25, calibrated=True)
    assert scaled.nearness(vectors, ("image", "text")).tolist() == pytest.approx(
        [0.75 * (1 - (1 - cos[0]) / 0.2) + 0.25, 0.75 * (1 - (1 - cos[1]) / 0.2) + 0.25 * (1 - 0.5 / 0.3)]
    )
    assert scaled.nearness(vectors, ("text",)).tolist() == pytest.approx([1, 1 - 0.5 / 0.3])
    own = 0.75 * (1 - (1 - cos[0]) / 0.1) + 0.25
    assert scaled.own_nearness(vectors, ("image", "text"), "a") == pytest.approx(own)


def test_an_exact_tie_goes_to_the_task_learned_first(world: Any) -> None:
    task = world.task("first", world.red, world.shape)
    model, method = routed(world, task, Task("second", task.train))
    assert set(select(model, method, list(task.train[:20]))) <= {"first", "base"}


def test_keys_are_pulled_to_the_prototype(world: Any) -> None:
    tasks = three_colours(world)
    model, method = routed(world, *tasks, router="key")
    _, prototypes = routed(world, *tasks)
    for task in tasks:
        key, known = method._prototypes[task.name], prototypes._prototypes[task.name]
        assert all(float(key.anchors[part] @ known.anchors[part]) > 0.999 for part in known.anchors)
        assert all(key.spread[part] == pytest.approx(known.spread[part], abs=1e-3) for part in known.anchors)
    mean = mean_vectors(model, tasks[0].train, method._scale)
    first, again = (fit_keys(mean, steps=5, learning_rate=0.01) for _ in range(2))
    assert all(torch.equal(first[part], again[part]) for part in first)
    assert float(first["image"] @ mean["image"]) < 0.999, "five steps do not suffice"
    assert dict(method.stored_bytes()).keys() == {"keys", "scale"}
    _, hasty = routed(world, tasks[0], router="key", key_steps=5)
    assert float(hasty._prototypes["red"].anchors["image"] @ prototypes._prototypes["red"].anchors["image"]) < 0.999


def test_mixture_weights(world: Any) -> None:
    tasks = three_colours(world)
    samples = world.hidden(questions_of(tasks)[:5])
    model, method = routed(world, *tasks, router="mixture", temperature=2.0, fallback=None)
    matcher = method._matcher()
    for sample, route in zip(samples, method.select(model, samples), strict=True):
        near = matcher.nearness(mean_vectors(model, [sample], method._scale), ("image", "text"))
        wanted = dict(zip(matcher.tasks, (near / 2.0).softmax(0).tolist(), strict=True))
        assert dict(route.experts) == pytest.approx(wanted)
        assert sum(weight for _, weight in route.experts) == pytest.approx(1)
    model, method = routed(world, *tasks, router="mixture", temperature=2.0, fallback=None, top_k=2, adapter=True)
    for sample, route in zip(samples, method.select(model, samples), strict=True):
        near = matcher.nearness(mean_vectors(model, [sample], method._scale), ("image", "text"))
        best = near.topk(2)
        weights = (best.values / 2.0).softmax(0) * 2 / 3
        names = [matcher.tasks[k] for k in best.indices]
        assert dict(route.experts) == pytest.approx(
            {names[0]: float(weights[0]), names[1]: float(weights[1]), "base": 1 / 3}
        )
        assert route.adapters == (names[0],)


def test_oracle_and_base(world: Any) -> None:
    tasks = [world.task(name, world.gray, world.shape, seed=seed) for seed, name in enumerate("ab")]
    model, method = routed(world, *tasks, router="oracle")
    samples = [sample.hidden(keep_task=True) for sample in questions_of(tasks)]
    assert [route.label for route in method.select(model, samples)] == [sample.task for sample in samples]
    unknown = samples[0].replace(task="c")
    assert list(method.select(model, [unknown])) == [BASE]
    assert method.needs_task_id and not ProjectorExperts().needs_task_id
    model, method = routed(world, *tasks, router="base")
    assert set(method.select(model, samples)) == {BASE}


def test_only_learned_experts_are_candidates(world: Any) -> None:
    tasks = three_colours(world)
    model, method = routed(world)
    samples = list(tasks[0].test)
    assert select(model, method, samples) == ["base"] * len(samples)
    method.begin_task(model, tasks[0], ())
    assert select(model, method, samples) == ["base"] * len(samples)
    method.end_task(model, tasks[0])
    assert select(model, method, samples).count("red") >= 0.9 * len(samples)


def test_an_adapter_goes_with_its_expert(world: Any) -> None:
    tasks = three_colours(world)[:2]
    model, method = routed(world, *tasks, adapter=True, fallback=None)
    for sample in (tasks[0].test[0], tasks[1].test[0]):
        wanted = Route(((sample.task, 1.0),), (sample.task,))
        assert list(method.select(model, [sample.hidden()])) == list(method.assign(model, [sample])) == [wanted]
