"""A run folder as `mmcl run` leaves it: two variants, three tasks, an align stage, routes, forgotten answers."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

HOSTILE = "<script>alert(\"x\")</script><img src=x onerror='alert(1)'> & [bold]\x1b[31m"
COLOURS = {"red": "#d64545", "blue": "#3b6fd1", "green": "#3d9a50", "yellow": "#e3b934"}
SHAPES = ("circle", "square", "triangle")
SCORES = {  # [variant][stage][task]: the share of right answers
    "finetune": ((0.95, None, None), (0.1, 0.9, None), (0.0, 0.25, 0.85)),
    "experts": ((0.95, None, None), (0.9, 0.85, None), (0.85, 0.8, 0.8)),
}
QUESTIONS = 20


@dataclass
class FakeRun:
    """The folder and what stands in it."""

    folder: Path
    tasks: tuple[str, ...]
    hostile: str = ""
    matrix: dict[str, list[list[float | None]]] = field(default_factory=dict)

    def stage(self, variant: str, label: str) -> Path:
        """The folder of a stage."""
        run = json.loads((self.folder / "run.json").read_text())
        (found,) = [entry for entry in run["variants"][variant]["stages"] if entry["label"] == label]
        return self.folder / str(found["folder"])


def dump(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


@functools.cache
def drawing(shape: str, colour: str, seed: int) -> bytes:
    rng = random.Random(seed)
    image = Image.new("RGB", (64, 64), "#e9e6df")
    x, y, r = rng.randint(20, 44), rng.randint(20, 44), rng.randint(9, 16)
    draw, box, fill = ImageDraw.Draw(image), (x - r, y - r, x + r, y + r), COLOURS[colour]
    if shape == "circle":
        draw.ellipse(box, fill=fill)
    elif shape == "square":
        draw.rectangle(box, fill=fill)
    else:
        draw.polygon([(x, y - r), (x + r, y + r), (x - r, y + r)], fill=fill)
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def picture(folder: Path, shape: str, colour: str, seed: int) -> dict[str, str]:
    png = drawing(shape, colour, seed)
    digest = hashlib.sha256(png).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{digest}.png").write_bytes(png)
    return {"name": f"test/images/{seed:04d}.png", "digest": digest}


def rows(fake: FakeRun, column: int, share: float, *, last: int, experts: bool) -> list[dict[str, Any]]:
    """A predictions file: the first `share` of the questions is right, the rest has an answer of the last task."""
    result = []
    for index in range(QUESTIONS):
        rng = random.Random(f"{column}-{index}")
        shape, colour = rng.choice(SHAPES), rng.choice(list(COLOURS))
        prompt, right = (
            (f"What shape is in the image?{fake.hostile}", shape),
            ("What color is the shape?", colour),
            (f"Is there a {shape} in the image?\nA. yes\nB. no", "yes"),
        )[column]
        new = (shape, colour, ("yes", "no", "", f"no {fake.hostile}")[index % 4])[last]
        score = float(index < round(share * QUESTIONS))
        images = [picture(fake.folder / "gallery", shape, colour, 100 * column + index)]
        if index == 18:
            images[0]["digest"] = "0" * 64  # no thumbnail was kept of this one
        route = "base"
        if experts:
            route = fake.tasks[column] if index % 10 else "base"
        metadata = {"score": score, "answers": [right], "route": route, "group": shape, "task": fake.tasks[column]}
        result.append(
            {
                "question_id": f"t{column}-{index}",
                "prompt": f"<image>\n{prompt}",
                "text": right if score else (new if new != right else f"not {right}"),
                "answer_id": f"a{index}",
                "model_id": "mmcl",
                "metadata": metadata | {"images": images if index != 2 else []},
            }
        )
    return result


def anatomy(fake: FakeRun) -> dict[str, Any]:
    """Three tasks of which two lost something, for every cause."""
    causes = ("routing", "format", "vision", "prior", "language", "together", "rest")
    shares = {"shape": (0.1, 0.2, 0.3, 0.05, 0.1, 0.1, 0.1), "color": (0.0, 0.0, 0.4, 0.25, 0.0, 0.0, 0.0)}
    image = picture(fake.folder / "gallery", "circle", "red", 0)
    tasks = []
    for place, task in enumerate(fake.tasks):
        parts = dict(zip(causes, shares.get(task, (0.0,) * 7), strict=True))
        loss = sum(parts.values())
        entry = {
            "task": task,
            "learned": f"{place + 1:02d}-{task}",
            "questions": 200,
            "sampled": 100,
            "lost": round(loss * 100),
            "before": loss,
            "after": 0.0,
            "gained": 0.0,
            "loss": loss,
            "parts": {part: value for part, value in parts.items() if part != "rest"},
            "rest": parts["rest"],
            "examples": [
                {
                    "part": part,
                    "id": "q",
                    "question": f"Which form is it?{fake.hostile}",
                    "references": ["circle"],
                    "images": [image],
                    "before": "circle",
                    "after": f"now {part} {fake.hostile}",
                    "repaired": None if part == "rest" else "circle again",
                }
                for part, value in parts.items()
                if value
            ],
        }
        if loss:
            kinds = ("own", "blank", "foreign", "disordered")
            entry |= {
                "images": {
                    "before": dict(zip(kinds, (0.9, 0.2, 0.1, 0.8), strict=True)),
                    "after": dict(zip(kinds, (0.0, 0.0, 0.0, 0.0), strict=True)),
                },
                "drift": {
                    "images": {"n": 90, "cka": 0.453, "cosine": 0.639},
                    "texts": {"n": 3, "cka": None, "cosine": 0.5},
                },
                "transplants": {"own route": 0.1, "projector": 0.3, "language.lora": 0.25},
                "relearning": {"samples": 32, "steps": [0, 1, 2], "parent": [0, 0.1, 0.4], "forgotten": [0, 0.3, 0.8]},
            }
        tasks.append(entry)
    counts = [[3, 0, 17, 0], [0, 0, 19, 1], [0, 0, 20, 0]]
    return {
        "stage": "03-yes-no",
        "options": {"sample": 100},
        "tasks": tasks,
        "confusion": {"tasks": [*fake.tasks], "columns": [*fake.tasks, "no task's"], "counts": counts},
        "definitions": {"vision": f"returns with the projector {fake.hostile}", "drift": "linear CKA"},
    }


def build(folder: Path, *, hostile: str = "", alone: bool = False, dissected: bool = False) -> FakeRun:
    fake = FakeRun(folder, ("shape", "color", f"yes-no {hostile}".strip()), hostile)
    variants = {}
    for number, (variant, matrix) in enumerate(SCORES.items()):
        if alone and number:
            break
        variants[variant if not alone else "default"] = _variant(fake, variant, matrix, alone=alone)
    dump(
        folder / "run.json",
        {"name": "easy-vqa", "created": "2025-03-01T10:20:30", "mmcl": "0.1.0", "variants": variants},
    )
    dump(
        folder / "environment.json",
        {"mmcl": "0.1.0", "python": "3.11.2", "torch": "2.14.1", "platform": "Linux", "cpu": "Xeon", "cores": 2},
    )
    recipe = {
        "name": "easy-vqa",
        "seed": 3,
        "model": {
            "encoder": {"name": "lite0"},
            "projector": {"name": "mlp", "depth": 2},
            "language": {"weights": "smollm2-135m-instruct", "lora": {"rank": 16, "alpha": None}, "dtype": "fp32"},
            "train": ["projector", "language.lora"],
        },
        "stream": {"name": "easy_vqa", "order": [*fake.tasks]},
        "variants": {} if alone else {"finetune": {}, "experts": {"methods": ["replay"], "train": {"epochs": 2}}},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    if not alone:
        dump(folder / "summary.json", summary(hostile))
    if dissected:
        dump((folder if alone else folder / "variants" / "finetune") / "anatomy.json", anatomy(fake))
    return fake


def summary(hostile: str) -> dict[str, Any]:
    """Three seeds of one variant, one run of the other, whose forgetting has no interval."""

    def value(middle: float, half: float | None, over: str, **more: float) -> dict[str, Any]:
        ends = None if half is None else [middle - half, middle + half]
        return {"value": middle, "interval": ends, "runs": 3, "over": over, **more}

    over = f"95 % interval over runs {hostile}".strip()
    seeds = ["finetune"]
    finetune = {"ACC": value(0.367, 0.041, over), "BWT": value(-0.8, 0.1, over), "FM": value(0.8, None, "no interval")}
    return {
        "groups": {
            "finetune": {"runs": seeds, "seeds": [0, 1, 2], "orders": [], "metrics": finetune},
            "experts": {"runs": ["experts"], "seeds": [], "orders": [], "metrics": {"ACC": value(0.817, 0.02, over)}},
        },
        "differences": [
            {"one": "finetune", "other": "experts", "metric": "ACC"} | value(-0.45, 0.05, over, p=0.0001, p_holm=0.0002)
        ],
        "definitions": {},
    }


def _variant(
    fake: FakeRun, variant: str, matrix: tuple[tuple[float | None, ...], ...], *, alone: bool
) -> dict[str, Any]:
    experts = variant == "experts"
    stages = [{"name": "align", "label": "00-align", "kind": "align", "tasks": ["captions"], "scored": False}]
    for index, name in enumerate(("shape", "color", "yes-no")):
        label = f"{index + 1:02d}-{name}"
        stages.append({"name": name, "label": label, "kind": "instruct", "tasks": [fake.tasks[index]], "scored": True})
    for number, stage in enumerate(stages):
        stage["folder"] = f"stages/{stage['label']}-{'shared00' if not number else variant[:4]}"
        folder = fake.folder / str(stage["folder"])
        cost = {
            "seconds": 40.0 + 190.5 * number + (60 if experts else 0),
            "tokens": 180_000 + 40_000 * number,
            "samples": 2_000,
            "steps": 125,
            "image_tokens": 16.0,
            "encoder_parameters": 3_374_000,
            "trainable_parameters": 4_884_480,
            "stored_parameters": 139_000_000 + (600_000 * number if experts else 0),
            "checkpoint_bytes": 19_600_000 + (2_400_000 * number if experts else 0),
            "memory_bytes": 250_000 * number if experts else 0,
            "expert_bytes": 2_400_000 * number if experts else 0,
            "peak_rss_bytes": 2_900_000_000 + 10_000_000 * number,
            "flops": None,
        }
        dump(folder / "manifest.json", stage | {"hash": "1a2b3c4d", "parent": None, "cost": cost, "overrides": {}})
        for column, share in enumerate(matrix[number - 1] if number else ()):
            if share is not None:
                task, path = fake.tasks[column], folder / "predictions" / f"{column}-task.jsonl"
                answers = rows(fake, column, share, last=number - 1, experts=experts)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("".join(json.dumps(row) + "\n" for row in answers), encoding="utf-8")
                about = {"task": task, "metric": "exact", "mode": "strict", "n": QUESTIONS, "follows": "easy-VQA"}
                dump(path.with_suffix(".json"), about | {"definition": "share of answers equal to the reference"})
        (folder / "DONE").touch()
    grid = [list(row) for row in matrix]
    name = "default" if alone else variant
    fake.matrix[name] = grid
    home = fake.folder if alone else fake.folder / "variants" / variant
    labels = [stage["label"] for stage in stages if stage["scored"]]
    dump(home / "matrix.json", {"tasks": [*fake.tasks], "stages": labels, "matrix": grid, "row0": [0.05, 0.15, 0.4]})
    last, diagonal = matrix[-1], [row[index] or 0.0 for index, row in enumerate(matrix)]
    falls = [diagonal[index] - (last[index] or 0.0) for index in range(2)]
    numbers = {
        "ACC": sum(cell or 0.0 for cell in last) / 3,
        "MFT": sum(diagonal) / 3,
        "FM": sum(falls) / 2,
        "BWT": -sum(falls) / 2,
        "FWT": None,
        "MTIL_last": sum(cell or 0.0 for cell in last) / 3,
        "forgetting_per_task": dict(zip(fake.tasks, falls, strict=False)),
        "OP": [sum(cell or 0.0 for cell in row) / (index + 1) for index, row in enumerate(matrix)],
    }
    definitions = {
        "ACC": "mean of the last row: (1/T) sum_j R[T,j]",
        "MFT": "mean of the diagonal: (1/T) sum_i R[i,i]",
        "FM": "from learned: 1/(T-1) sum_j<T (max over l in j..T-1 of R[l,j], minus R[T,j])",
        "BWT": "denominator T-1: 1/(T-1) sum_i<T (R[T,i] - R[i,i])",
        "MTIL_last": "= ACC (ZSCL)",
        "forgetting_per_task": "peak minus last score of each task",
        "FWT": "1/(T-1) sum_i>=2 (R[i-1,i] - b_i)",
        "OP": "OP_t = (1/t) sum_j<=t R[t,j], one value per stage",
    }
    undefined = {"FWT": "tasks were not scored before they were learned"}
    dump(
        home / "metrics.json",
        {"metrics": numbers, "definitions": definitions, "undefined": undefined, "warnings": ["made up"]},
    )
    method = {"name": variant if not experts else "projector_experts", "options": {}, "needs_task_id": experts}
    methods = [method] if not experts else [{"name": "replay", "options": {"budget": "1MB"}}, method]
    row0 = "stages/00-align-shared00"
    return {"tasks": [*fake.tasks], "stages": stages, "methods": methods, "row0": row0}


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., FakeRun]:
    """Builds a fake run: `make_run(hostile=..., alone=..., dissected=...)`."""

    def make(**options: Any) -> FakeRun:
        return build(tmp_path / "easy-vqa", **options)

    return make


@pytest.fixture
def fake_run(make_run: Callable[..., FakeRun]) -> FakeRun:
    """Two variants whose names, questions and answers try to break out of the page."""
    return make_run(hostile=HOSTILE, dissected=True)
