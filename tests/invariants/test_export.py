"""What was exported answers as mmcl does, in a process that has no mmcl."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from mmcl.data.types import Sample
from mmcl.errors import UserError
from mmcl.experiment import Experiment
from mmcl.export import export, routes_of
from mmcl.export.card import plain_text
from mmcl.progress import Progress
from mmcl.recipe.load import load_recipe
from mmcl.revisit import open_run

QUESTIONS = 50
LOADER = """
import json, sys
sys.modules["mmcl"] = None  # importing it is an error from here on
from transformers import AutoModelForImageTextToText, AutoProcessor
from PIL import Image

folder, asked, *adapter = sys.argv[1:]
model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto").eval()
if adapter:
    from peft import PeftModel
    model = PeftModel.from_pretrained(model, adapter[0]).eval()
processor = AutoProcessor.from_pretrained(folder)
answers = []
for row in json.load(open(asked)):
    content = [{"type": "image", "image": Image.open(row["image"])}, {"type": "text", "text": row["text"]}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    )
    out = model.generate(**inputs, do_sample=False)
    answers.append(processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip())
try:
    import mmcl
except ImportError:
    whole = model.get_base_model() if adapter else model
    print(json.dumps({"class": type(whole).__name__, "answers": answers}))
"""
VISION = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
CLIP = {"name": "transformers", "config": VISION, "pretrained": False, "levels": [-1]}
EXPERTS = [{"name": "projector_experts", "router": "oracle", "adapter": True}]
MODELS: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "tiny:llava": ({"vlm": "tiny:llava"}, ["finetune"]),
    "tiny:qwen2_vl": ({"vlm": "tiny:qwen2_vl"}, EXPERTS),
    "tiny:smolvlm": ({"vlm": "tiny:smolvlm", "encoder_lora": {"rank": 2}}, ["finetune"]),
    "assembly": ({"encoder": CLIP, "projector": {"name": "mlp", "depth": 2}}, ["finetune"]),
    "experts": (
        {"encoder": {**CLIP, "levels": [2]}, "projector": "mlp", "encoder_lora": {"rank": 2}},
        [{"name": "projector_experts", "router": "oracle", "unit": "lora", "rank": 2}],
    ),
}


def train(folder: Path, model: dict[str, Any], methods: list[Any]) -> Path:
    """A run of two tasks."""
    language = {"lora": {"rank": 2}} if "vlm" in model else {"weights": "tiny:llama", "lora": {"rank": 2}}
    parts = ["projector", "language.lora", *(["encoder.lora"] if "encoder_lora" in model else [])]
    recipe = {
        "name": "away",
        "model": {**model, "language": language, "train": parts},
        "stream": {"name": "shapes", "tasks": ["colour", "shape"], "train_size": 64, "test_size": QUESTIONS},
        "methods": methods,
        "train": {"learning_rate": 1e-2, "epochs": 2, "batch_size": 16},
        "evaluate": {"max_new_tokens": 6, "sample": 4},
    }
    path = folder / "away.yaml"
    path.write_text(yaml.safe_dump(recipe))
    Experiment(load_recipe(path), folder / "run", progress=Progress.silent()).run()
    return folder / "run"


def asked(run: Path, route: str, folder: Path) -> tuple[list[str], Path]:
    """What mmcl answers on a route, and the questions in a file."""
    session, stage, _, tasks = open_run(run, Progress.silent()).open(None, "last")
    routes = routes_of(session, stage, tasks)
    samples: list[Sample] = [sample for task in tasks for sample in task.test][:QUESTIONS]
    rows = []
    for index, sample in enumerate(samples):
        (image,), (turn,) = sample.images, sample.turns
        image.open().save(folder / f"{index}.png")
        text = turn.text.removeprefix("<image>")
        # Processors of ready models join image and text themselves.
        text = text.strip() if session.recipe.model.vlm else text
        rows.append({"image": str(folder / f"{index}.png"), "text": text})
    (folder / "asked.json").write_text(json.dumps(rows))
    return session.model.generate(samples, [routes[route][0]] * len(samples)), folder / "asked.json"


@pytest.mark.parametrize(
    ("name", "adapters"), [*((name, "merged") for name in MODELS), ("tiny:qwen2_vl", "peft"), ("assembly", "peft")]
)
def test_the_same_answers_without_mmcl(name: str, adapters: Literal["merged", "peft"], tmp_path: Path) -> None:
    run = train(tmp_path, *MODELS[name])
    done = export(run, out=tmp_path / "out", adapters=adapters, progress=Progress.silent())
    assert [each.route for each in done] == (["colour", "shape"] if "experts" in str(MODELS[name][1]) else ["base"])
    for each in done[-1:]:
        answers, questions = asked(run, each.route, tmp_path)
        assert len(answers) == QUESTIONS
        beside = [str(each.folder / "adapter")] if adapters == "peft" else []
        command = [sys.executable, "-c", LOADER, str(each.folder), str(questions), *beside]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stderr
        result = json.loads(found.stdout)
        assert result["class"] == each.model_class
        assert result["answers"] == answers
        card = (each.folder / "README.md").read_text()
        assert "| after | colour | shape |" in card and "**FM**" in card and "library\\_name" not in card
    if len(done) == 2:
        first, second = ((each.folder / "model.safetensors").read_bytes() for each in done)
        assert first != second


def test_what_cannot_be_exported_is_told_before_anything_is_written(tmp_path: Path) -> None:
    run = train(tmp_path, {"encoder": "tiny", "projector": "mlp"}, ["finetune"])
    with pytest.raises(UserError, match="no place for a Tiny") as error:
        export(run, out=tmp_path / "out", progress=Progress.silent())
    assert "model.encoder" in str(error.value) and "CLIP" in str(error.value)
    with pytest.raises(UserError, match="no route `colou`"):
        export(run, route="colou", progress=Progress.silent())
    with pytest.raises(UserError, match="no finished stage `nine`"):
        export(run, stage="nine", progress=Progress.silent())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="something already"):
        export(run, out=tmp_path / "full", progress=Progress.silent())
    with pytest.raises(UserError, match=r"no recipe\.yaml"):
        export(tmp_path / "nowhere", progress=Progress.silent())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["away.yaml", "full", "run"]
    assert not list(run.glob("exports/*"))


def test_the_command(tmp_path: Path) -> None:
    run = train(tmp_path, {"vlm": "tiny:llava"}, ["finetune"])
    command = [sys.executable, "-m", "mmcl.cli", "export", str(run), "--stage", "colour", "--to", "hf"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert row["route"] == "base" and row["class"] == "LlavaForConditionalGeneration"
    assert (Path(row["folder"]) / "model.safetensors").is_file() and Path(row["folder"]).is_relative_to(run)
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 2 and "something already" in again.stderr and "Traceback" not in again.stderr


def test_text_of_a_stream_does_nothing_in_a_card() -> None:
    hostile = "<script>alert(1)</script> [a](http://b) `x` | y\n# z"
    shown = plain_text(hostile)
    assert "<" not in shown and ">" not in shown and "\n" not in shown
    assert all(shown[place - 1] == "\\" for place, sign in enumerate(shown) if sign in "[]`|#")
