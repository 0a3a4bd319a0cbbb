"""The recipes that come with the project, run from the command line as a newcomer would."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml

from mmcl.experiment import Experiment
from mmcl.fetch import find
from mmcl.recipe.load import load_recipe, recipe_from_dict
from mmcl.report import document

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


def mmcl(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mmcl.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_there_are_recipes() -> None:
    assert {"quickstart", "tiny"} <= {path.stem for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_valid_and_says_what_it_is(path: Path) -> None:
    assert load_recipe(path).name == path.stem
    assert path.read_text().startswith("# ")


def test_the_recipe_of_the_readme_is_valid() -> None:
    lines = (Path(__file__).parents[2] / "README.md").read_text().splitlines()
    start = lines.index("    name: mine")
    end = next(index for index in range(start, len(lines)) if not lines[index].strip())
    recipe = recipe_from_dict(yaml.safe_load(textwrap.dedent("\n".join(lines[start:end]))), Path())
    assert [method.name for method in recipe.methods] == ["replay", "projector_experts"]


NEEDS_DATA = {"coin_llava", "ucit_llava"}
SMALL = [
    "model.encoder={name: tiny, width: 16, tokens: 4, image_size: 32}",
    "model.language.weights=tiny:llama",
    "model.language.dtype=fp32",
    "model.features.store=false",
    "evaluate.sample=4",
    "evaluate.corpus_loss=4",
    "train.epochs=1",
    "train.max_samples=8",
]


@pytest.mark.parametrize("name", sorted({path.stem for path in RECIPES} - NEEDS_DATA - {"tiny", "encoder_comparison"}))
def test_every_recipe_goes_all_the_way_on_tiny_parts(tmp_path: Path, name: str) -> None:
    recipe = load_recipe(RECIPES[0].with_name(f"{name}.yaml"), SMALL)
    first = recipe.variant_names[0]
    experiment = Experiment(recipe, tmp_path / "run")
    experiment.run(only=first)
    variant = document(tmp_path / "run")["variants"][first]
    assert len(variant["stages"]) > 1
    assert all(len(row) == len(variant["tasks"]) for row in variant["matrix"])


@pytest.mark.parametrize("name", sorted(NEEDS_DATA))
def test_recipes_for_data_that_is_not_here_say_what_is_missing(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.yaml").write_text(RECIPES[0].with_name(f"{name}.yaml").read_text())
    done = mmcl("check", f"{name}.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "does not exist" in done.stdout + done.stderr
    (tmp_path / "data" / {"coin_llava": "CoIN", "ucit_llava": "UCIT"}[name]).mkdir(parents=True)
    done = mmcl("check", f"{name}.yaml", "--json", cwd=tmp_path)
    assert done.returncode == 2
    assert len(json.loads(done.stdout)["problems"]) == {"coin_llava": 8, "ucit_llava": 6}[name]


def test_tiny_goes_all_the_way(tmp_path: Path) -> None:
    done = mmcl("run", "tiny", "--json", "stream.train_size=160", "stream.test_size=20", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert list(document["variants"]) == ["finetune", "replay", "experts"]
    for variant in document["variants"].values():
        assert variant["tasks"] == ["colour", "count", "position"]
        assert all(row[: k + 1].count(None) == 0 for k, row in enumerate(variant["matrix"]))
        assert all(cost["seconds"] > 0 and cost["tokens"] > 0 for cost in variant["cost"])
    finetune, replay, experts = (variant["metrics"] for variant in document["variants"].values())
    assert finetune["FM"] > 0.6 > 0.4 > max(replay["FM"], experts["FM"])  # it learns; fine-tuning alone forgets
    folder = tmp_path / "runs" / "tiny"
    assert (folder / "report.html").stat().st_size > 10_000
    assert mmcl("report", folder, cwd=tmp_path).returncode == 0

    scored = mmcl("eval", folder, "--task", "colour", "--stage", "count", "--json", cwd=tmp_path)
    assert scored.returncode == 0, scored.stderr
    cell = json.loads(scored.stdout)
    assert cell["corpus"] == document["variants"]["finetune"]["matrix"][1][0]
    assert Path(tmp_path / cell["predictions"]).exists()

    why = mmcl("anatomy", folder, "--variant", "finetune", "--relearn", "0", "--json", cwd=tmp_path)
    assert why.returncode == 0, why.stderr
    assert [task["task"] for task in json.loads(why.stdout)["finetune"]["tasks"]] == ["colour", "count"]

    picture = next(iter(sorted((folder / "gallery").glob("*.png"))), None)
    image = ["--image", picture] if picture else []
    asked = mmcl("ask", folder, "What colour is this?", *image, "--stage", "all", "--json", cwd=tmp_path)
    assert asked.returncode == 0, asked.stderr
    rows = json.loads(asked.stdout)
    assert [row["stage"] for row in rows] == ["start", "captions", "colour", "count", "position"]
    assert all(set(row) == {"stage", "answer", "route"} for row in rows)


ENCODER = '''
import torch
from torch import nn
from mmcl.protocols import EncoderInfo


def pixels(image):
    data = torch.frombuffer(bytearray(image.resize((8, 8)).tobytes()), dtype=torch.uint8)
    return data.reshape(8, 8, 3).permute(2, 0, 1).float() / 255


class Mine(nn.Module):
    """Sixteen patches."""

    def __init__(self, *, width: int = 12, {arguments}):
        super().__init__()
        self.info = EncoderInfo(tokens={tokens}, width={width}, image_size=8, source="mine")
        self.patch = nn.Conv2d(3, width, 2, 2)

    def transform(self):
        return pixels

    def forward(self, pixels):
        return self.patch(pixels).flatten(2).transpose(1, 2){after}
'''


def own_encoder(folder: Path, **parts: str) -> Path:
    """A recipe with an encoder in a file beside it."""
    filled = {"tokens": "16", "width": "width", "arguments": "depth: int = 1", "after": "", **parts}
    (folder / "mine.py").write_text(ENCODER.format(**filled))
    tiny = yaml.safe_load(next(path for path in RECIPES if path.stem == "tiny").read_text())
    tiny["model"]["encoder"] = {"name": "./mine.py:Mine", "width": 10}
    tiny["stream"] = {"name": "shapes", "tasks": ["colour"], "train_size": 16, "test_size": 4}
    tiny.pop("stages")
    tiny["variants"] = {}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(tiny))
    return path


def test_an_encoder_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    path = own_encoder(tmp_path / "elsewhere")
    done = mmcl("run", path, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["variants"]["default"]["matrix"][0][0] is not None


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        ({"tokens": "9"}, r"9"),
        ({"width": "width + 1"}, r"11"),
        ({"after": " * float('nan')"}, r"(?i)nan|finite"),
    ],
    ids=["tokens", "width", "nan"],
)
def test_an_encoder_that_breaks_its_promise(tmp_path: Path, broken: dict[str, str], promise: str) -> None:
    done = mmcl("run", own_encoder(tmp_path, **broken), cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "Mine" in done.stderr
    assert "Traceback" not in done.stderr
    import re

    assert re.search(promise, done.stderr)


@pytest.mark.weights
@pytest.mark.slow
@pytest.mark.skipif(find("smollm2-135m-instruct") is None, reason="run `mmcl fetch smollm2-135m-instruct` first")
def test_quickstart_in_short(tmp_path: Path) -> None:
    sizes = ["stream.train_size=16", "stream.test_size=8", "stream.caption_size=16"]
    done = mmcl("run", "quickstart", "--json", *sizes, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert list(json.loads(done.stdout)["variants"]) == ["finetune", "replay_experts"]


def test_check_tells_what_the_data_are(tmp_path: Path) -> None:
    done = mmcl("check", "tiny", "stream.train_size=48", "stream.test_size=16", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert "finetune, replay, experts" in done.stdout  # the same data, told once
    assert [line[:4] for line in lines if line[:1] == ["colour"]] == [["colour", "instruct", "exact", "48"]]
    assert not any("{" in word for line in lines for word in line)
