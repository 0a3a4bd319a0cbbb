from __future__ import annotations

import random
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmcl.data.images import BytesImage
from mmcl.data.types import ImageSource, Sample
from mmcl.errors import UserError
from mmcl.memory.intake import FeatureSource
from mmcl.memory.memory import ReplayMemory
from mmcl.memory.records import StoredFeatures, image_bytes
from mmcl.training.checkpoint import load_tree, save_tree

from .helpers import picture, png, row, rows

FEATURES = FeatureSource(
    compute=lambda images: [torch.full((3, 4), float(int(image.digest[:4], 16) % 2000)) for image in images],
    shape=lambda image: (3, 4),
    fingerprint="f" * 64,
)


def cells(memory: ReplayMemory) -> dict[tuple[str, ...], int]:
    return {
        tuple(cell[part] for part in ("task", "modality", "group") if part in cell): cell["rows"]
        for cell in memory.report()["cells"]
    }


def recount(memory: ReplayMemory) -> int:
    """Bytes from scratch: every different image once."""
    images: dict[str, ImageSource] = {image.digest: image for record in memory for image in record.images}
    own = sum(sum(record.own_sizes().values()) for record in memory)
    return own + sum(image_bytes(image)[1] for image in images.values())


# ------------------------------------------------------------------------------------------------------------ quotas


def test_quotas_are_exact_to_one_row_as_tasks_arrive() -> None:
    memory = ReplayMemory(budget_rows=100, quota="task")
    for number in range(1, 8):
        memory.add(rows(f"t{number}", 300, images=False), task=f"t{number}")
        counts = list(cells(memory).values())
        assert sum(counts) == 100
        assert max(counts) - min(counts) <= 1
        assert len(counts) == number


def test_modality_and_group_cells() -> None:
    samples = rows("t", 60, images=False, group="a") + rows("t", 60, images=False, group="b", first=60)
    samples += rows("t", 60, group="a", first=120)
    memory = ReplayMemory(budget_rows=30)
    memory.add(samples, task="t")
    assert cells(memory) == {("t", "text", "a"): 10, ("t", "text", "b"): 10, ("t", "image+text", "a"): 10}
    memory = ReplayMemory(budget_rows=30, quota="task+modality")
    memory.add(samples, task="t")
    assert cells(memory) == {("t", "text"): 15, ("t", "image+text"): 15}
    memory = ReplayMemory(budget_rows=30, quota="proportional")
    memory.add(samples, task="t")
    assert cells(memory) == {("t", "text", "a"): 10, ("t", "text", "b"): 10, ("t", "image+text", "a"): 10}


def test_a_skewed_history_keeps_the_rare_modality_at_its_quota() -> None:
    """Nine rows with an image to one of text only, in each of three tasks; a plain reservoir drowns the rare kind."""
    balanced = ReplayMemory(budget_rows=60, quota="task+modality")
    plain = ReplayMemory(budget_rows=60, quota="proportional")
    for task in ("a", "b", "c"):
        samples = rows(task, 180) + rows(task, 20, images=False, first=180)
        balanced.add(samples, task=task)
        plain.add(samples, task=task)
    assert cells(balanced) == {(task, kind): 10 for task in "abc" for kind in ("image+text", "text")}
    assert {key[:2]: count for key, count in cells(plain).items()} == {
        (task, kind): {"image+text": 18, "text": 2}[kind] for task in "abc" for kind in ("image+text", "text")
    }
    drawn = Counter(record.modality for record in balanced.sample(600, random.Random(0)))
    assert drawn == {"text": 300, "image+text": 300}


def test_unused_quota_is_handed_on() -> None:
    memory = ReplayMemory(budget_rows=30, quota="task+modality")
    memory.add(rows("t", 100, images=False) + rows("t", 4, first=100), task="t")
    assert cells(memory) == {("t", "text"): 26, ("t", "image+text"): 4}


# ------------------------------------------------------------------------------------------------------------ budget

sample_lists = st.lists(
    st.tuples(st.integers(0, 12), st.sampled_from(["", "g", "h"]), st.integers(0, 60)), min_size=1, max_size=12
)


@settings(max_examples=60, deadline=None)
@given(st.integers(1000, 6000), st.lists(sample_lists, min_size=1, max_size=4), st.sampled_from(["full", "features"]))
def test_bytes_never_exceed_the_budget(budget: int, tasks: list[list[tuple[int, str, int]]], store: str) -> None:
    """At every step: after each record that comes in or goes out."""
    steps = []

    class Watched(ReplayMemory):
        def _insert(self, record):  # type: ignore[no-untyped-def]
            super()._insert(record)
            steps.append(self.bytes)

    memory = Watched(budget_bytes=budget, store=store)  # type: ignore[arg-type]
    for number, specification in enumerate(tasks):
        task = f"t{number}"
        memory.add(
            [
                row(task, index, image=picture(seed) if seed else None, group=group, question="q" * length)
                for index, (seed, group, length) in enumerate(specification)
            ],
            task=task,
            features=FEATURES if store == "features" else None,
        )
        assert memory.bytes == recount(memory) == sum(memory.report()["fields"].values())
        assert memory.report()["shared"] >= 0
    assert steps
    assert max(steps) <= budget


def test_one_by_one_is_the_same_as_all_at_once() -> None:
    samples = rows("t", 40) + rows("t", 40, images=False, first=40)
    together = ReplayMemory(budget_rows=13)
    together.add(samples, task="t")
    apart = ReplayMemory(budget_rows=13)
    for sample in random.Random(1).sample(samples, len(samples)):
        apart.add([sample], task="t")
        assert len(apart) <= 13
    assert {record.id for record in apart} == {record.id for record in together}


def test_a_shared_image_is_stored_once() -> None:
    shared = picture(1)
    memory = ReplayMemory(budget_bytes=100_000)
    memory.add([row("a", index, image=BytesImage(shared.read(), shared.name)) for index in range(5)], task="a")
    memory.add([row("b", index, image=BytesImage(shared.read(), shared.name)) for index in range(5)], task="b")
    report = memory.report()
    assert report["fields"]["image"] == len(shared.read()) + len("1.png")
    assert report["shared"] == report["fields"]["image"]
    assert memory.forget("a") == 5
    assert memory.report()["fields"]["image"] == len(shared.read()) + len("1.png")
    assert memory.forget("b") == 5
    assert memory.bytes == 0
    assert len(memory) == 0


@pytest.mark.parametrize(("store", "dtype"), [("full", "fp32"), ("features", "fp32"), ("features", "fp16")])
def test_planned_sizes_are_the_real_ones(store: str, dtype: str) -> None:
    """A budget of exactly what all rows take holds all of them, though they share images and come in two parts."""
    options = {"store": store, "feature_dtype": dtype}
    source = FEATURES if store == "features" else None
    parts = {task: [row(task, index, image=picture(index % 4)) for index in range(10)] for task in ("a", "b")}
    free = ReplayMemory(budget_bytes=10**6, **options)  # type: ignore[arg-type]
    for task, samples in parts.items():
        free.add(samples, task=task, features=source)
    exact = ReplayMemory(budget_bytes=free.bytes, **options)  # type: ignore[arg-type]
    for task, samples in parts.items():
        exact.add(samples, task=task, features=source)
    assert len(exact) == len(free) == 20
    assert exact.bytes == free.bytes


def test_byte_shares_not_row_shares() -> None:
    """At equal bytes a cell of text holds many more rows than a cell of images."""
    memory = ReplayMemory(budget_bytes=20_000, quota="task+modality")
    memory.add(rows("t", 300) + rows("t", 300, images=False, first=300), task="t")
    image, text = memory.report()["cells"]
    assert abs(image["bytes"] - text["bytes"]) < 1000  # a few rows
    assert text["rows"] > 2.5 * image["rows"]
    assert memory.bytes > 19_000


def test_a_budget_below_one_record_names_the_smallest() -> None:
    small, large = row("t", 0, image=picture(0)), row("t", 1, image=picture(1, size=64))
    size = ReplayMemory(budget_bytes=10**6)
    size.add([small], task="t")
    memory = ReplayMemory(budget_bytes=size.bytes - 1)
    with pytest.raises(UserError) as error:
        memory.add([large, small], task="t")
    assert f"the smallest one takes {size.bytes:,} bytes" in str(error.value)
    assert f"at least {size.bytes}" in error.value.problems[0].hint
    memory = ReplayMemory(budget_bytes=size.bytes)
    memory.add([large, small], task="t")
    assert [record.id for record in memory] == ["0"]


def test_rows_of_another_task_are_refused() -> None:
    memory = ReplayMemory(budget_rows=5)
    with pytest.raises(UserError, match="sample 3 is a row of task 'old'") as error:
        memory.add([row("new", 1), row("old", 3)], task="new")
    assert "current task" in error.value.problems[0].hint
    assert len(memory) == 0


def test_options_are_checked() -> None:
    with pytest.raises(UserError, match="unknown quota 'tasks'"):
        ReplayMemory(budget_rows=1, quota="tasks")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="unknown selection 'herding'") as error:
        ReplayMemory(budget_rows=1, selection="herding")
    assert "reservoir" in error.value.problems[0].hint
    for budgets in ({}, {"budget_bytes": 1, "budget_rows": 1}, {"budget_rows": 0}):
        with pytest.raises(UserError, match="budget"):
            ReplayMemory(**budgets)


def test_a_held_sample_is_not_stored_twice() -> None:
    memory = ReplayMemory(budget_rows=50)
    memory.add(rows("t", 10, images=False), task="t")
    memory.add(rows("t", 10, images=False), task="t")
    assert len(memory) == 10
    assert memory.report()["cells"][0]["seen"] == 10


# --------------------------------------------------------------------------------------------------------- selection


def test_reservoir_is_uniform() -> None:
    """Chi-square over 2,000 memories: 10 of 40 rows, after the quota has shrunk from 20, in three arrivals."""
    samples = rows("t", 40, images=False)
    other = rows("u", 40, images=False)
    included: Counter[str] = Counter()
    pairs: Counter[bool] = Counter()
    runs = 2000
    for seed in range(runs):
        memory = ReplayMemory(budget_rows=20, quota="task", seed=seed)
        memory.add(samples[:7], task="t")
        memory.add(samples[7:], task="t")
        memory.add(other, task="u")
        kept = {record.id for record in memory if record.task == "t"}
        assert len(kept) == 10
        included.update(kept)
        pairs[{"0", "39"} <= kept] += 1
    expected = runs * 10 / 40
    # Inclusions of one memory are negatively correlated: the statistic has mean 39 after this correction.
    statistic = sum((included[sample.id] - expected) ** 2 for sample in samples) / (expected * (1 - 10 / 40)) * 39 / 40
    assert statistic < 62.4  # 99% quantile of chi-square with 39 degrees of freedom
    assert statistic > 21.4  # 1%: not more even than chance either
    joint = 10 * 9 / (40 * 39)  # pairs as well: subsets are uniform, not only single rows
    assert abs(pairs[True] / runs - joint) < 3 * (joint * (1 - joint) / runs) ** 0.5


def test_ring_keeps_the_newest() -> None:
    memory = ReplayMemory(budget_rows=4, selection="ring")
    memory.add(rows("t", 10, images=False), task="t")
    memory.add(rows("t", 3, images=False, first=10), task="t")
    assert sorted(int(record.id) for record in memory) == [9, 10, 11, 12]


def test_drift_keeps_the_most_forgotten() -> None:
    memory = ReplayMemory(budget_rows=8, selection="drift", quota="task")
    memory.add(rows("t", 8, images=False), task="t")
    memory.score(lambda samples: [1.0 for _ in samples], new=True)
    memory.score(lambda samples: [1.0 + (int(sample.id) % 4) for sample in samples], new=False)
    assert {record.score for record in memory} == {1.0}
    memory.add(rows("u", 8, images=False), task="u")
    assert {int(record.id) % 4 for record in memory if record.task == "t"} == {2, 3}


# ------------------------------------------------------------------------------------------------- drawing and saving


def filled(store: str = "full", **options: object) -> ReplayMemory:
    memory = ReplayMemory(budget_rows=24, store=store, **options)  # type: ignore[arg-type]
    for task in ("a", "b"):
        samples: list[Sample] = rows(task, 30, group="x") + rows(task, 10, images=False, first=30)
        memory.add(samples, task=task, features=FEATURES if store == "features" else None)
    return memory


def test_drawing_is_uniform_over_cells_then_rows() -> None:
    memory = filled()
    drawn = memory.sample(24 * 10, random.Random(3))
    assert set(Counter((record.task, record.modality) for record in drawn).values()) == {60}
    assert set(Counter((record.task, record.id) for record in drawn).values()) == {10}
    assert {record.task for record in memory.sample(50, random.Random(3), exclude={"a"})} == {"b"}
    assert memory.sample(5, random.Random(3), exclude={"a", "b"}) == []


def test_a_small_cell_is_drawn_as_often_as_a_large_one() -> None:
    memory = ReplayMemory(budget_rows=100)
    memory.add(rows("t", 18) + rows("t", 2, images=False, first=18), task="t")
    assert Counter(record.modality for record in memory.sample(40, random.Random(0))) == {"text": 20, "image+text": 20}
    first = Counter(memory.sample(1, random.Random(seed))[0].modality for seed in range(200))
    assert min(first["text"], first["image+text"]) > 70


def test_proportional_draws_all_rows_alike() -> None:
    memory = ReplayMemory(budget_rows=20, quota="proportional")
    memory.add(rows("a", 90, images=False) + rows("a", 10, first=90), task="a")
    drawn = Counter(record.modality for record in memory.sample(200, random.Random(0)))
    assert drawn == {"text": 180, "image+text": 20}


@pytest.mark.parametrize("store", ["full", "features", "question", "text"])
def test_save_and_load_give_the_same_next_samples(store: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    memory = filled(store)
    save_tree(memory.state_dict(), tmp_path / "state")
    loaded = ReplayMemory(budget_rows=24, store=store)  # type: ignore[arg-type]
    loaded.load_state_dict(load_tree(tmp_path / "state"))
    assert loaded.bytes == memory.bytes
    assert loaded.report() == memory.report()
    ours, theirs = (m.sample(100, random.Random(7)) for m in (memory, loaded))
    for a, b in zip(ours, theirs, strict=True):
        assert a.sample().replace(images=()) == b.sample().replace(images=())
        assert [image.digest for image in a.images] == [image.digest for image in b.images]
        for left, right in zip(a.images, b.images, strict=True):
            if isinstance(left, StoredFeatures):
                assert isinstance(right, StoredFeatures)
                assert torch.equal(left.features, right.features)
            else:
                assert left.read() == right.read()
    for m in (memory, loaded):  # and the same after more rows have come
        m.add(rows("c", 30), task="c", features=FEATURES if store == "features" else None)
    assert [record.id for record in memory.sample(100, random.Random(8))] == [
        record.id for record in loaded.sample(100, random.Random(8))
    ]


def test_order_scores_and_drift_survive() -> None:
    memory = ReplayMemory(budget_rows=4, selection="ring")
    memory.add(rows("t", 10, images=False), task="t")
    memory.score(lambda samples: [float(sample.id) for sample in samples], new=True)
    memory.score(lambda samples: [1.5 + 2 * float(sample.id) for sample in samples], new=False)
    loaded = ReplayMemory(budget_rows=4, selection="ring")
    loaded.load_state_dict(memory.state_dict())
    assert [(r.score, r.drift) for r in loaded] == [(r.score, r.drift) for r in memory]
    assert {(r.score, r.drift) for r in loaded} == {(float(i), 1.5 + i) for i in (6, 7, 8, 9)}
    loaded.add(rows("t", 2, images=False, first=10), task="t")
    assert sorted(int(record.id) for record in loaded) == [8, 9, 10, 11]


def test_loading_into_a_smaller_budget_drops_the_last_ranked() -> None:
    memory = filled()
    smaller = ReplayMemory(budget_rows=8)
    smaller.load_state_dict(memory.state_dict())
    assert list(cells(smaller).values()) == [2, 2, 2, 2]
    assert {r.key for r in smaller} <= {r.key for r in memory}


def test_loading_another_store_is_refused() -> None:
    with pytest.raises(UserError, match="another `store` or `quota`"):
        ReplayMemory(budget_rows=8, store="text").load_state_dict(filled().state_dict())
    with pytest.raises(UserError, match="another `store` or `quota`"):
        ReplayMemory(budget_rows=8, quota="task").load_state_dict(filled().state_dict())


@pytest.mark.parametrize(
    ("store", "pixels", "answer"),
    [("full", True, True), ("features", False, True), ("question", False, False), ("text", False, True)],
)
def test_what_a_saved_memory_holds(store: str, pixels: bool, answer: bool, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Look for the image's bytes, its pixels, its digest and the answer in the files that are saved."""
    image = BytesImage(png(5, size=16), "secret.png")
    memory = ReplayMemory(budget_rows=3, store=store)  # type: ignore[arg-type]
    memory.add([row("t", 77, image=image)], task="t", features=FEATURES if store == "features" else None)
    save_tree(memory.state_dict(), tmp_path / "state")
    saved = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert (image.read()[20:] in saved) == pixels
    assert (image.read()[60:90] in saved) == pixels
    assert image.open().tobytes()[:48] not in saved
    assert (b"answer 77" in saved) == answer
    assert b"what is it?" in saved
    if store in ("question", "text"):
        assert image.digest.encode() not in saved
        assert b"secret" not in saved
        assert memory.report()["fields"]["image"] == memory.report()["fields"]["features"] == 0


def test_sampling_touches_no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("an accelerator was asked for")

    monkeypatch.setattr(torch.cuda, "_lazy_init", refuse)
    monkeypatch.setattr(torch.Tensor, "cuda", refuse)
    memory = filled("features")
    for record in memory.sample(40, random.Random(0)):
        for image in record.sample().images:
            features = image.stored_features("f" * 64)
            assert features is not None
            assert features.device.type == "cpu"
