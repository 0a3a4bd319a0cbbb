"""Ready models: loading, prompts, swapping parts, and runs from a recipe."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmcl.api import run
from mmcl.cli_catalogue import describe
from mmcl.data.types import Sample, Turn
from mmcl.errors import UserError
from mmcl.model import views
from mmcl.model.build import build_model
from mmcl.model.vlm.load import load_config, load_vlm
from mmcl.model.vlm.parts import deep_positions
from mmcl.model.vlm.prompt import VLMPrompt
from mmcl.model.vlm.tiny import TINY_VLMS, tiny_vlm
from mmcl.recipe.load import recipe_from_dict
from mmcl.recipe.spec import FeaturesSpec, LanguageSpec, LoRASpec, ModelSpec, PluginSpec, PromptSpec
from mmcl.testing import TinyImage, tiny_tasks

LORA = LanguageSpec(lora=LoRASpec(rank=2))
STREAM = {"name": "shapes", "tasks": ["colour", "position"], "train_size": 24, "test_size": 8, "captions": 0}
TRAIN = {"batch_size": 8, "learning_rate": 1e-2}


def save(family: str, folder: Path) -> Path:
    model, processor = tiny_vlm(family)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def answers(model: Any) -> list[str]:
    return list(model.generate(tiny_tasks()[0].test))


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "gemma3", "smolvlm", "pixtral"])
def test_a_folder_is_the_model_that_was_saved(family: str, tmp_path: Path) -> None:
    save(family, tmp_path / "vlm")
    loaded = build_model(ModelSpec(vlm="./vlm", language=LORA), folder=tmp_path, seed=0)
    made = build_model(ModelSpec(vlm=f"tiny:{family}", language=LORA), folder=tmp_path, seed=0)
    assert answers(loaded) == answers(made)
    assert [part["parameters"] for part in describe("vlm:./vlm", tmp_path).document()["parts"]] == [
        part["parameters"] for part in describe(f"vlm:tiny:{family}", tmp_path).document()["parts"]
    ]


def test_bf16_is_the_language_models_alone(tmp_path: Path) -> None:
    save("llava", tmp_path)
    spec = ModelSpec(vlm=".", language=LanguageSpec(lora=LoRASpec(rank=2), dtype="bf16"))
    model = build_model(spec, folder=tmp_path, seed=0)
    kinds = {name.partition(".")[0]: p.dtype for name, p in model.named_parameters() if ".lora_" not in name}
    assert kinds == {"encoder": torch.float32, "projector": torch.float32, "language": torch.bfloat16}
    assert {p.dtype for p in model.trainable().values()} == {torch.float32}
    assert len(answers(model)) == 4


def broken(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_mistakes(tmp_path: Path) -> None:
    def problem(weights: str) -> str:
        with pytest.raises(UserError) as caught:
            load_vlm(weights, folder=tmp_path, dtype="fp32", seed=0)
        assert caught.value.problems[0].where == "model.vlm"
        return str(caught.value)

    assert "did you mean `tiny:llava`" in problem("tiny:lava")
    assert "nothing does not exist" in problem("./nothing")
    (tmp_path / "empty").mkdir()
    assert "no config.json" in problem("./empty")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    assert "`llama`, which can't be taken apart" in problem("./text") and "llava_onevision" in problem("./text")
    custom = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.MineConfig"}}
    (tmp_path / "custom").mkdir()
    (tmp_path / "custom" / "config.json").write_text(json.dumps(custom), encoding="utf-8")
    (tmp_path / "custom" / "mine.py").write_text("raise SystemExit('ran')", encoding="utf-8")
    assert "code of its own" in problem("./custom")
    folder = save("llava", tmp_path / "lacking")

    def lack(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["multi_modal_projector.linear_1.weight"]
        tensors["multi_modal_projector.linear_2.weight"] = torch.zeros(3, 3)

    broken(folder, lack)
    assert "lacks 1 of the model's" in problem("./lacking") and "linear_1.weight" in problem("./lacking")
    assert "has 1 of another shape" in problem("./lacking") and "linear_2.weight" in problem("./lacking")
    for file in folder.glob("*processor*"):
        file.unlink()
    assert "cannot load `./lacking`" in problem("./lacking")
    save("llava", tmp_path / "pickled")
    torch.save({}, tmp_path / "pickled" / "pytorch_model.bin")
    (tmp_path / "pickled" / "model.safetensors").unlink()
    assert "cannot load `./pickled`" in problem("./pickled")


def test_a_hub_id_without_network() -> None:
    code = (
        "import pathlib; from mmcl.errors import UserError\n"
        "from mmcl.model.vlm.load import load_vlm\n"
        "try: load_vlm('nobody/nothing', folder=pathlib.Path(), dtype='fp32', seed=0)\n"
        "except UserError as error: print(error)\n"
    )
    environment = {"HF_HUB_OFFLINE": "1", "PATH": "", "HOME": "/nowhere"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert "cannot load `nobody/nothing`" in done.stdout and "tiny:llava" in done.stdout


def test_recipes() -> None:
    def problems(**model: Any) -> str:
        with pytest.raises(UserError) as caught:
            recipe_from_dict({"name": "x", "stream": STREAM, "model": model}, Path())
        return str(caught.value)

    assert "model.projector" in problems(encoder="tiny", language={"weights": "tiny:llama"}, train=["projector"])
    assert "model.language.weights" in problems(encoder="tiny", projector="mlp", language={"lora": {}})
    assert "its own language model" in problems(vlm="tiny:llava", language={"weights": "tiny:llama", "lora": {}})
    assert "no adapters" in problems(vlm="tiny:llava")
    recipe = recipe_from_dict(
        {"name": "x", "stream": STREAM, "model": {"vlm": "tiny:llava", "train": ["projector"]}}, Path()
    )
    assert recipe.model.vlm == "tiny:llava" and recipe.model.encoder is None
    assert recipe_from_dict(recipe.to_dict(), Path()).model == recipe.model


@pytest.mark.parametrize("family", TINY_VLMS)
def test_a_stream_of_two_tasks(family: str, tmp_path: Path) -> None:
    result = run(
        model={"vlm": f"tiny:{family}", "language": {"lora": {"rank": 2}}},
        stream=STREAM,
        train=TRAIN,
        variants={
            "finetune": {"methods": ["finetune"]},
            "replay": {"methods": [{"name": "replay", "budget": "1MB", "store": "features"}]},
            "experts": {"methods": [{"name": "projector_experts", "router": "prototype"}]},
        },
        out=tmp_path / "run",
        progress=False,
    )
    for variant in ("finetune", "replay", "experts"):
        values = result.matrix(variant).values
        assert len(values) == 2 and all(0 <= cell <= 1 for row in values for cell in row if cell is not None)


def test_it_learns(tmp_path: Path) -> None:
    """From random weights, with everything but the tower: colours of shapes."""
    result = run(
        model={"vlm": "tiny:qwen2_vl", "language": {"lora": {"rank": 2}}, "train": ["projector", "language"]},
        stream={**STREAM, "tasks": ["colour"], "train_size": 240, "test_size": 40},
        train={"batch_size": 16, "learning_rate": 3e-3, "epochs": 20},
        evaluate={"max_new_tokens": 10},
        out=tmp_path / "run",
        progress=False,
    )
    ((score,),) = result.matrix().values
    assert score is not None and score > 0.6  # one of five colours: 0.2


@pytest.mark.parametrize("family", ["llava", "smolvlm", "gemma3", "paligemma", "qwen2_vl", "qwen3_vl"])
def test_another_encoder(family: str) -> None:
    spec = ModelSpec(vlm=f"tiny:{family}", encoder=PluginSpec("tiny"), language=LORA)
    model = build_model(spec, folder=Path(), seed=0)
    assert type(model.encoder).__name__ == "Tiny" and type(model.projector).__name__ == "MLP"
    samples = tiny_tasks()[0].train
    [item, *_] = model.items(samples, None)
    assert sum(token < 0 for token in item.ids) == model.encoder.info.tokens
    padded = build_model(
        ModelSpec(vlm=f"tiny:{family}", encoder=PluginSpec("tiny"), language=LORA, packing="padded"),
        folder=Path(),
        seed=0,
    )
    assert answers(model) == answers(padded)


def test_another_projector() -> None:
    spec = ModelSpec(vlm="tiny:llava", projector=PluginSpec("pool", {"grid": 2}), language=LORA)
    model = build_model(spec, folder=Path(), seed=0)
    assert model.encoder.info.source == "vlm:tiny:llava" and model.visual_tokens == 4
    assert len(answers(model)) == 4


@pytest.mark.parametrize("family", ["pixtral", "qwen3_vl", "llava_next"])
def test_features_come_back_from_the_store(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMCL_CACHE", str(tmp_path))
    monkeypatch.setattr(views, "CELLS", 5)  # of 64 and 16 cells: the last entry is not full
    images = [sample.images[0] for sample in tiny_tasks()[0].train]
    stored = ModelSpec(vlm=f"tiny:{family}", language=LORA, features=FeaturesSpec())
    cold, warm = (build_model(stored, folder=Path(), seed=0) for _ in range(2))
    alone = build_model(
        ModelSpec(vlm=f"tiny:{family}", language=LORA, features=FeaturesSpec(store=False)), folder=Path(), seed=0
    )
    first = cold.image_features(images)
    assert not list(warm.features.missing(images, warm.device))
    for one, again, exact in zip(first, warm.image_features(images), alone.image_features(images), strict=True):
        assert torch.equal(one, again) and torch.equal(one, exact)
        assert len(one) == warm.views(images[0]) * warm.encoder_info.tokens


def prompt(family: str, style: str = "auto", system: str = "") -> VLMPrompt:
    spec = ModelSpec(vlm=f"tiny:{family}", language=LORA, prompt=PromptSpec(style=style, system=system))  # type: ignore[arg-type]
    found = build_model(spec, folder=Path(), seed=0).prompt
    assert isinstance(found, VLMPrompt)
    return found


def test_prompts_have_the_models_words() -> None:
    model = build_model(ModelSpec(vlm="tiny:smolvlm", language=LORA), folder=Path(), seed=0)
    turns = (Turn("user", "<image>\nWhat?"), Turn("assistant", "this"))
    sample = Sample(id="1", task="t", turns=turns, images=(TinyImage("red", "top left"),))
    encoded = model.encode(sample, [False, True])
    text = model.tokenizer.decode([max(token, model.prompt.image_id) if token < 0 else token for token in encoded.ids])
    assert text.startswith("<|user|><fake_token_around_image>") and text.endswith("What?<|assistant|>this<|eos|>")
    supervised = [token for token, target in zip(encoded.ids, encoded.supervised, strict=True) if target]
    assert model.tokenizer.decode(supervised) == "this<|eos|>"


def test_an_answer_ends_even_where_the_template_has_no_end() -> None:
    found = prompt("llava")
    found.processor.chat_template = found.processor.chat_template.replace("{{ '<|eos|>' }}", "{{ ' ' }}")
    sample = Sample(id="1", task="t", turns=(Turn("user", "Q"), Turn("assistant", "yes")))
    encoded = found.encode(sample, [False, True])
    assert encoded.ids[-1] == found.eos and encoded.supervised[-1]


def test_text_that_looks_like_an_image_token_is_refused() -> None:
    sample = Sample(id="1", task="t", turns=(Turn("user", "see <|image_pad|> here"),))
    with pytest.raises(UserError, match="takes for an image"):
        prompt("qwen2_vl").encode(sample, [False])


def test_positions_in_time_height_and_width() -> None:
    # two words, an image of 2 x 3, a word: the image starts at 2, and the word follows its longer side
    assert deep_positions([5, 6, -1, -1, -1, -1, -1, -1, 7], [(2, 3)]) == (
        (0, 0, 0),
        (1, 1, 1),
        (2, 2, 2),
        (2, 2, 3),
        (2, 2, 4),
        (2, 3, 2),
        (2, 3, 3),
        (2, 3, 4),
        (5, 5, 5),
    )


def test_describing_reads_no_weights(tmp_path: Path) -> None:
    folder = save("internvl", tmp_path / "vlm")
    (folder / "model.safetensors").unlink()
    about = describe("vlm:./vlm", tmp_path).document()
    assert about["class"] == "InternVLForConditionalGeneration" and about["rows"] == "packed"
    assert [part["part"] for part in about["parts"]] == ["encoder", "projector", "language", "language"]
    assert about["image_tokens"] == {"336 x 336": 4 * 5, "640 x 480": 4 * 5, "1024 x 768": 4 * 5}
    assert load_config("./vlm", tmp_path).config.model_type == "internvl"
