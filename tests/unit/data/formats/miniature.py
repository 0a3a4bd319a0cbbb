"""Every format's official layout in miniature: files and keys as on disk, with made-up texts and images."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image


def picture(path: Path, number: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 12), (40 * number % 256, 90, 120)).save(path)
    return path


def png(number: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 12), (40 * number % 256, 90, 120)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def ten(*answers: str) -> list[dict[str, Any]]:
    filled = [answers[place % len(answers)] for place in range(10)]
    return [{"answer": text, "answer_confidence": "yes", "answer_id": k + 1} for k, text in enumerate(filled)]


def vqav2(home: Path) -> Path:
    questions = [
        {"image_id": 42, "question": "What sport is this?", "question_id": 42000},
        {"image_id": 42, "question": "How many people?", "question_id": 42001},
    ]
    annotations = [
        {"question_id": 42000, "image_id": 42, "question_type": "what sport is", "answer_type": "other"}
        | {"multiple_choice_answer": "tennis", "answers": ten("tennis", "tennis", "squash")},
        {"question_id": 42001, "image_id": 42, "question_type": "how many", "answer_type": "number"}
        | {"multiple_choice_answer": "2", "answers": ten("2")},
    ]
    picture(home / "train2014" / "COCO_train2014_000000000042.jpg")
    write(home / "v2_mscoco_train2014_annotations.json", {"info": {}, "annotations": annotations})
    about = {"info": {}, "task_type": "Open-Ended", "data_type": "mscoco", "data_subtype": "train2014"}
    return write(home / "v2_OpenEnded_mscoco_train2014_questions.json", {**about, "questions": questions})


def vqacl(home: Path) -> Path:
    rows = [
        {
            "img_id": "COCO_train2014_000000000001",
            "question_id": 1,
            "sent": "what is it?",
            "label": {"cat": 1, "dog": 0.3},
        },
        {"img_id": "COCO_val2014_000000000002", "question_id": 2, "sent": "what animal?", "label": {"cow": 1.0}},
        {"img_id": "COCO_val2014_000000000003", "question_id": 3, "sent": "what?", "label": {}},
    ]
    places = {"COCO_train2014_000000000001": 58, "COCO_val2014_000000000002": 19, "COCO_val2014_000000000003": 58}
    write(home / "ImgId_cate_map.json", places)
    for row in rows:
        folder = "train2014" if "train2014" in row["img_id"] else "val2014"
        picture(home / "COCO" / folder / f"{row['img_id']}.jpg")
    return write(home / "Partition_Q" / "karpathy_train_q_recognition.json", rows)


def gqa(home: Path) -> Path:
    picture(home / "images" / "2405722.jpg")
    types = {"detailed": "existAttr", "semantic": "attr", "structural": "verify"}
    entry = {"question": "Is the sky dark?", "imageId": "2405722", "answer": "yes", "fullAnswer": "Yes, it is dark."}
    return write(home / "train_balanced_questions.json", {"02930152": {**entry, "types": types, "isBalanced": True}})


def textvqa(home: Path) -> Path:
    picture(home / "train_images" / "0054c91397f2fe05.jpg")
    row = {"question": "What brand is it?", "image_id": "0054c91397f2fe05", "question_id": 0, "set_name": "train"}
    answers = ["nokia"] * 6 + ["toshiba"] * 4
    document = {"dataset_type": "train", "dataset_name": "textvqa", "dataset_version": "0.5.1"}
    return write(home / "TextVQA_0.5.1_train.json", {**document, "data": [{**row, "answers": answers}]})


def ocrvqa(home: Path) -> Path:
    book = {"imageURL": "http://books.example/51.jpg", "title": "Knots", "authorName": "A. Sailor", "genre": "Crafts"}
    questions = {"questions": ["Who wrote this book?", "What is its title?"], "answers": ["A. Sailor", "Knots"]}
    picture(home / "images" / "0761183272.jpg")
    picture(home / "images" / "1.jpg")
    other = {**book, "questions": ["Is it a cookbook?"], "answers": ["No"], "split": 3}
    return write(home / "dataset.json", {"0761183272": {**book, **questions, "split": 1}, "1": other})


def vizwiz(home: Path) -> Path:
    picture(home / "train" / "VizWiz_train_00000000.jpg")
    row = {"image": "VizWiz_train_00000000.jpg", "question": "What's this?", "answer_type": "other", "answerable": 1}
    return write(home / "train.json", [{**row, "answers": ten("basil leaves", "basil")}])


def docvqa(home: Path) -> Path:
    picture(home / "documents" / "xnbl0037_1.png")
    row = {"questionId": 337, "question": "what is the date?", "docId": 279, "ucsf_document_id": "xnbl0037"}
    more = {"image": "documents/xnbl0037_1.png", "answers": ["1/8/93", "Jan 8"], "data_split": "train"}
    return write(home / "train_v1.0_withQT.json", {"dataset_name": "SP-DocVQA", "data": [{**row, **more}]})


def infographicvqa(home: Path) -> Path:
    picture(home / "images" / "20471.jpeg")
    row = {"questionId": 98313, "question": "Who builds roads?", "image_local_name": "20471.jpeg", "answers": ["city"]}
    return write(home / "infographicsVQA_train_v1.0.json", {"dataset_name": "infographicVQA", "data": [row]})


def chartqa(home: Path) -> Path:
    picture(home / "png" / "41699051005347.png")
    return write(
        home / "train_human.json",
        [{"imgname": "41699051005347.png", "query": "How many food items are shown?", "label": "14"}],
    )


def scienceqa(home: Path) -> Path:
    def problem(question: str, image: str | None, hint: str) -> dict[str, Any]:
        about = {"task": "closed choice", "subject": "natural science", "topic": "physics", "split": "train"}
        return {
            "question": question,
            "choices": ["newton", "joule"],
            "answer": 1,
            "hint": hint,
            "image": image,
            **about,
        }

    picture(home / "images" / "train" / "2" / "image.png")
    write(home / "pid_splits.json", {"train": ["2", "3"], "val": [], "test": ["5"]})
    problems = {
        "2": problem("Which unit measures energy?", "image.png", "Look at the picture."),
        "3": problem("Which one?", None, ""),
        "5": problem("Which?", None, ""),
    }
    return write(home / "problems.json", problems)


def coco_captions(home: Path) -> Path:
    picture(home / "train2014" / "COCO_train2014_000000057870.jpg")
    images = [{"id": 57870, "file_name": "COCO_train2014_000000057870.jpg", "height": 12, "width": 16}]
    captions = [
        {"image_id": 57870, "id": 787980 + k, "caption": text} for k, text in enumerate(["a room", "one table"])
    ]
    return write(home / "annotations" / "captions_train2014.json", {"images": images, "annotations": captions})


def karpathy(home: Path) -> Path:
    def entry(name: str, split: str) -> dict[str, Any]:
        picture(home / "val2014" / name)
        sentences = [{"raw": text, "tokens": text.split(), "imgid": 0} for text in ("a man", "a person")]
        return {"filename": name, "filepath": "val2014", "split": split, "sentids": [0, 1], "sentences": sentences}

    images = [entry("a.jpg", "train"), entry("b.jpg", "restval"), entry("c.jpg", "val"), entry("d.jpg", "test")]
    return write(home / "dataset_coco.json", {"dataset": "coco", "images": images})


def imagefolder(home: Path) -> Path:
    for number, name in enumerate(["n01440764/a.JPEG", "n01440764/b.JPEG", "n01443537/c.JPEG"]):
        picture(home / "train" / name, number)
    (home / "train" / "names.txt").write_text("n01440764 tench\nn01443537 goldfish, Carassius auratus\n")
    return home / "train"


def refcoco(home: Path) -> Path:
    picture(home / "train2014" / "COCO_train2014_000000581857.jpg")
    images = [{"id": 581857, "file_name": "COCO_train2014_000000581857.jpg", "width": 200, "height": 100}]
    boxes = [{"id": 1719310, "image_id": 581857, "category_id": 1, "bbox": [50, 25, 100, 50]}]
    write(home / "instances.json", {"images": images, "annotations": boxes})
    sentences = [{"sent": "the lady", "sent_id": 0, "raw": "The lady"}, {"sent": "left one", "sent_id": 1}]
    ref = {"ref_id": 0, "ann_id": 1719310, "image_id": 581857, "split": "train", "sentences": sentences}
    return write(home / "refs.json", [ref, {**ref, "ref_id": 1, "split": "val"}])


def mmedit(home: Path) -> Path:
    for number, name in enumerate(["a.jpg", "b.jpg", "c.jpg"]):
        picture(home / "images" / "val2014" / name, number)
    row = {"src": "Who is this?", "pred": "Ann", "alt": "Bob", "image": "val2014/a.jpg", "rephrase": "Name him."}
    row |= {"image_rephrase": "val2014/b.jpg", "loc": "nq question: capital of France", "loc_ans": "Paris"}
    row |= {"m_loc": "val2014/c.jpg", "m_loc_q": "What colour?", "m_loc_a": "red"}
    return write(home / "vqa_train.json", [row])


def llava_json(home: Path) -> Path:
    picture(home / "a.png")
    talk = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "a cat"}]
    return write(home / "train.json", [{"id": "1", "image": "a.png", "conversations": talk}])


def documents(home: Path) -> Path:
    for name in ("a.png", "b.png"):
        picture(home / "images" / name)
    rows = [
        {"id": "plain", "text": "Snow is white."},
        {"text": "A cat. <image> A dog. <image>", "images": ["a.png", "b.png"]},
        {"texts": ["First,", None, "then."], "images": [None, "a.png", None]},
    ]
    return write(home / "corpus.json", rows)


LAYOUTS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "llava_json": (llava_json, "."),
    "vqav2": (vqav2, "train2014"),
    "vqacl": (vqacl, "COCO"),
    "gqa": (gqa, "images"),
    "textvqa": (textvqa, "train_images"),
    "ocrvqa": (ocrvqa, "images"),
    "vizwiz": (vizwiz, "train"),
    "docvqa": (docvqa, "."),
    "chartqa": (chartqa, "png"),
    "scienceqa": (scienceqa, "images"),
    "coco_captions": (coco_captions, "train2014"),
    "karpathy": (karpathy, "."),
    "imagefolder": (imagefolder, "train"),
    "refcoco": (refcoco, "train2014"),
    "mmedit": (mmedit, "images"),
    "documents": (documents, "images"),
}
"""Of each format of files: what writes it, and its image folder."""
