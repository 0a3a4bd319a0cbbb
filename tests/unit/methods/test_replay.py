from __future__ import annotations

import copy
import io
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from mmcl.data.images import BytesImage
from mmcl.data.types import Sample, Task, Turn
from mmcl.errors import UserError
from mmcl.methods.distillation import excerpt, uses
from mmcl.methods.replay import Replay, interleave
from mmcl.model.assembly import Assembly
from mmcl.model.tiny import tiny_model, tiny_tokenizer
from mmcl.protocols import BASE, Batch, EncoderInfo, Output
from mmcl.recipe.spec import LoRASpec
from mmcl.training.checkpoint import load_tree, save_tree

TOKENS, WIDTH = 3, 8


class Patches(nn.Module):
    """A real vision encoder, as small as possible: three stripes of the image, one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.info = EncoderInfo(tokens=TOKENS, width=WIDTH, image_size=6, source="random:0")
        self.linear = nn.Linear(3 * 2 * 6, WIDTH)

    def transform(self) -> Callable[[Image.Image], Tensor]:
        return pixels

    def forward(self, images: Tensor) -> Tensor:
        stripes: Tensor = self.linear(images.unflatten(2, (TOKENS, 2)).permute(0, 2, 1, 3, 4).flatten(2))
        return stripes


class Linear(nn.Linear):
    def tokens(self, tokens_in: int) -> int:
        return tokens_in


def pixels(image: Image.Image) -> Tensor:
    values = torch.frombuffer(bytearray(image.resize((6, 6)).tobytes()), dtype=torch.uint8)
    return values.view(6, 6, 3).permute(2, 0, 1).float() / 255


def make_model(**options: object) -> Assembly:
    torch.manual_seed(0)
    model = Assembly(
        encoder=Patches(),
        projector=Linear(WIDTH, 64),
        language=tiny_model(),
        tokenizer=tiny_tokenizer(),
        **{"lora": LoRASpec(rank=2), "row_tokens": 200, **options},  # type: ignore[arg-type]
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # zero at initialisation: make it count
                parameter.normal_(std=0.05)
    return model


def disturb(model: Assembly, seed: int = 1) -> None:
    """As if it had trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


def picture(seed: int) -> BytesImage:
    buffer = io.BytesIO()
    Image.frombytes("RGB", (6, 6), random.Random(seed).randbytes(108)).save(buffer, "PNG")
    return BytesImage(buffer.getvalue(), f"{seed}.png")


def row(task: str, index: int, *images: BytesImage, question: str = "what?") -> Sample:
    turns = (Turn("user", "<image>" * len(images) + question), Turn("assistant", f"{task}{index}"))
    return Sample(id=str(index), task=task, turns=turns, images=images)


def make_task(name: str, *, seed: int = 0, count: int = 12) -> Task:
    """Two questions of each image, one sample with two images, one with an image only, and text-only ones."""
    samples = [row(name, index, picture(100 * seed + index // 2), question=f"q{index}?") for index in range(count)]
    samples.append(row(name, count, picture(100 * seed), picture(100 * seed + 1), question="same?"))
    samples.append(row(name, count + 1, picture(100 * seed + 1), question=""))
    samples += [row(name, count + 2 + index, question=f"text {index}?") for index in range(3)]
    return Task(name=name, train=tuple(samples))


OLD, NEW = make_task("old", seed=1), make_task("new", seed=2)


def learned(model: Assembly, **options: object) -> Replay:
    """A method that has been through `OLD` and stands before its first step on `NEW`."""
    method = Replay(**{"rows": 8, **options})  # type: ignore[arg-type]
    method.setup(model)
    method.begin_task(model, OLD, ())
    assert method.training_samples(model, OLD, OLD.train, random.Random(0)) == list(OLD.train)
    method.end_task(model, OLD)
    method.begin_task(model, NEW, (OLD,))
    return method


def step(model: Assembly, method: Replay, samples: Sequence[Sample]) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Parts of the loss and gradients of one optimiser step, as the training loop makes them."""
    batches = model.pack(samples, [BASE] * len(samples))
    counts: Counter[str] = Counter()
    for batch in batches:
        counts.update(method.loss_counts(batch))
    totals: Counter[str] = Counter()
    model.zero_grad(set_to_none=True)
    model.train()
    for batch in batches:
        out = model.forward(batch, hidden=method.needs_hidden())
        parts = method.loss(model, batch, out)
        assert {name: part.count for name, part in parts.items()} == dict(method.loss_counts(batch))
        for name, part in parts.items():
            (part.total / counts[name]).backward(retain_graph=True)
            totals[name] += part.total.item() / counts[name]
    model.eval()
    return dict(totals), {n: p.grad.clone() for n, p in model.trainable().items() if p.grad is not None}


def mixed(model: Assembly, method: Replay) -> list[Sample]:
    return list(method.training_samples(model, NEW, NEW.train, random.Random(5)))


# ------------------------------------------------------------------------------------------------------------- mixing


@pytest.mark.parametrize("ratio", [0.0, 0.02, 0.1, 0.25, 1 / 3, 0.5, 0.8])
@pytest.mark.parametrize("count", [101, 1600])
def test_the_ratio_holds_over_an_epoch_and_in_every_window(ratio: float, count: int) -> None:
    model = make_model()
    method = learned(model, ratio=ratio)
    current = [row("new", index) for index in range(count)]
    epoch = method.training_samples(model, NEW, current, random.Random(0))
    assert [sample for sample in epoch if sample.task == "new"] == current
    replayed = [sample.task == "old" for sample in epoch]
    assert abs(sum(replayed) / len(epoch) - ratio) < 0.01
    for window in (4, 16, 64):
        for start in range(0, len(epoch) - window, 3):
            assert abs(sum(replayed[start : start + window]) - ratio * window) <= 1.5
    assert len({sample.id for sample in epoch if sample.task == "old"}) <= 8


def test_interleave_without_rows() -> None:
    samples = [row("new", index) for index in range(3)]
    assert interleave(samples, []) == samples
    assert interleave([], []) == []


def test_rows_of_the_same_task_are_not_replayed_to_it() -> None:
    model = make_model()
    method = learned(model)
    method.end_task(model, NEW)
    method.begin_task(model, OLD, (OLD, NEW))  # the task comes again
    drawn = method.training_samples(model, OLD, OLD.train, random.Random(0))
    assert {sample.task for sample in drawn if sample not in OLD.train} == {"new"}


def test_replayed_rows_are_the_samples_that_were_seen() -> None:
    model = make_model()
    originals = {sample.id: sample for sample in OLD.train}
    for sample in mixed(model, learned(model, rows=17)):
        if sample.task == "old":
            original = originals[sample.id]
            assert sample.turns == original.turns
            assert [image.digest for image in sample.images] == [image.digest for image in original.images]


def test_only_what_was_trained_on_is_kept() -> None:
    model = make_model()
    method = Replay(rows=100)
    method.begin_task(model, OLD, ())
    few = OLD.train[:3]
    strange = row("other", 1)  # mixed in by another method
    method.training_samples(model, OLD, [*few, strange], random.Random(0))
    method.end_task(model, OLD)
    assert sorted(record.id for record in method.memory) == [sample.id for sample in few]
    assert method.stored_bytes() == {"memory": method.memory.bytes}


# ------------------------------------------------------------------------------------------------ logit distillation


@pytest.mark.parametrize("options", [{}, {"teacher": "stored"}, {"teacher": "stored", "top_k": 300}])
def test_distillation_is_zero_for_teacher_equal_student(options: dict[str, object]) -> None:
    model = make_model()
    method = learned(model, distill_logits=1.0, distill_features=0.0 if options else 1.0, **options)
    losses, gradients = step(model, method, mixed(model, method))
    assert losses
    assert all(abs(value) < 1e-5 for value in losses.values())
    assert all(gradient.abs().max() < 1e-4 for gradient in gradients.values())
    disturb(model)
    losses, gradients = step(model, method, mixed(model, method))
    assert all(value > 1e-3 for value in losses.values())
    assert max(float(gradient.abs().max()) for gradient in gradients.values()) > 1e-3


def test_kl_by_hand() -> None:
    """Temperature, its square, the weight, and only replayed rows."""
    model = make_model()
    before = copy.deepcopy(model)
    method = learned(model, distill_logits=0.7, temperature=3.0)
    disturb(model)
    samples = [*NEW.train[:3], *OLD.train[:2], *OLD.train[12:16]]
    losses, _ = step(model, method, samples)
    expected, count = 0.0, 0
    for sample in samples:
        if sample.task == "old":
            [batch] = model.pack([sample], [BASE])
            with torch.no_grad():
                p = (before.forward(batch).logits.double() / 3).softmax(-1)
                q = (model.forward(batch).logits.double() / 3).softmax(-1)
            expected += 0.7 * 9 * float((p * (p / q).log()).sum())
            count += len(batch.targets)
    assert losses == {"logits": pytest.approx(expected / count, rel=1e-4)}


@pytest.mark.parametrize("packing", ["packed", "padded"])
def test_the_teacher_runs_over_the_replayed_part_only(packing: str) -> None:
    """And that part has the outputs that it has in the whole batch."""
    model = make_model(packing=packing)
    shared = OLD.train[0].images
    samples = [*NEW.train, *OLD.train, *(sample.replace(images=shared) for sample in NEW.train[:4])]
    parts = 0
    batches = model.pack(samples, [BASE] * len(samples))
    for whole in batches if packing == "packed" else [shifted(batch, 5) for batch in batches]:
        chosen = [index for index, sample in enumerate(whole.samples) if sample.task == "old"]
        if not chosen:
            continue
        part = excerpt(whole, chosen)
        assert part.batch.samples == tuple(whole.samples[index] for index in chosen)
        assert part.batch.input_ids.numel() < whole.input_ids.numel() or len(chosen) == len(whole.samples)
        assert torch.equal(uses(part.batch, range(len(chosen))).sum(), uses(whole, chosen).sum())
        assert len(part.batch.images) == len({i.digest for s in part.batch.samples for i in s.images})
        with torch.no_grad():
            ours, theirs = part.of(model.forward(whole, hidden=True)), model.forward(part.batch, hidden=True)
        torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-4, atol=1e-5)
        for a, b in zip(ours.hidden, theirs.hidden, strict=True):
            real = ~part.batch.is_padding
            torch.testing.assert_close(a[real], b[real], rtol=1e-4, atol=1e-5)
        parts += 1
    assert parts > 1


@pytest.mark.parametrize("teacher", ["previous", "stored"])
@pytest.mark.parametrize("balance", ["balanced", "equal"])
def test_packed_equals_padded(teacher: str, balance: str) -> None:
    """Every loss and its gradient, with images that old and new samples share."""
    results = []
    for packing in ("packed", "padded"):
        model = make_model(packing=packing, row_tokens=200 if packing == "packed" else 60)  # some batches: text only
        method = learned(model, rows=17, distill_logits=1.0, distill_features=2.0, teacher=teacher, balance=balance)
        disturb(model)
        samples = mixed(model, method)
        shared = OLD.train[0].images
        samples += [sample.replace(images=shared) for sample in NEW.train[:4]]
        results.append(step(model, method, samples))
    (packed, ours), (padded, theirs) = results
    assert packed.keys() == {"logits", "image", "text"}
    assert packed == pytest.approx(padded, rel=1e-4)
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-5)


def test_nothing_is_distilled_without_replayed_rows() -> None:
    model = make_model()
    method = learned(model, distill_logits=1.0, distill_features=1.0)
    calls = []
    model.using = lambda tensors: calls.append(tensors)  # type: ignore[method-assign,assignment,return-value]
    assert step(model, method, NEW.train) == ({}, {})
    assert calls == []


def test_first_task_needs_no_teacher() -> None:
    model = make_model()
    method = Replay(distill_logits=1.0, distill_features=1.0)
    method.begin_task(model, OLD, ())
    assert not method.needs_hidden()
    assert step(model, method, OLD.train) == ({}, {})


def test_the_teacher_covers_what_trains_and_is_dropped() -> None:
    model = make_model()
    method = learned(model, distill_logits=1.0)
    model.set_trainable(("projector", "language.lora", "encoder"))  # another method's begin_task comes later
    mixed(model, method)
    disturb(model)
    losses, _ = step(model, method, OLD.train)
    with model.using(method._previous or {}):
        assert step(model, method, OLD.train)[0]["logits"] < 1e-5 < losses["logits"]
    method.end_task(model, NEW)
    assert method._previous is None


def test_the_teacher_has_no_dropout_and_modes_are_restored() -> None:
    model = make_model(lora=LoRASpec(rank=2, dropout=0.5))
    method = learned(model, distill_logits=1.0)
    [batch] = model.pack(OLD.train[:2], [BASE] * 2)
    model.eval()
    out = model.forward(batch)
    model.train()
    before = {name: module.training for name, module in model.named_modules()}
    assert before["language"] and not before["encoder"]  # the frozen encoder stays as it was pretrained
    assert abs(method.loss(model, batch, out)["logits"].total.item()) < 1e-5
    assert {name: module.training for name, module in model.named_modules()} == before


# ---------------------------------------------------------------------------------------------- feature distillation


def hidden_gradients(method: Replay, model: Assembly, batch: Batch) -> Tensor:
    """How much the loss pulls at each position, over layers and width: [B, L]."""
    with torch.no_grad():
        out = model.forward(batch, hidden=True)
    leaves = tuple(layer.clone().requires_grad_() for layer in out.hidden)
    parts = method.loss(model, batch, Output(logits=out.logits, hidden=leaves))
    torch.stack([part.total for part in parts.values()]).sum().backward()
    return torch.stack([leaf.grad for leaf in leaves if leaf.grad is not None]).abs().amax((0, 3))


@pytest.mark.parametrize("packing", ["packed", "padded"])
def test_each_modality_can_be_switched_off(packing: str) -> None:
    """Two images in a sample, samples without an image, padding; on the left as well, where rows are padded."""
    for vision_weight in (0.0, 1.0, 0.5):
        model = make_model(packing=packing, row_tokens=400)
        method = learned(model, distill_features=1.0, vision_weight=vision_weight)
        disturb(model)
        for packed in model.pack([*OLD.train, *NEW.train], [BASE] * (len(OLD.train) + len(NEW.train))):
            for batch in (packed, *((shifted(packed, 5),) if packing == "padded" else ())):
                if all(sample.task == "new" for sample in batch.samples):
                    continue
                pull = hidden_gradients(method, model, batch)
                old = torch.tensor([s.task == "old" for s in batch.samples])
                theirs = (batch.owner >= 0) & old[batch.owner.clamp(min=0)]
                assert (pull[batch.is_padding] == 0).all()
                assert (pull[(batch.owner >= 0) & ~theirs] == 0).all()  # current samples are left alone
                assert ((pull[theirs & batch.is_image] > 0) == (vision_weight > 0)).all()
                text = theirs & ~batch.is_image & ~batch.is_padding
                assert ((pull[text] > 0) == (vision_weight < 1)).all()


def shifted(batch: Batch, by: int) -> Batch:
    """The same rows with padding on the left too."""
    rows, length = batch.input_ids.shape

    def left(table: Tensor, fill: int | bool) -> Tensor:
        return torch.cat([torch.full((rows, by), fill, dtype=table.dtype), table], 1)

    visible = torch.eye(length + by, dtype=torch.bool).repeat(rows, 1, 1)
    visible[:, by:, by:] = batch.visible
    return replace(
        batch,
        input_ids=left(batch.input_ids, 0),
        position_ids=left(batch.position_ids, 0),
        block=left(batch.block, -1),
        owner=left(batch.owner, -1),
        is_image=left(batch.is_image, False),
        is_padding=left(batch.is_padding, True),
        visible=visible,
        image_slots=tuple((row, start + by, *rest) for row, start, *rest in batch.image_slots),
        where=batch.where + (batch.where // length + 1) * by,
    )


def test_feature_losses_by_hand() -> None:
    model = make_model()
    before = copy.deepcopy(model)
    sample = OLD.train[12]  # two images
    [batch] = model.pack([sample], [BASE])
    losses = {}
    for balance in ("balanced", "equal"):
        method = learned(model, distill_features=2.0, balance=balance, vision_weight=0.25, gamma=0.5)
        disturb(model)
        losses[balance], _ = step(model, method, [sample])
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(dict(before.named_parameters())[name])
    disturb(model)
    with torch.no_grad():
        ours, theirs = (m.forward(batch, hidden=True).hidden for m in (model, before))
    error = sum(
        weight / 1.75 * (a - b).square().mean(-1) for weight, a, b in zip((0.25, 0.5, 1), ours, theirs, strict=True)
    )
    assert isinstance(error, Tensor)
    image, text = error[batch.is_image], error[~batch.is_image]
    assert len(image) == 2 * TOKENS
    assert losses["balanced"] == pytest.approx(
        {"image": 2 * 0.25 * image.mean().item(), "text": 2 * 0.75 * text.mean().item()}, rel=1e-4
    )
    assert sum(losses["equal"].values()) == pytest.approx(2 * error.mean().item(), rel=1e-4)


# ------------------------------------------------------------------------------------------------------------- stores


@pytest.mark.parametrize("encoder", ["cached", "cold"])
def test_features_mode_gives_the_loss_of_full_mode(encoder: str) -> None:
    """Logits of replayed rows, from stored features and from stored pixels, with a warm and a cold feature cache."""
    logits = []
    for store in ("full", "features"):
        model = make_model()
        method = learned(model, store=store, rows=17)
        if encoder == "cold":
            state = model.state()
            model = make_model()
            model.load_state(state)
        replayed = [s for s in mixed(model, method) if s.task == "old"]
        batches = model.pack(replayed, [BASE] * len(replayed))
        with torch.no_grad():
            logits.append(torch.cat([model.forward(batch).logits for batch in batches]))
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=1e-6)


def test_features_mode_reads_no_pixels() -> None:
    model = make_model()
    method = learned(model, store="features", feature_dtype="fp16", rows=17)
    fresh = make_model()  # nothing cached
    replayed = [s for s in mixed(model, method) if s.task == "old"]
    assert any(s.images for s in replayed)
    for batch in fresh.pack(replayed, [BASE] * len(replayed)):
        fresh.forward(batch)
    for parameter in fresh.encoder.parameters():
        parameter.data += 1
    fresh.renew_features()
    with pytest.raises(UserError, match="features come from the encoder"):
        for batch in fresh.pack(replayed, [BASE] * len(replayed)):
            fresh.forward(batch)


def test_features_mode_refuses_a_training_encoder() -> None:
    model = make_model()
    method = learned(model, store="features")
    model.set_trainable(("projector", "encoder"))
    for call in (lambda: method.begin_task(model, NEW, (OLD,)), lambda: method.end_task(model, NEW)):
        with pytest.raises(UserError, match="needs a frozen encoder") as error:
            call()
        assert error.value.problems[0].where == "replay.store"


def test_question_mode_asks_past_questions_about_current_images() -> None:
    model = make_model()
    method = learned(model, store="question", rows=17, ratio=0.5, quota="task")
    assert all(not record.images and record.answer is None for record in method.memory)
    questions = {sample.turns[0] for sample in OLD.train}
    current = {image.digest for sample in NEW.train for image in sample.images}
    replayed = [sample for sample in mixed(model, method) if sample.task == "old"]
    assert len(replayed) == 17
    assert {len(sample.images) for sample in replayed} == {0, 1, 2}
    for sample in replayed:
        assert sample.turns[0] in questions
        assert sample.turns[0].text.count("<image>") == len(sample.images)
        assert {image.digest for image in sample.images} <= current
        assert sample.reply == model.generate([sample.replace(turns=sample.turns[:1])])[0]


def test_question_mode_answers_once_per_task_and_distils_by_default() -> None:
    model = make_model()
    method = learned(model, store="question")
    first = mixed(model, method)
    disturb(model)
    second = list(method.training_samples(model, NEW, NEW.train, random.Random(6)))

    def key(sample: Sample) -> tuple[object, ...]:
        return sample.id, [turn.text for turn in sample.turns], [image.digest for image in sample.images]

    old = [[s for s in samples if s.task == "old"] for samples in (first, second)]
    assert sorted(map(key, old[0])) == sorted(map(key, old[1]))
    losses, _ = step(model, method, first)
    assert losses["logits"] > 1e-3


def test_question_mode_on_a_task_without_images() -> None:
    model = make_model()
    method = learned(model, store="question")
    text = Task(name="new", train=tuple(row("new", index) for index in range(12)))
    replayed = [s for s in method.training_samples(model, text, text.train, random.Random(0)) if s.task == "old"]
    assert replayed
    assert not any(s.images or "<image>" in s.turns[0].text for s in replayed)
    assert model.pack(replayed, [BASE] * len(replayed))


def test_text_mode_drops_the_image_and_distils_by_default() -> None:
    model = make_model()
    method = learned(model, store="text", rows=17)
    samples = mixed(model, method)
    replayed = [s for s in samples if s.task == "old"]
    assert replayed
    assert not any(s.images or "<image>" in s.turns[0].text for s in replayed)
    assert all(s.reply for s in replayed)
    disturb(model)
    assert step(model, method, samples)[0]["logits"] > 1e-3


@pytest.mark.parametrize("store", ["full", "features", "question", "text"])
def test_every_store_goes_through_three_tasks_within_its_bytes(store: str) -> None:
    model = make_model()
    method = Replay(budget="6KB", store=store, distill_logits=1.0, distill_features=1.0)  # type: ignore[arg-type]
    for number, task in enumerate((OLD, NEW, make_task("third", seed=3))):
        method.begin_task(model, task, ())
        samples = method.training_samples(model, task, task.train, random.Random(0))
        losses, _ = step(model, method, samples)
        assert bool(losses) == (number > 0)
        disturb(model, number)
        method.end_task(model, task)
        assert 0 < method.memory.bytes <= 6000
        assert len(method.memory.tasks) == number + 1


# ---------------------------------------------------------------------------------------------------- other teachers


def test_stored_logits_are_those_of_the_end_of_the_task() -> None:
    model = make_model()
    method = learned(model, teacher="stored", top_k=5, temperature=2.0)
    disturb(model)
    record = next(iter(method.memory))
    assert record.logits is not None
    [batch] = model.pack([record.sample()], [BASE])
    assert record.logits.index.shape == (len(batch.targets), 5)
    with torch.no_grad():
        expected = (make_model().forward(batch).logits / 2).log_softmax(-1).topk(5)
    torch.testing.assert_close(record.logits.top, expected.values)
    assert method.memory.report()["fields"]["logits"] == sum(r.logits.nbytes for r in method.memory if r.logits)


def test_stored_logits_within_a_byte_budget() -> None:
    model = make_model()
    method = learned(model, rows=None, budget=4000, teacher="stored")
    assert 3000 < method.memory.bytes <= 4000
    assert all(record.logits is not None for record in method.memory)


def test_stored_logits_of_another_length_are_left_out() -> None:
    model = make_model()
    method = learned(model, teacher="stored", rows=17)
    replayed = [s for s in mixed(model, method) if s.task == "old"]
    longer = [s.replace(turns=(s.turns[0], Turn("assistant", s.reply + "!"))) for s in replayed]
    assert step(model, method, longer) == ({}, {})


def test_drift_is_measured() -> None:
    model = make_model()
    method = learned(model, selection="drift")
    assert all(record.score is not None and record.score > 0 and record.drift == 0 for record in method.memory)
    disturb(model)
    method.training_samples(model, NEW, NEW.train, random.Random(0))
    method.end_task(model, NEW)
    kept = {record.task: record for record in method.memory}
    assert kept["old"].drift != 0
    assert kept["new"].drift == 0
    assert kept["new"].score is not None


# ------------------------------------------------------------------------------------------------------------- state


@pytest.mark.parametrize("options", [{}, {"teacher": "stored"}, {"store": "features"}, {"selection": "drift"}])
def test_a_loaded_method_goes_on_alike(options: dict[str, object], tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = make_model()
    method = learned(model, **options)
    save_tree(method.state_dict(), tmp_path / "state")
    other = Replay(rows=8, **options)  # type: ignore[arg-type]
    other.load_state_dict(model, load_tree(tmp_path / "state"))
    other.begin_task(model, NEW, (OLD,))
    disturb(model)
    ours, theirs = mixed(model, method), mixed(model, other)
    assert [(s.task, s.id) for s in ours] == [(s.task, s.id) for s in theirs]
    (ours_loss, ours_grad), (theirs_loss, theirs_grad) = step(model, method, ours), step(model, other, theirs)
    assert ours_loss == theirs_loss
    assert all(torch.equal(ours_grad[name], theirs_grad[name]) for name in ours_grad)


def test_all_mistakes_in_the_options_at_once() -> None:
    with pytest.raises(UserError) as error:
        Replay(
            budget="1MB",
            rows=3,
            ratio=1.0,
            temperature=0,
            gamma=0,
            vision_weight=2,
            selection="drift",
            store="question",
        )
    assert [problem.where for problem in error.value.problems] == [
        "replay.budget",
        "replay.ratio",
        "replay.temperature",
        "replay.vision_weight",
        "replay.gamma",
        "replay.selection",
    ]
    with pytest.raises(UserError, match="not a number of bytes"):
        Replay(budget="two")
