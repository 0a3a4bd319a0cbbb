"""Rows 14 to 35: the stages of the vertical axis, and what belongs to them."""

from __future__ import annotations

import json
import math
import random
from collections import Counter

import pytest
import torch
from accelerate import Accelerator
from torch import equal

from mmcl.data.check import check_tasks
from mmcl.data.formats.llava_json import LlavaJSON
from mmcl.data.streams.shapes import Shapes
from mmcl.data.streams.split import Split
from mmcl.data.types import Sample, Task, Turn
from mmcl.errors import UserError
from mmcl.evaluation.edits import LOCALITY, REPHRASE, edit_scores
from mmcl.evaluation.matrix import Matrix
from mmcl.evaluation.metrics.contains import Contains
from mmcl.evaluation.metrics.exact import Exact
from mmcl.methods.answer_styles import STYLE, AnswerStyles
from mmcl.methods.distillation import kl_divergence
from mmcl.methods.edit_codebook import EditCodebook
from mmcl.methods.general_mix import GENERAL, GeneralMix
from mmcl.methods.sparse_update import SparseUpdate
from mmcl.progress import Progress
from mmcl.protocols import BASE, Prediction
from mmcl.recipe.spec import TrainSpec
from mmcl.report.collect import document
from mmcl.testing import tiny_assembly, tiny_tasks
from mmcl.training.loop import prepare, train_task
from mmcl.training.methods import Methods
from mmcl.training.objectives.all_text import AllText
from mmcl.training.objectives.answers import Answers
from mmcl.training.objectives.dpo import DPO

EXPERTS = {"name": "projector_experts", "freeze_shared": True}


def read(experiment, name: str) -> dict:
    return json.loads((experiment.folder / name).read_text())


def manifest(experiment, label: str) -> dict:
    (path,) = experiment.folder.glob(f"stages/{label}-*/manifest.json")
    return json.loads(path.read_text())


def train(model, samples, objective=None, methods=None, steps: int = 30, **spec):
    task = Task("task", samples)
    methods = methods or Methods({})
    methods.begin_task(model, task, {})
    plain = {"batch_size": 8, "learning_rate": 0.01, "epochs": 100.0, "max_steps": steps}
    return train_task(
        model,
        methods,
        task,
        TrainSpec(**{**plain, **spec}),
        objective or Answers(),
        accelerator=Accelerator(),
        rng=random.Random(0),
        progress=Progress.silent(),
        label="test",
    )


@pytest.mark.parametrize("kind", ["align", "pretrain"])
def test_row_14_continual_pre_training_reports_old_and_new_corpora(run, kind: str) -> None:
    stages = [{"kind": kind, "tasks": ["old"]}, {"kind": kind, "tasks": ["new"], "train": {"warmup": 0.1}}]
    trainable = {"model__train": ["projector", "language"], "train__learning_rate": 0.003}
    done = run(stream={"name": "./parts.py:Corpora", "kind": kind}, stages=stages, train__epochs=4, **trainable)
    losses = read(done, "losses.json")
    assert losses["corpora"] == ["01-old", "02-new"]
    assert losses["heldout"] == [False, True]
    assert losses["stages"] == ["00-start", "01-old", "02-new"]
    (start, nothing), (old, new_before), (old_after, new_after) = losses["loss"]
    assert nothing is None
    assert old < start
    assert new_after < new_before
    assert math.isfinite(old_after)  # what the new corpus did to the old one is there to be seen


@pytest.mark.parametrize(
    "methods", [["finetune"], [{"name": "replay"}, EXPERTS]], ids=["finetune", "replay and experts"]
)
def test_row_14_documents_with_and_without_images_are_read_raw(run, tmp_path, methods: list) -> None:
    (tmp_path / "a.png").write_bytes(tiny_tasks()[0].train[0].images[0].read())
    rows = [{"text": f"<image> number {k}", "images": ["a.png"]} if k % 2 else {"text": f"plain {k}"} for k in range(8)]
    (tmp_path / "corpus.json").write_text(json.dumps(rows))
    files = {"train": "corpus.json", "heldout": "corpus.json", "format": "documents"}
    tasks = [{"name": name, "kind": "pretrain", **files} for name in ("one", "two")]
    stream = {"name": "files", "folder": str(tmp_path), "tasks": tasks}
    done = run(stream=stream, stages=[{"kind": "pretrain"}], methods=methods, train__epochs=4)
    losses = read(done, "losses.json")
    assert losses["heldout"] == [True, True]
    assert losses["loss"][1][0] < losses["loss"][0][0]
    model = tiny_assembly()
    image = tiny_tasks()[0].train[0].images[0]
    read_raw = [
        Sample(str(k), "t", (Turn("assistant", f"<image> the {k} th {'long ' * k}"),), (image,)) for k in range(4)
    ]
    totals = []
    for packed in (True, False):
        model.packed = packed
        batches = model.pack(read_raw, supervise=[AllText().supervise(sample) for sample in read_raw])
        parts = [AllText().loss(model, batch, model.forward(batch))["tokens"] for batch in batches]
        totals.append((sum(part.total.item() for part in parts), sum(part.count for part in parts)))
    assert totals[0] == pytest.approx(totals[1], rel=1e-5)
    for style in ("chat", "plain"):
        model.prompt.style = style
        model.prompt._cache.clear()
        (batch,) = model.pack([Sample("1", "t", (Turn("assistant", "snow is white"),))])
        assert (
            model.tokenizer.decode(batch.input_ids[0]).removeprefix(model.tokenizer.bos_token or "").startswith("snow")
        )


def test_row_15_periods_come_in_order_and_nothing_is_used_early() -> None:
    class Dated:
        def tasks(self):
            (task, *_) = Shapes(train_size=24, test_size=12).tasks()
            days = ["2024-03-02", "2023-11-30", "2025-01-01", "2023-02-03"]

            def dated(samples):
                return [sample.replace(time=days[place % 4]) for place, sample in enumerate(samples)]

            return [Task(task.name, dated(task.train), dated(task.test))]

    tasks = Split(stream=Dated(), by="time").tasks()
    assert [task.name for task in tasks] == ["2023", "2024", "2025"]
    for task in tasks:
        assert {sample.time[:4] for sample in (*task.train, *task.test)} == {task.name}
        assert all(sample.task == task.name for sample in (*task.train, *task.test))
    assert sum(len(task.train) for task in tasks) == 24
    assert Split(stream=Dated(), by="time", every="month").tasks()[0].name == "2023-02"


def test_row_15_dates_that_cannot_be_read() -> None:
    class Undated:
        def tasks(self):
            (task, *_) = Shapes(train_size=8, test_size=4).tasks()
            return [Task(task.name, [s.replace(time="last spring") for s in task.train], task.test)]

    with pytest.raises(UserError) as error:
        Split(stream=Undated(), by="time").tasks()
    assert ["no date can be read" in problem.message for problem in error.value.problems] == [True, True]
    assert "'train-00000'" in error.value.problems[0].message


def test_row_16_content_shift_splits_a_data_set_by_topic() -> None:
    tasks = Split(stream=Shapes(tasks=["yes_no"], train_size=40, test_size=20), by="group").tasks()
    assert [task.domain for task in tasks] == ["yes_no/colour", "yes_no/shape"]
    assert [task.name for task in tasks] == ["yes_no_colour", "yes_no_shape"]
    assert all({sample.group for sample in task.train} == {task.domain} for task in tasks)


def test_row_17_two_languages_have_two_columns(run) -> None:
    trained = {"train": {"batch_size": 8, "learning_rate": 0.003, "epochs": 20}, "evaluate__max_new_tokens": 16}
    done = run(stream={"name": "./parts.py:Tongues"}, model__train=["projector", "language"], **trained)
    matrix = Matrix.read(done.folder / "matrix.json")
    assert matrix.tasks == ("en", "zh")
    assert matrix.values[0][0] == matrix.values[1][1] == 1.0
    (answers,) = done.folder.glob("stages/02-zh-*/predictions/zh.jsonl")
    assert json.loads(answers.read_text())["text"] == "白色"


def test_row_18_filtered_samples_are_listed_and_leaks_reported(run) -> None:
    plain = run("plain")
    select = {"dedupe": True, "max_tokens": 60, "min_loss": 0.0, "max_loss": 100.0}
    stages = [{"tasks": ["colour"]}, {"tasks": ["position"], "select": select}]
    assert manifest(plain, "02-position")["selection"] == {}
    once = {"stream__questions_per_image": 1}
    kept = run("kept", stages=stages, **once)
    assert manifest(kept, "02-position")["selection"] == {}
    stages[1]["select"] = {"max_loss": 5.5}
    some = manifest(run("some", stages=stages, **once), "02-position")
    assert set(some["selection"]) == {"max_loss"}
    assert 0 < len(some["selection"]["max_loss"]) < 32
    assert some["mixture"] == {"position": 32 - len(some["selection"]["max_loss"])}
    stages[1]["select"] = {"max_tokens": 2}
    with pytest.raises(UserError, match="no sample is left"):
        run("none", stages=stages)
    (task, *_) = Shapes(train_size=8, test_size=4).tasks()
    asked = [sample.replace(turns=sample.turns[:1], answers=(sample.reply,)) for sample in task.train]
    _, report = check_tasks([Task(task.name, task.train, asked)])
    assert report["tasks"][0]["test_images_in_training"]["images"] == 2


def test_row_18_repeated_rows_of_earlier_stages_are_left_out(run) -> None:
    stages = [{"tasks": ["colour", "position"]}, {"tasks": ["colour-2"], "select": {"dedupe": True}}]
    with pytest.raises(UserError, match="dedupe leaves out 32"):
        run(setting__cycles=2, stages=stages)


def test_row_19_overrides_are_in_the_manifest(run) -> None:
    stages = [
        {"tasks": ["colour"]},
        {"tasks": ["position"], "train": {"learning_rate": 0.02, "epochs": 2}, "trainable": ["projector"]},
    ]
    done = run(stages=stages)
    assert manifest(done, "01-colour")["overrides"] == {}
    found = manifest(done, "02-position")["overrides"]
    assert found["train"] == {"learning_rate": 0.02, "epochs": 2}
    assert found["trainable"] == ["projector"]


def test_row_20_a_domain_stage_gains_its_domain_and_shows_the_probes_drop(run, learnable) -> None:
    changes = learnable(tasks=["colour"], length=2, questions_per_image=1, test_size=30)
    changes["stages"] = [{"tasks": ["colour"]}, {"kind": "domain", "tasks": ["colour-2"]}]
    changes["probes"] = [{"name": "shapes", "tasks": ["colour"], "train_size": 4, "test_size": 30, "seed": 7}]
    changes["evaluate"]["choices"] = "task"
    done = run(**changes)
    assert manifest(done, "02-colour-2")["objective"]["name"] == "all_text"
    matrix = Matrix.read(done.folder / "matrix.json")
    assert matrix.values[1][1] > 0.5
    probes = read(done, "probes.json")
    before, after = probes["scores"][1][0], probes["scores"][2][0]
    assert before > after  # new words for the same colours: the general ability is gone, and that is reported
    assert probes["delta"][2] == after - probes["scores"][0][0]


def test_row_21_only_the_answer_is_supervised() -> None:
    model = tiny_assembly()
    (sample, *_) = tiny_tasks()[0].train
    (batch,) = model.pack([sample], supervise=[Answers().supervise(sample)])
    answer = model.tokenizer(sample.reply, add_special_tokens=False)["input_ids"]
    assert batch.targets.tolist()[: len(answer)] == answer
    assert len(batch.targets) <= len(answer) + 1  # and the end of the turn
    predicted = set(batch.where.tolist())
    assert not predicted & set((batch.is_image[0] & torch.roll(batch.is_image[0], -1)).nonzero().flatten().tolist())


def test_row_22_conversations_of_several_turns_and_images_load_as_they_are(tmp_path) -> None:
    model = tiny_assembly()
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(tiny_tasks()[0].train[0].images[0].read())
    talk = [("human", "<image>\n<image>\nWhich is larger?"), ("gpt", "left"), ("human", "Sure?"), ("gpt", "yes")]
    row = {"id": "1", "image": ["a.png", "b.png"], "conversations": [{"from": f, "value": v} for f, v in talk]}
    (tmp_path / "train.json").write_text(json.dumps([row]))
    (sample,) = LlavaJSON().read(tmp_path / "train.json", task="t", images=tmp_path)
    assert (len(sample.images), len(sample.turns)) == (2, 4)
    (batch,) = model.pack([sample])
    texts = [model.tokenizer.decode(batch.targets)]
    assert "left" in texts[0]
    assert "yes" in texts[0]
    assert "Sure" not in texts[0]


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_row_23_encoder_projector_and_language_model_join_and_learn(family: str) -> None:
    model = tiny_assembly(family=family, train=("projector", "language"))
    samples = tiny_tasks()[0].train
    cost = train(model, samples, steps=120, learning_rate=0.003, schedule="constant")
    assert cost.losses[-1] < 0.05


def test_row_24_a_module_per_domain(run) -> None:
    done = run(methods=[EXPERTS])
    assert manifest(done, "02-position")["experts"] == {"colour": "colour", "position": "position"}


@pytest.mark.parametrize("ratio", [0.02, 0.05, 0.25])
def test_row_25_general_data_in_the_ratio_asked_for(ratio: float) -> None:
    source = Shapes(tasks=["shape"], train_size=50, test_size=4)
    (task,) = Shapes(tasks=["colour"], train_size=400, test_size=4).tasks()
    mix = GeneralMix(source=source, ratio=ratio)
    model = tiny_assembly()
    mix.begin_task(model, task, [])
    seen: Counter[str] = Counter()
    for _ in range(2):
        epoch = mix.training_samples(model, task, task.train, random.Random(0))
        general = [sample for sample in epoch if sample.task == GENERAL]
        assert abs(len(general) / len(epoch) - ratio) < 0.01
        seen.update(sample.id for sample in general)
    assert max(seen.values()) - min(seen.values()) <= 1  # the second epoch goes on where the first stopped


def test_row_25_the_realised_mixture_is_in_the_manifest(run) -> None:
    mix = {"name": "general_mix", "ratio": 0.2, "source": {"name": "shapes", "tasks": ["shape"], "train_size": 20}}
    done = run(methods=[mix, "replay"])
    assert manifest(done, "01-colour")["mixture"] == {"colour": 32, "general": 8}


def test_row_26_distillation_is_zero_from_itself_and_reaches_only_the_student() -> None:
    student, teacher = torch.randn(5, 7, requires_grad=True), torch.randn(5, 7, requires_grad=True)
    assert kl_divergence(student, student, temperature=2.0).item() == pytest.approx(0, abs=1e-6)
    kl_divergence(student, teacher, temperature=2.0).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_row_27_continual_fine_tuning_is_the_main_loop(run) -> None:
    done = run(stream__tasks=["colour", "position", "shape"])
    matrix = Matrix.read(done.folder / "matrix.json")
    assert matrix.stages == matrix.tasks == ("colour", "position", "shape")
    assert [[cell is not None for cell in row] for row in matrix.values] == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert all(manifest(done, f"0{k}-{name}")["cost"]["steps"] == 4 for k, name in enumerate(matrix.tasks, start=1))


def test_row_28_the_right_answer_in_the_wrong_form_is_seen_as_such() -> None:
    rows = [
        Prediction("1", "t", "what colour?", "The colour is red.", ("red",)),
        Prediction("2", "t", "?", "red", ("red",)),
    ]
    assert Exact()(rows).rows == (0.0, 1.0)  # the form counts
    assert Contains()(rows).rows == (1.0, 1.0)  # the content is there


def scored(*rows: tuple[str, str, str, float]) -> list[tuple[Prediction, float]]:
    return [(Prediction(key, "t", "", text, (), group=group), score) for key, group, text, score in rows]


def test_row_29_edit_scores_are_exact_on_a_toy_set() -> None:
    edited, asked, sky, sea = ("1", "edit"), ("2", REPHRASE), ("3", LOCALITY), ("4", LOCALITY)
    before = scored((*edited, "old", 0), (*asked, "old", 0), (*sky, "blue", 0), (*sea, "deep", 1))
    after = scored((*edited, "new", 1), (*asked, "new", 1), (*sky, "blue", 0), (*sea, "new", 0))
    earlier = [scored(("9", "", "kept", 1)), scored(("8", "edit", "gone", 0), ("7", REPHRASE, "gone", 0))]
    found = edit_scores(before, after, earlier).to_dict()
    assert found == {"success": 1.0, "generality": 1.0, "locality": 0.5, "retention": 0.5}
    assert edit_scores([], [], []).to_dict() == dict.fromkeys(found)


def test_row_29_editing_by_codebook_and_with_locality_beside_plain_fine_tuning(run) -> None:
    local = {"name": "locality", "source": {"name": "shapes", "tasks": ["letter"], "train_size": 16, "test_size": 4}}
    tune = {"epochs": 50, "learning_rate": 0.01, "schedule": "constant"}

    def variant(methods: list) -> dict:
        return {"stages": [{"tasks": ["colour"]}, {"kind": "refine", "methods": methods, "train": tune}]}

    variants = {
        "finetune": variant(["finetune"]),
        "locality": variant([local]),
        "codebook": variant([{"name": "edit_codebook", "radius": 0.02}]),
    }
    changes = {
        "stream": {"name": "./parts.py:Edits"},
        "model__language": {"weights": "tiny:llama", "lora": {"rank": 8}},
    }
    done = run(variants=variants, evaluate={"max_new_tokens": 6}, **changes)
    found = {name: json.loads((done.folder / "variants" / name / "edits.json").read_text()) for name in variants}
    assert all(len(each["edits"]) == 2 for each in found.values())
    book = found["codebook"]["edits"]
    assert [row["success"] for row in book] == [1, 1]
    assert [row["locality"] for row in book] == [1, 1]  # outside the radius the model is bit for bit the old
    assert book[1]["retention"] == 1
    assert book[0]["retention"] is None
    plain, held = (sum(row["locality"] for row in found[name]["edits"]) for name in ("finetune", "locality"))
    assert held >= plain
    assert document(done.folder)["variants"]["codebook"]["edits"] == book
    matrix = Matrix.read(done.folder / "variants" / "codebook" / "matrix.json")
    assert matrix.values[2][0] == matrix.values[0][0]  # nor is an earlier task touched


def test_row_29_the_codebook_answers_inside_its_radius_only() -> None:
    model = tiny_assembly()
    task, other = tiny_tasks()
    method = EditCodebook(radius=0.05)
    method.setup(model)
    method.begin_task(model, task, [])
    assert set(model.trainable()) == {name for name in model.trainable() if ".colour." in name}
    method.end_task(model, task)
    near, far = task.train[0].hidden(), other.test[0].hidden(keep_task=False).replace(turns=(Turn("user", "zzz 123"),))
    routes = method.select(model, [near, far.replace(images=())])
    assert [route.adapters for route in routes] == [("colour",), ()]
    assert routes[1] == BASE


def pairs(count: int = 8) -> list[Sample]:
    answers = {"red": "blue", "blue": "red", "green": "yellow", "yellow": "green"}
    return [sample.replace(rejected=answers[sample.reply]) for sample in tiny_tasks(train=count)[0].train]


@pytest.mark.parametrize("packing", ["packed", "padded"])
def test_row_30_dpo_starts_at_log_2_and_the_margin_rises(packing: str) -> None:
    model = tiny_assembly()
    model.packed = packing == "packed"
    objective = DPO(beta=0.5)
    cost = train(model, pairs(), objective, steps=12, row_tokens=60)
    assert cost.losses[0] == pytest.approx(math.log(2), abs=1e-5)
    assert cost.losses[-1] < cost.losses[0] - 0.05
    summary = objective.summary()
    assert summary["pairs"] == 8
    assert summary["margin_first"] == pytest.approx(0, abs=1e-5)
    assert summary["margin_last"] > 0.1
    assert summary["preferred_last"] > 0.8


def test_row_30_pairs_packed_are_pairs_padded() -> None:
    losses = []
    for packed in (True, False):
        model = tiny_assembly()
        model.packed = packed
        objective = DPO(beta=2.0)
        objective.begin(model, pairs(), [BASE] * 8)
        for parameter in model.trainable().values():  # away from the start, the same way in both
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
        batches = prepare(model, Methods({}), objective, pairs(), TrainSpec(row_tokens=100))
        assert len(batches) > 1
        parts = [objective.loss(model, batch, model.forward(batch))["pairs"] for batch in batches]
        losses.append(sum(part.total.item() for part in parts) / sum(part.count for part in parts))
    assert losses[0] != pytest.approx(math.log(2), abs=1e-3)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_row_30_a_preference_stage_shows_what_it_costs_the_tasks(run) -> None:
    stages = [
        {"kind": "instruct"},
        {"kind": "prefer", "methods": ["replay"], "objective": {"name": "dpo", "beta": 0.2}},
    ]
    done = run(stream={"name": "./parts.py:Wishes"}, stages=stages, methods=["replay"])
    matrix = Matrix.read(done.folder / "matrix.json")
    assert (matrix.tasks, matrix.stages) == (("colour",), ("colour", "wishes"))  # the tax is a row of its own
    found = manifest(done, "02-wishes")
    assert found["objective"]["name"] == "dpo"
    assert found["objective"]["pairs"] == 32
    assert found["objective"]["margin_last"] > 0
    assert found["mixture"]["colour"] > 0  # replayed answers train beside the pairs
    assert read(done, "metrics.json")["metrics"]["FM"] is not None


def test_row_30_preferences_before_anything_is_trained_are_refused(make) -> None:
    with pytest.raises(UserError) as error:
        make(stages=[{"kind": "prefer", "tasks": ["colour"]}]).run()
    messages = [problem.message for problem in error.value.problems]
    assert "comes before anything was trained" in messages[0]
    assert "32 of 32 samples have no rejected answer" in messages[1]


def test_row_31_a_whole_matrix_with_each_kind_of_method(run) -> None:
    variants = {
        "sequential": {"methods": ["finetune"]},
        "replay": {"methods": ["replay"]},
        "ewc": {"methods": [{"name": "ewc", "samples": 8}]},
        "experts": {"methods": [EXPERTS]},
        "joint": {"methods": ["joint"]},
    }
    done = run(variants=variants, evaluate__tasks="all")
    for name in variants:
        matrix = Matrix.read(done.folder / "variants" / name / "matrix.json")
        assert all(cell is not None for row in (*matrix.values, matrix.row0) for cell in row)


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_row_32_a_share_of_the_samples_is_asked_in_another_form(share: float) -> None:
    (task,) = Shapes(tasks=["colour"], train_size=80, test_size=4, questions_per_image=1).tasks()
    method = AnswerStyles(share=share)
    made = list(method.training_samples(tiny_assembly(), task, task.train, random.Random(0)))
    changed = [(old, new) for old, new in zip(task.train, made, strict=True) if STYLE in new.metadata]
    assert len(changed) == share * 80
    styles = Counter(new.metadata[STYLE] for _, new in changed)
    assert styles["yes_no"] == styles["multiple_choice"] == share * 40
    for old, new in changed:
        text = new.turns[0].text
        assert text.startswith(old.turns[0].text)
        if new.metadata[STYLE] == "yes_no":
            said = text.split("Is the answer ")[1].split("?")[0]
            assert new.reply == ("yes" if said == old.reply else "no")
        else:
            options = dict(line.split(". ", 1) for line in text.splitlines() if line[1:3] == ". ")
            assert options[new.reply] == old.reply
            assert len(set(options.values())) == len(options) == 4
    untouched = [new for new in made if STYLE not in new.metadata]
    assert untouched == [old for old, new in zip(task.train, made, strict=True) if STYLE not in new.metadata]


def test_row_33_a_sparse_patch_of_an_update() -> None:
    def trained(keep: float | None) -> tuple[dict, dict]:
        model = tiny_assembly()
        before = model.snapshot()
        methods = Methods({"sparse": SparseUpdate(keep=keep)} if keep is not None else {})
        train(model, tiny_tasks()[0].train, methods=methods, steps=5)
        methods.end_task(model, Task("task", ()))
        return before, model.snapshot()

    base, full = trained(None)
    assert all(equal(tensor, full[name]) for name, tensor in trained(1.0)[1].items())
    assert all(equal(tensor, base[name]) for name, tensor in trained(0.0)[1].items())
    tenth = trained(0.1)[1]
    changed = sum(int((tensor != base[name]).sum()) for name, tensor in tenth.items())
    total = sum(tensor.numel() for tensor in base.values())
    assert changed == round(0.1 * total)
    assert all(((tensor == base[name]) | (tensor == full[name])).all() for name, tensor in tenth.items())


def test_row_34_joint_training_sees_the_same_data_in_as_many_steps(run) -> None:
    done = run(variants={"sequential": {}, "joint": {"methods": ["joint"]}})
    joint = [json.loads(path.read_text()) for path in done.folder.glob("stages/02-*/manifest.json")]
    (last,) = [entry for entry in joint if entry["methods"][0]["name"] == "joint"]
    assert last["mixture"] == {"colour": 32, "position": 32}
    assert last["cost"]["samples"] == 64


def test_row_35_few_shot_subsets(run) -> None:
    one = run("one", train__max_samples=5)
    assert manifest(one, "01-colour")["mixture"] == {"colour": 5}
    two = run("two", train__max_samples=5)
    assert manifest(one, "01-colour")["hash"] == manifest(two, "01-colour")["hash"]
