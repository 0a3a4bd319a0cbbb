"""Benchmarks' own files are read as they lie on disk, and every mistake in them is named."""

from __future__ import annotations

import json
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from mmcl.data.types import Sample
from mmcl.errors import UserError

FORMATS = {point.name: point for point in entry_points(group="mmcl.formats")}


def read(miniature: Any, tmp_path: Path, name: str, **options: Any) -> list[Sample]:
    write, images = miniature.LAYOUTS[name]
    path = write(tmp_path)
    return list(FORMATS[name].load()(**options).read(path, task="t", images=tmp_path / images))


def turns(samples: list[Sample]) -> list[tuple[str, ...]]:
    return [tuple(turn.text for turn in sample.turns) for sample in samples]


def test_every_format_has_a_miniature(miniature: Any) -> None:
    assert set(FORMATS) - {"hf_dataset"} == set(miniature.LAYOUTS)


@pytest.mark.parametrize("name", sorted(set(FORMATS) - {"hf_dataset"}))
def test_training_ends_with_the_answer_a_test_with_the_question(miniature: Any, tmp_path: Path, name: str) -> None:
    train = read(miniature, tmp_path, name)
    assert train
    assert all(sample.reply and not sample.answers and sample.task == "t" for sample in train)
    for sample in train:
        assert sum(turn.text.count("<image>") for turn in sample.turns) == len(sample.images)
        assert all(image.open().size == (16, 12) for image in sample.images)
    if name == "documents":
        return  # they are read whole, see below
    part = {"ocrvqa": {"part": 1}, "karpathy": {"part": "train"}, "scienceqa": {"part": "train"}}.get(name, {})
    test = read(miniature, tmp_path, name, split="test", **part)
    assert test
    assert all(not sample.reply and sample.answers and sample.turns[-1].role == "user" for sample in test)
    assert len({sample.id for sample in test}) == len(test)
    write, images = miniature.LAYOUTS[name]
    reader = FORMATS[name].load()()
    assert reader.sniff(write(tmp_path)) or name in ("llava_json",)
    assert reader.validate(write(tmp_path), task="t", images=tmp_path / images) == []


def test_a_file_is_taken_for_no_other_format(miniature: Any, tmp_path: Path) -> None:
    for name, (write, _) in miniature.LAYOUTS.items():
        path = write(tmp_path / name)
        takers = {other for other, point in FORMATS.items() if point.load()().sniff(path)}
        assert name in takers or name == "documents"  # rows of a corpus have to be asked for
        assert takers <= {name, "llava_json"} | ({"hf_dataset"} if name == "imagefolder" else set()), (name, takers)


def test_vqav2(miniature: Any, tmp_path: Path) -> None:
    suffix = "\nAnswer the question using a single word or phrase."
    first, second = read(miniature, tmp_path, "vqav2", suffix=suffix, group="question_type")
    assert turns([first]) == [(f"<image>\nWhat sport is this?{suffix}", "tennis")]
    assert (first.id, first.group, second.group) == ("42000", "what sport is", "how many")
    assert first.images[0].name == "COCO_train2014_000000000042.jpg"
    tested, _ = read(miniature, tmp_path, "vqav2", split="test")
    assert tested.answers.count("tennis") == 7
    assert len(tested.answers) == 10


def test_vqacl_groups_and_novel_compositions(miniature: Any, tmp_path: Path) -> None:
    groups = {"G1": [58], "G2": [19]}
    both = read(miniature, tmp_path, "vqacl", groups=groups)
    assert [(sample.group, sample.reply) for sample in both] == [("G1", "cat"), ("G2", "cow")]
    assert [s.group for s in read(miniature, tmp_path, "vqacl", groups=groups, leave_out=["G1"])] == ["G2"]
    assert [s.group for s in read(miniature, tmp_path, "vqacl")] == ["58", "19"]


def test_ocrvqa_has_several_questions_per_book(miniature: Any, tmp_path: Path) -> None:
    samples = read(miniature, tmp_path, "ocrvqa")
    assert turns(samples) == [("<image>\nWho wrote this book?", "A. Sailor"), ("<image>\nWhat is its title?", "Knots")]
    assert samples[0].images[0] is samples[1].images[0]
    assert [sample.answers for sample in read(miniature, tmp_path, "ocrvqa", split="test")] == [("No",)]


def test_answers_of_annotators(miniature: Any, tmp_path: Path) -> None:
    assert [sample.reply for sample in read(miniature, tmp_path, "textvqa")] == ["nokia"]
    assert len(read(miniature, tmp_path, "vizwiz", split="test")[0].answers) == 10
    assert read(miniature, tmp_path, "docvqa", split="test")[0].answers == ("1/8/93", "Jan 8")
    path = miniature.infographicvqa(tmp_path)
    (sample,) = FORMATS["docvqa"].load()().read(path, task="t", images=tmp_path / "images")
    assert sample.reply == "city"


def test_scienceqa_letters_context_and_questions_without_images(miniature: Any, tmp_path: Path) -> None:
    shown, plain = read(miniature, tmp_path, "scienceqa")
    asked = "<image>\nWhich unit measures energy?\nContext: Look at the picture.\nA. newton\nB. joule"
    assert turns([shown, plain]) == [(asked, "B"), ("Which one?\nA. newton\nB. joule", "B")]
    assert (shown.modality, plain.modality) == ("image+text", "text")
    assert len(read(miniature, tmp_path, "scienceqa", images_only=True)) == 1


def test_captions(miniature: Any, tmp_path: Path) -> None:
    assert turns(read(miniature, tmp_path, "coco_captions", prompt="Describe."))[1] == (
        "<image>\nDescribe.",
        "one table",
    )
    assert len(read(miniature, tmp_path, "coco_captions", captions_per_image=1)) == 1
    assert read(miniature, tmp_path, "coco_captions", split="test")[0].answers == ("a room", "one table")
    assert [sample.id for sample in read(miniature, tmp_path, "karpathy", captions_per_image=1)] == [
        "a.jpg-0",
        "b.jpg-0",
    ]
    assert [sample.id for sample in read(miniature, tmp_path, "karpathy", split="test")] == ["d.jpg"]


def test_folders_of_classes(miniature: Any, tmp_path: Path) -> None:
    named = read(miniature, tmp_path, "imagefolder", names="names.txt")
    assert [sample.reply for sample in named] == ["tench", "tench", "goldfish, Carassius auratus"]
    assert [sample.reply for sample in read(miniature, tmp_path, "imagefolder", limit=1)] == ["n01440764", "n01443537"]


def test_a_link_out_of_the_folder_of_classes_is_refused(miniature: Any, tmp_path: Path) -> None:
    home = miniature.imagefolder(tmp_path)
    outside = miniature.picture(tmp_path / "secret.png")
    (home / "n01443537" / "link.png").symlink_to(outside)
    with pytest.raises(UserError, match="leaves the image folder"):
        FORMATS["imagefolder"].load()().read(home, task="t", images=None)


def test_boxes_are_shares_of_the_square(miniature: Any, tmp_path: Path) -> None:
    one, two = read(miniature, tmp_path, "refcoco", prompt="Where is {}?")
    assert turns([one, two])[0] == ("<image>\nWhere is the lady?", "[0.25,0.38,0.75,0.62]")
    assert read(miniature, tmp_path, "refcoco", pad="none")[0].reply == "[0.25,0.25,0.75,0.75]"
    assert read(miniature, tmp_path, "refcoco", split="test")[0].metadata["size"] == [200, 100]


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    path = tmp_path / "refs(unc).p"
    path.write_bytes(b"cos\nsystem\n(S'touch %s'\ntR." % str(tmp_path / "touched").encode())
    with pytest.raises(UserError, match="pickle"):
        FORMATS["refcoco"].load()().read(path, task="t", images=None)
    assert not (tmp_path / "touched").exists()


def test_documents_are_read_whole(miniature: Any, tmp_path: Path) -> None:
    plain, two, between = read(miniature, tmp_path, "documents", suffix="!")
    assert turns([plain, two, between]) == [
        ("Snow is white.!",),
        ("A cat. <image> A dog. <image>!",),
        ("First,\n<image>\nthen.!",),
    ]
    assert [sample.document for sample in (plain, two, between)] == [True] * 3
    assert [sample.modality for sample in (plain, two, between)] == ["text", "image+text", "image+text"]
    assert [len(sample.images) for sample in (plain, two, between)] == [0, 2, 1]
    assert (plain.id, two.id) == ("plain", "2")
    path = tmp_path / "corpus.txt"
    path.write_text("One\nline.\n\n\nTwo <image>.\n")
    reader = FORMATS["documents"].load()
    assert reader().sniff(path)
    assert turns(reader().read(path, task="t", images=None)) == [("One\nline.",), ("Two <image >.",)]
    cut = reader(longest=4).read(path, task="t", images=None)
    assert [sample.turns[0].text for sample in cut][:3] == ["One\n", "line", "."]


def test_edits_rephrasings_and_bystanders(miniature: Any, tmp_path: Path) -> None:
    assert turns(read(miniature, tmp_path, "mmedit", repeat=2)) == [("<image>\nWho is this?", "Bob")] * 2
    rows = read(miniature, tmp_path, "mmedit", split="test")
    assert [(row.group, row.answers, len(row.images)) for row in rows] == [
        ("edit", ("Bob",), 1),
        ("rephrase", ("Bob",), 1),
        ("locality", ("Paris",), 0),
        ("locality", ("red",), 1),
    ]


def test_all_mistakes_of_a_file_are_told_at_once(miniature: Any, tmp_path: Path) -> None:
    path = miniature.chartqa(tmp_path)
    good = json.loads(path.read_text())[0]
    rows = [good, "text", {**good, "query": " "}, {**good, "label": None}, {**good, "imgname": "../../x.png"}]
    rows += [{key: value for key, value in good.items() if key != "label"}, {**good, "imgname": "gone.png"}]
    miniature.write(path, rows)
    problems = FORMATS["chartqa"].load()().validate(path, task="t", images=tmp_path / "png")
    places = [problem.where.removeprefix(str(path)) for problem in problems]
    assert places == [":2", ":3, query", ":4, label", ":5, image", ":6, label", ""]
    assert "gone.png (row 7)" in problems[-1].message
    with pytest.raises(UserError) as error:
        FORMATS["chartqa"].load()().read(path, task="t", images=tmp_path / "png")
    assert list(error.value.problems) == problems


def test_an_id_that_comes_twice(miniature: Any, tmp_path: Path) -> None:
    path = miniature.textvqa(tmp_path)
    document = json.loads(path.read_text())
    miniature.write(path, {**document, "data": document["data"] * 2})
    (problem,) = FORMATS["textvqa"].load()().validate(path, task="t", images=tmp_path / "train_images")
    assert problem.where == f"{path}:2, id"
    assert "the id '0' is that of row 1" in problem.message


def test_files_that_belong_together(miniature: Any, tmp_path: Path) -> None:
    path = miniature.vqav2(tmp_path)
    (tmp_path / "v2_mscoco_train2014_annotations.json").unlink()
    with pytest.raises(UserError, match=r"no file of annotations v2_mscoco_train2014_annotations\.json"):
        FORMATS["vqav2"].load()().read(path, task="t", images=tmp_path)
    path = miniature.scienceqa(tmp_path)
    with pytest.raises(UserError, match="no split `dev`") as error:
        FORMATS["scienceqa"].load()(part="dev").read(path, task="t", images=tmp_path)
    assert "train, val, test" in error.value.problems[0].hint
