from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmcl.data.formats.llava_json import LlavaJSON
from mmcl.data.formats.llava_row import NAMED
from mmcl.data.types import Sample, Turn
from mmcl.errors import Problem, UserError


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for index, name in enumerate(("1.png", "2.png", "sub/3.png")):
        Image.new("RGB", (4, 4), (index * 40, 0, 0)).save(folder / name)
    return folder


def train(*turns: tuple[str, Any], **keys: Any) -> dict[str, Any]:
    return {"conversations": [{"from": who, "value": value} for who, value in turns], **keys}


GOOD = train(("human", "<image>\nHow many?"), ("gpt", "3"), id="a", image="1.png")


def write(images: Path, rows: Any, name: str = "train.json") -> Path:
    path = images.parent / name
    path.write_text(rows if isinstance(rows, str) else json.dumps(rows), encoding="utf-8")
    return path


def read(images: Path, rows: Any, name: str = "train.json", **options: Any) -> list[Sample]:
    return LlavaJSON(**options).read(write(images, rows, name), task="t", images=images)


def mistakes(images: Path, rows: Any, name: str = "train.json", **options: Any) -> list[Problem]:
    """All problems; each says where it is and how to mend it, and `read` raises the same."""
    path, form = write(images, rows, name), LlavaJSON(**options)
    problems = form.validate(path, task="t", images=images)
    assert all(problem.where and problem.message and problem.hint for problem in problems)
    if problems:
        with pytest.raises(UserError) as caught:
            form.read(path, task="t", images=images)
        assert list(caught.value.problems) == problems
    return problems


def only(images: Path, row: Any, **options: Any) -> tuple[str, str, str]:
    """Place inside the row, message and hint of the one mistake in a file whose second row is this one."""
    first = {"question_id": "q", "text": "What?", "answer": "x"} if options.get("split") == "test" else GOOD
    (problem,) = mistakes(images, [first, row], **options)
    prefix = f"{images.parent / 'train.json'}:2"
    assert problem.where.startswith(prefix)
    return problem.where.removeprefix(prefix).removeprefix(", "), problem.message, problem.hint


# ------------------------------------------------------------------------------------------------------- what is read


def test_training_row(images: Path) -> None:
    row = {**GOOD, "answer_type": "number", "question_id": 7}
    (sample,) = read(images, [row])
    assert (sample.id, sample.task, sample.answers) == ("a", "t", ())
    assert sample.turns == (Turn("user", "<image>\nHow many?"), Turn("assistant", "3"))
    assert [image.name for image in sample.images] == ["1.png"]
    assert sample.images[0].open().size == (4, 4)
    assert sample.metadata == {"answer_type": "number", "question_id": 7}


def test_text_only_several_turns_and_system(images: Path) -> None:
    turns = [("system", "Be brief."), ("human", "Force?"), ("gpt", "N"), ("human", "Energy?"), ("gpt", "J")]
    (sample,) = read(images, [train(*turns, id=5, image=None)])
    assert [turn.role for turn in sample.turns] == ["system", "user", "assistant", "user", "assistant"]
    assert (sample.id, sample.images, sample.modality) == ("5", (), "text")


def test_several_images_share_one_source(images: Path) -> None:
    rows = [
        train(("human", "<image><image>Differ?"), ("gpt", "yes"), id="a", image=["1.png", "sub/3.png"]),
        train(("human", "<image> and <image>?"), ("gpt", "no"), id="b", images=["sub/3.png", "2.png"]),
    ]
    one, two = read(images, rows)
    assert [image.name for image in one.images] == ["1.png", "sub/3.png"]
    assert two.images[0] is one.images[1]


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_json_lines_whatever_the_name(images: Path, name: str) -> None:
    second = train(("human", "a\u2028b"), ("gpt", "c"), id="b")
    text = json.dumps(GOOD) + "\r\n\n" + json.dumps(second, ensure_ascii=False) + "\n"
    assert [sample.id for sample in read(images, text, name)] == ["a", "b"]
    assert [sample.id for sample in read(images, json.dumps(GOOD), name)] == ["a"]


def test_array_over_many_lines_with_a_byte_order_mark(images: Path) -> None:
    assert len(read(images, "\ufeff" + json.dumps([GOOD], indent=1))) == 1


def test_messages_of_llama_factory(images: Path) -> None:
    messages = [{"role": "user", "content": "<image>Who?"}, {"role": "assistant", "content": "Kane"}]
    (sample,) = read(images, [{"messages": messages, "images": ["1.png"], "system": "Be kind."}])
    assert sample.turns == (Turn("system", "Be kind."), Turn("user", "<image>Who?"), Turn("assistant", "Kane"))
    assert (sample.id, sample.metadata, len(sample.images)) == ("1", {}, 1)


@pytest.mark.parametrize("inline", [True, False])
def test_messages_with_lists_of_parts(images: Path, inline: bool) -> None:
    picture = {"type": "image", "image": "1.png"} if inline else {"type": "image", "text": None}
    messages = [
        {"role": "user", "content": [picture, {"type": "text", "text": "Who?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Kane"}]},
    ]
    row = {"messages": messages, "images": None if inline else [{"path": "1.png", "bytes": None}]}
    (sample,) = read(images, [row])
    assert sample.turns == (Turn("user", "<image>\nWho?"), Turn("assistant", "Kane"))
    assert [image.name for image in sample.images] == ["1.png"]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("two", ("two",)),
        (2, ("2",)),
        (["a", "b"], ("a", "b")),
        (["x"] * 9 + [""], ("x",) * 9 + ("",)),
        ([{"answer": "net", "answer_id": 1}, {"answer": "nets", "answer_id": 2}], ("net", "nets")),
    ],
)
def test_test_row(images: Path, answer: Any, expected: tuple[str, ...]) -> None:
    row = {"question_id": 9, "image": "1.png", "text": "<image>\nHow many?", "answer": answer, "type": "count"}
    (sample,) = read(images, [row], group="type")
    assert (sample.id, sample.answers, sample.group) == ("9", expected, "count")
    assert sample.turns == (Turn("user", "<image>\nHow many?"),)
    assert sample.metadata == {"type": "count"}


def test_question_without_placeholder_gets_one_for_each_image(images: Path) -> None:
    rows = [
        {"question_id": "1", "image": "1.png", "text": "What?", "answer": "x"},
        {"question_id": "2", "image": ["1.png", "2.png"], "text": "What?", "answer": "x"},
        {"question_id": "3", "text": "What?", "answer": "x"},
    ]
    texts = [sample.turns[0].text for sample in read(images, rows)]
    assert texts == ["<image>\nWhat?", "<image>\n<image>\nWhat?", "What?"]


def test_box_stays_in_the_metadata_and_answers_where_nothing_else_does(images: Path) -> None:
    box = {"answer_bbox": "[0.1,0.2,0.3,0.4]", "size": [640, 480]}
    rows = [
        {"question_id": "1", "image": "1.png", "text": "Where?", "answer": "there", **box},
        {"question_id": "2", "image": "1.png", "text": "Where?", **box},
    ]
    one, two = read(images, rows)
    assert one.metadata == two.metadata == box
    assert (one.answers, two.answers) == (("there",), ("[0.1,0.2,0.3,0.4]",))


def test_conversation_as_a_question(images: Path) -> None:
    asked = train(("human", "<image>\nHow many?"), id="a", image="1.png", answer=["3", "three"])
    (by_answer,) = read(images, [asked])
    (by_reply,) = read(images, [GOOD], split="test")
    assert by_answer.turns == by_reply.turns == (Turn("user", "<image>\nHow many?"),)
    assert (by_answer.answers, by_reply.answers) == (("3", "three"), ("3",))


def test_rows_numbered(images: Path) -> None:
    one, two = read(images, [GOOD, GOOD], ids="row")
    assert (one.id, two.id, two.metadata) == ("1", "2", {"id": "a"})


def test_paths_start_at_the_folder_of_the_file_by_default(images: Path) -> None:
    path = write(images, [{**GOOD, "image": "images/1.png"}])
    assert len(LlavaJSON().read(path, task="t", images=None)) == 1


def test_sniff(images: Path) -> None:
    form = LlavaJSON()
    assert form.sniff(write(images, [GOOD]))
    assert form.sniff(write(images, json.dumps(GOOD), "a.jsonl"))
    assert not form.sniff(write(images, {"data": []}, "b.json"))
    assert not form.sniff(write(images, [GOOD], "c.txt"))
    assert not form.sniff(images / "missing.json")
    assert not form.sniff(images)


# ------------------------------------------------------------------------------------------------------------ bad files


def test_broken_json_names_line_and_column(images: Path) -> None:
    (problem,) = mistakes(images, '[\n {"id": "a"},\n {"id" "b"}\n]')
    assert problem.where == f"{images.parent / 'train.json'}:3:8"
    assert "line 3, column 8" in problem.message and "comma" in problem.hint


def test_every_broken_line_of_json_lines(images: Path) -> None:
    text = json.dumps(GOOD) + '\n{"id": \n' + json.dumps({**GOOD, "id": "b"}) + "\n{]\n"
    problems = mistakes(images, text, "a.jsonl")
    assert [problem.where.removeprefix(f"{images.parent / 'a.jsonl'}:").partition(":")[0] for problem in problems] == [
        "2",
        "4",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ('{\n "a": 1\n}', "an object, not a list"),
        ("3", "a number, not a list"),
        ("[" * 100_000, "deeply"),
        ("[" + "1" * 5000 + "]", "broken JSON"),
    ],
    ids=["nothing", "blank", "object", "number", "deep", "digits"],
)
def test_file_that_holds_no_rows(images: Path, text: str, message: str) -> None:
    (problem,) = mistakes(images, text)
    assert message in problem.message and problem.where.startswith(str(images.parent / "train.json"))


def test_file_that_can_not_be_read(images: Path) -> None:
    (problem,) = LlavaJSON().validate(images / "none.json", task="t", images=images)
    assert problem.where.endswith("none.json") and "No such file" in problem.message and problem.hint
    path = images.parent / "latin.json"
    path.write_bytes(b'["\xe9"]')
    (problem,) = LlavaJSON().validate(path, task="t", images=images)
    assert "byte 3 is no UTF-8" in problem.message and "UTF-8" in problem.hint


# ------------------------------------------------------------------------------------------------------------- bad rows

ASK, REPLY = ("human", "<image>\nHow many?"), ("gpt", "3")
PICTURE = {"id": "b", "image": "1.png"}


@pytest.mark.parametrize(
    ("row", "key", "message", "hint"),
    [
        (3, "", "the row is a number", "JSON object"),
        ({"id": "b"}, "", "no conversation; its keys: id", "`conversations` or `messages`"),
        ({"id": "b", "conversations": []}, "conversations", "an empty list", "list of turns"),
        ({"id": "b", "conversations": "hi"}, "conversations", "is text", "list of turns"),
        (train(ASK, ("bot", "3"), **PICTURE), "conversations.1.from", 'unknown `from`: "bot"', "human, user, gpt"),
        (train(ASK, REPLY, ("human", " "), REPLY, **PICTURE), "conversations.2.value", "user turn is empty", "write"),
        (train(ASK, ("gpt", ""), **PICTURE), "conversations.1.value", "assistant turn is empty", "write"),
        (train(ASK, ("gpt", 3), **PICTURE), "conversations.1.value", "expected text, got a number", "quotes"),
        (train(ASK, ("gpt", None), **PICTURE), "conversations.1.value", "expected text, got null", "quotes"),
        (train(ASK, ("gpt", "\ud800"), **PICTURE), "conversations.1.value", "half of a character", "escape"),
        (train(ASK, **PICTURE), "conversations", "no answer", "ends with a `gpt`"),
        (train(ASK, ASK, REPLY, **{**PICTURE, "image": ["1.png"] * 2}), "conversations.1", "after one", "alternate"),
        (train(REPLY, ("human", "<image>"), REPLY, **PICTURE), "conversations.0", "at the start", "alternate"),
        (train(ASK, ("gpt", "<image>"), id="b", image=["1.png"] * 2), "conversations.1.value", "`<image>`", "move it"),
        ({**PICTURE, "text": "What?", "answer": "x"}, "text", "no answer", "is a conversation"),
        (train(("human", "How many?"), REPLY, **PICTURE), "image", "0 `<image>` in the text, 1", "once for each"),
        (train(ASK, REPLY, id="b"), "images", "1 `<image>` in the text, 0", "once for each"),
        (train(ASK, REPLY, id="b", images=["1.png", "2.png"]), "images", "1 `<image>` in the text, 2", "once"),
        (train(("human", "x"), REPLY, id="b", video="a.mp4"), "video", "can't read `video`", "leave such rows out"),
        (train(ASK, REPLY, **PICTURE, images=["1.png"]), "images", "`image` too", "keep one"),
        (train(ASK, REPLY, id=True, image="1.png"), "id", "true or false", "text or a whole number"),
        (train(ASK, REPLY, id="a", image="1.png"), "id", "'a' is that of row 1", "`ids: row`"),
        (train(ASK, REPLY, id="b", image=""), "image", "an empty path", "text-only"),
        (train(ASK, REPLY, id="b", image=3), "image", "a number", "text-only"),
        (train(ASK, REPLY, id="b", image="a\0b"), "image", "path", "relative to the image folder"),
        (train(ASK, REPLY, id="b", image="http://x/1.png"), "image", "web address", "relative to the image folder"),
        (train(ASK, REPLY, id="b", image="../train.json"), "image", "leaves the image folder", "without `..`"),
        (train(ASK, REPLY, id="b", image="data:image/png;base64,iVB"), "image", "data: address", "write it to a file"),
        (train(ASK, REPLY, id="b", image="/etc/passwd"), "image", "/etc/passwd leaves", "relative to the image folder"),
        ({"id": "b", "messages": ["hi"]}, "messages.0", "the turn is text", '"role": "user"'),
        (
            {"id": "b", "messages": [{"role": "user", "content": [{"type": "box"}, {"type": "text", "text": "x"}]},
                                     {"role": "assistant", "content": "y"}]},
            "messages.0.content.0", 'unknown type of part: "box"', '{"type": "image"}',
        ),
        (
            {**PICTURE, "messages": [{"role": "user", "content": [{"type": "image", "image": "1.png"}]},
                                     {"role": "assistant", "content": "y"}]},
            "image", "contents name images too", "one place",
        ),
    ],
)  # fmt: skip
def test_bad_training_row(images: Path, row: Any, key: str, message: str, hint: str) -> None:
    found = only(images, row, split="train")
    assert found[0] == key
    assert message in found[1] and hint in found[2]


@pytest.mark.parametrize(
    ("row", "key", "message"),
    [
        ({"question_id": "b", "text": "What?"}, "answers", "no answer"),
        ({"question_id": "b", "text": "What?", "answer": None}, "answers", "no answer"),
        ({"question_id": "b", "text": "What?", "answer": []}, "answer", "no answer"),
        ({"question_id": "b", "text": "What?", "answer": [" ", ""]}, "answer", "no answer"),
        ({"question_id": "b", "text": "What?", "answer": True}, "answer", "got true or false"),
        ({"question_id": "b", "text": "What?", "answer": [{"text": "x"}]}, "answer", "got null"),
        ({"question_id": "b", "text": " ", "answer": "x"}, "text", "the question is empty"),
        ({"question_id": "q", "text": "What?", "answer": "x"}, "question_id", "'q' is that of row 1"),
        ({"question_id": "b", "text": "<image>What?", "answer": "x"}, "images", "1 `<image>` in the text, 0"),
        (
            {"question_id": "b", "text": "<image>What?", "image": ["1.png", "2.png"], "answer": "x"},
            "image",
            "1 `<image>` in the text, 2",
        ),
    ],
)
def test_bad_test_row(images: Path, row: Any, key: str, message: str) -> None:
    found = only(images, row, split="test")
    assert found[0] == key and message in found[1]


def test_group_is_missing(images: Path) -> None:
    (problem,) = mistakes(images, [GOOD], group="kind")
    assert problem.where.endswith(":1, kind") and "no `kind`" in problem.message and "`group`" in problem.hint


def test_link_out_of_the_image_folder(images: Path) -> None:
    (images / "link.png").symlink_to(write(images, "secret", "secret.txt"))
    assert "leaves the image folder" in only(images, {**GOOD, "id": "b", "image": "link.png"})[1]


def test_missing_images_are_counted_and_the_first_ones_named(images: Path) -> None:
    rows = [{**GOOD, "id": str(index), "image": f"no/{index}.png"} for index in range(NAMED + 3)]
    rows += [{**GOOD, "id": "again", "image": "no/0.png"}, {**GOOD, "id": "long", "image": "x" * 5000}, GOOD]
    (problem,) = mistakes(images, rows)
    assert f"{NAMED + 4} of {NAMED + 5} image files are missing: no/0.png (row 1), no/1.png (row 2)" in problem.message
    assert problem.message.endswith(f"no/{NAMED - 1}.png (row {NAMED}) and 4 more")
    assert str(images) in problem.hint


def test_missing_image_folder_is_named_once(images: Path) -> None:
    path = write(images, [GOOD, {**GOOD, "id": "b", "image": "2.png"}])
    (problem,) = LlavaJSON().validate(path, task="t", images=images / "none")
    assert problem.where == str(images / "none") and "does not exist" in problem.message and "`images`" in problem.hint


def test_mistakes_of_many_rows_come_at_once(images: Path) -> None:
    bad = train(("human", "x"), ("gpt", " "))
    rows = [*[{**bad, "id": index} for index in range(30)], {**GOOD, "image": "../x.png"}, "row"]
    problems = mistakes(images, rows)
    places = [problem.where.removeprefix(f"{images.parent / 'train.json'}") for problem in problems]
    assert places == [
        ":32",
        *[f":{index}, conversations.1.value" for index in range(1, 11)],
        ":31, image",
        "",
    ]
    assert "20 more" in problems[-1].message and "row 30" in problems[-1].message
