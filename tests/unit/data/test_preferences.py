"""Preference pairs, in the layouts that people have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmcl.data.formats.llava_json import LlavaJSON
from mmcl.errors import UserError

TURN = {"from": "human", "value": "<image>\nWhat is it?"}
LAYOUTS: dict[str, dict[str, Any]] = {
    "LLaMA-Factory": {
        "conversations": [TURN],
        "chosen": {"from": "gpt", "value": "a cat"},
        "rejected": {"from": "gpt", "value": "a dog"},
        "images": ["a.png"],
    },
    "TRL texts": {"prompt": "What is it?", "chosen": "a cat", "rejected": "a dog", "images": ["a.png"]},
    "TRL messages": {
        "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}],
        "chosen": [{"role": "assistant", "content": "a cat"}],
        "rejected": [{"role": "assistant", "content": [{"type": "text", "text": "a dog"}]}],
        "images": ["a.png"],
    },
    "TRL implicit prompt": {
        "chosen": [{"role": "user", "content": "<image>\nWhat is it?"}, {"role": "assistant", "content": "a cat"}],
        "rejected": [{"role": "user", "content": "<image>\nWhat is it?"}, {"role": "assistant", "content": "a dog"}],
        "images": ["a.png"],
    },
    "RLHF-V": {"question": "What is it?", "chosen": "a cat", "rejected": "a dog", "image": "a.png", "idx": 3},
    "ms-swift": {
        "messages": [
            {"role": "user", "content": "<image>\nWhat is it?"},
            {"role": "assistant", "content": "a cat"},
        ],
        "rejected_response": "a dog",
        "images": ["a.png"],
    },
}


def read(folder: Path, row: dict[str, Any]) -> Any:
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    (folder / "pairs.json").write_text(json.dumps([row]))
    return LlavaJSON(split="train").read(folder / "pairs.json", task="t", images=folder)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_same_pair(tmp_path: Path, name: str) -> None:
    (sample,) = read(tmp_path, LAYOUTS[name])
    assert [(turn.role, turn.text) for turn in sample.turns] == [
        ("user", "<image>\nWhat is it?"),
        ("assistant", "a cat"),
    ]
    assert (sample.rejected, len(sample.images)) == ("a dog", 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rejected": []}, "`rejected` is a list without an answer"),
        ({"chosen": {"from": "gpt"}}, "`chosen` is an object without an answer"),
        ({"conversations": None}, "the pair has no question"),
    ],
)
def test_half_a_pair_is_a_mistake(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        read(tmp_path, {**LAYOUTS["LLaMA-Factory"], **change})
    assert message in error.value.problems[0].message


def test_a_suffix_ends_every_question(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    row = {"id": "1", "image": "a.png", "conversations": [TURN, {"from": "gpt", "value": "a cat"}]}
    (tmp_path / "rows.json").write_text(json.dumps([row]))
    (sample,) = LlavaJSON(suffix=" Briefly.").read(tmp_path / "rows.json", task="t", images=tmp_path)
    assert [turn.text for turn in sample.turns] == ["<image>\nWhat is it? Briefly.", "a cat"]
