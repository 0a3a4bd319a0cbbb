"""mmcl bench on a tiny model: the sides agree, a disagreement is found, operations are counted."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mmcl.bench import run, train
from mmcl.bench.data import training_samples, unseen
from mmcl.bench.evaluate import Answers
from mmcl.bench.options import Cell, cells
from mmcl.bench.peak import FlopCount
from mmcl.bench.sides import LlavaPeer, as_peer, build_stock
from mmcl.bench.table import markdown
from mmcl.bench.train import Comparison, Disagreement
from mmcl.bench.trainers import trl_missing
from mmcl.cli import main
from mmcl.errors import UserError
from mmcl.model.assembly import Assembly

CELL = Cell(
    stream="shapes",
    questions=4,
    image_tokens=4,
    image_size=32,
    steps=2,
    repeats=1,
    batch_size=12,
    micro_batch=4,
    test_questions=10,
    generate_batch=4,
    max_new_tokens=4,
)
SMALL = [
    *(
        "bench",
        "--stream",
        "shapes",
        "--questions",
        "4",
        "--image-tokens",
        "4",
        "--image-size",
        "32",
        "--dtype",
        "fp32",
    ),
    *("--steps", "1", "--repeats", "1", "--batch-size", "12", "--micro-batch", "4", "--test-questions", "8"),
    *("--max-new-tokens", "4"),
]


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return Comparison(CELL, ["hf"])


def test_the_padded_peer_has_our_loss_and_gradient(comparison: Comparison) -> None:
    found = comparison.agree()
    assert found.loss_difference < 1e-5
    assert found.gradient < 1e-4


def test_the_trainer_has_our_losses_in_every_step(comparison: Comparison) -> None:
    ours, theirs = comparison.ours.run(comparison.samples), comparison.theirs["hf"].run()
    assert len(ours.losses) == CELL.steps
    assert ours.losses == pytest.approx(theirs.losses, rel=1e-4)
    assert ours.losses[0] != pytest.approx(ours.losses[1], rel=1e-4)  # it does train
    assert theirs.tokens < theirs.positions
    assert ours.tokens < theirs.tokens
    again = comparison.ours.run(unseen(comparison.samples, "again"))  # from the start, under other identities
    assert again.losses == pytest.approx(ours.losses, rel=1e-6)


def test_a_perturbed_weight_is_a_disagreement() -> None:
    comparison = Comparison(CELL, ["hf"])
    with torch.no_grad():
        comparison.peer.language.get_input_embeddings().weight.mul_(1.01)
    with pytest.raises(Disagreement, match=r"the (loss|gradient) of the first step differs by"):
        comparison.agree()


def test_a_trainer_on_other_samples_is_a_disagreement() -> None:
    comparison = Comparison(CELL, ["hf"])
    agreement = comparison.agree()
    comparison.theirs["hf"].rows.items.reverse()
    with pytest.raises(Disagreement, match="the first loss of HF Trainer"):
        comparison.measure(agreement)


def test_a_disagreement_is_exit_code_1_and_no_speed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def perturbed(model: Assembly) -> LlavaPeer:
        peer = as_peer(model)
        with torch.no_grad():
            peer.get_output_embeddings().weight.mul_(1.5)
        return peer

    monkeypatch.setattr(train, "as_peer", perturbed)
    assert main([*SMALL, "--peers", "hf", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["rows"] == []
    assert "the loss of the first step differs" in document["disagreement"]


def test_answers_are_compared(comparison: Comparison) -> None:
    answers = Answers(CELL, comparison.model, comparison.peer)
    rows = answers.measure()
    assert [row["peer"] for row in rows] == ["generate, batch 1", "generate, batch 4"]
    assert all(row["answers_equal"] and row["answers"] == 10 for row in rows)
    assert len(set(answers.theirs(4))) > 1
    torch.manual_seed(0)
    other = as_peer(build_stock(CELL))
    with torch.no_grad():
        for parameter in other.projector.parameters():
            parameter.add_(torch.randn_like(parameter))
    with pytest.raises(Disagreement, match="of 10 answers differ"):
        Answers(CELL, comparison.model, other).measure()


def test_bf16_masters_are_fp32_on_both_sides() -> None:
    comparison = Comparison(dataclasses.replace(CELL, dtype="bf16"), ["hf"])
    assert comparison.agree().loss_difference < 1e-2
    for side in (comparison.model, comparison.peer):
        assert {parameter.dtype for parameter in side.trainable().values()} == {torch.float32}
        assert side.language.get_input_embeddings().weight.dtype == torch.bfloat16  # type: ignore[operator]


def test_operations_are_those_that_torch_counts() -> None:
    """Exactly, where eager attention spends nothing beyond need: one row, every pair visible."""
    stock = build_stock(dataclasses.replace(CELL, questions=1))
    stock.language.set_attn_implementation("eager")  # type: ignore[operator]
    sample = training_samples(dataclasses.replace(CELL, questions=1))[0]
    (batch,) = stock.pack([sample], supervise=[[True, True]])
    everything = torch.ones_like(batch.visible)  # eager attention computes all pairs
    batch = dataclasses.replace(batch, visible=everything)
    stock.image_features(batch.images)  # frozen: cached
    with FlopCounterMode(display=False) as counter:
        stock.forward(batch).logits.sum().backward()  # type: ignore[no-untyped-call]
    assert FlopCount(stock).of([batch]) == counter.get_total_flops()


def test_padding_and_hidden_pairs_are_not_needed() -> None:
    stock = build_stock(CELL)
    samples = training_samples(CELL)[:4]
    packed = FlopCount(stock).of(stock.pack(samples))
    alone = FlopCount(stock).of([batch for sample in samples for batch in stock.pack([sample])])
    assert packed < alone


def test_the_document(comparison: Comparison) -> None:
    document = run.measure([CELL], ["hf", "generate"], with_memory=False, say=lambda _: None)
    json.dumps(document, allow_nan=False)
    assert document["disagreement"] is None
    assert {"cpu", "cores", "threads", "libraries", "peak_gflops", "date"} <= set(document["machine"])
    works = [(row["work"], row["peer"]) for row in document["rows"]]
    assert len(works) == len(set(works)) == 8
    for row in document["rows"]:
        assert {"work", "ours", "theirs", "unit", "ratio", "peer"} <= set(row)
        low, high = row["ratio_range"]
        assert 0 < low <= row["ratio"] <= high
        if row["unit"] == "questions/s":
            assert "loss_difference" in row or "answers_equal" in row


@pytest.mark.slow
def test_memory_is_that_of_a_fresh_process() -> None:
    from mmcl.bench.memory import measure

    rows = measure(dataclasses.replace(CELL, steps=1), ["hf"])
    assert [row["work"].rpartition(", ")[2] for row in rows] == ["same batch", "same batch", "as timed", "as timed"]
    for whole, beyond in (rows[:2], rows[2:]):
        assert whole["ours"] > beyond["ours"] >= 0
        assert whole["theirs"] > 100  # MiB: libraries alone


def test_a_cell_that_disagrees_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def half(model: Assembly) -> LlavaPeer:
        peer = as_peer(model)
        if model.visual_tokens == 9:
            with torch.no_grad():
                peer.get_output_embeddings().weight.mul_(1.5)
        return peer

    monkeypatch.setattr(train, "as_peer", half)
    grid = [CELL, dataclasses.replace(CELL, image_tokens=9)]
    kept: list[int] = []

    def keep(document: dict[str, Any]) -> None:
        kept.append(len(document["rows"]))

    document = run.measure(grid, ["hf"], with_memory=False, say=lambda _: None, keep=keep)
    assert kept == [len(document["rows"])] * 2 and kept[0] > 0  # told after each cell
    assert {row["image_tokens"] for row in document["rows"]} == {4}
    assert "9 image tokens" in document["disagreement"]
    assert "no speed is told" in markdown(document) and "| training, first epoch |" in markdown(document)


@pytest.mark.parametrize(
    "peers",
    ["hf,generate", pytest.param("trl", marks=pytest.mark.skipif(bool(trl_missing()), reason="pip install trl"))],
)
def test_the_command(peers: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, plot = tmp_path / "table.md", tmp_path / "plot.svg"
    assert main([*SMALL, "--peers", peers, "--out", str(out), "--plot", str(plot)]) == 0
    shown = capsys.readouterr().out
    assert "training, first epoch / " in shown
    table = [line for line in out.read_text().splitlines() if line.startswith("|")]
    assert len(table) == 2 + (8 if "hf" in peers else 4)
    assert len({line.count("|") for line in table}) == 1
    assert ElementTree.parse(plot).getroot().tag.endswith("svg")


def test_a_missing_trl_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "trl_missing", lambda: "TRL is not installed: pip install 'mmcl[bench]'")
    document = run.measure([CELL], ["trl"], with_memory=False, say=lambda _: None)
    assert document["skipped"] == ["TRL is not installed: pip install 'mmcl[bench]'"]
    assert {row["peer"] for row in document["rows"]} == {"bare loop", "matrix product"}


def test_all_mistakes_at_once() -> None:
    base = dataclasses.replace(CELL, model="large", batch_size=10)
    with pytest.raises(UserError) as caught:
        cells(base, dtypes=["fp8"], image_tokens=[15], questions=[0])
    assert {problem.where for problem in caught.value.problems} == {
        *("--model", "--dtype", "--image-tokens", "--questions", "--batch-size"),
    }


@pytest.mark.parametrize(
    "wrong",
    [["--peers", "nobody"], ["--out", "table.txt"], ["--plot", "nowhere/plot.svg"], ["--questions", "many"]],
    ids=str,
)
def test_wrong_options_are_the_users_mistake(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, *wrong]) == 2
    assert wrong[0] in capsys.readouterr().err


@pytest.mark.parametrize("stream", ["easy_vqa", "shapes"])
@pytest.mark.parametrize("questions", [None, 10])
def test_samples_are_whole_images(stream: str, questions: int | None) -> None:
    samples = training_samples(dataclasses.replace(CELL, stream=stream, questions=questions, batch_size=24))
    assert len(samples) == 48
    counts: dict[str, int] = {}
    for sample in samples:
        counts[sample.images[0].digest] = counts.get(sample.images[0].digest, 0) + 1
    full: list[Any] = list(counts.values())[:-1]
    assert all(count == questions if questions else count > 4 for count in full)


def test_too_many_questions_per_image() -> None:
    with pytest.raises(UserError, match="use --stream shapes"):
        training_samples(dataclasses.replace(CELL, stream="easy_vqa", questions=40))
