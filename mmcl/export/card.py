"""The model card of an export, made from the run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from mmcl.recipe.spec import Recipe
from mmcl.report import document
from mmcl.stages import Stage

LIMITS = (
    "The licences of the base models and of the data hold on; mmcl does not know them. Scores were measured by mmcl in "
    "the number format of the run; merged adapters are rounded once to that of the weights."
)
_TELLING = re.compile(r"([\\`*_{}\[\]<>()#+!|~$&-])")


def model_card(folder: Path, variant: str, stage: Stage, recipe: Recipe, export: dict[str, Any]) -> str:
    """Markdown with the hub's YAML header.

    Args:
        folder: of the run.
        variant: its name.
        stage: that was exported.
        recipe: of the variant.
        export: `class`, `route`, `tasks` of the route.
    """
    found = document(folder)["variants"]
    run = found.get(variant) or next(iter(found.values()))
    spec = recipe.model
    bases = [spec.vlm] if spec.vlm else [spec.language.weights]
    hub = [base for base in bases if base and re.fullmatch(r"[\w.-]+/[\w.-]+", base)]
    header = {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["continual-learning", "mmcl"],
        **({"base_model": hub[0]} if hub else {}),
    }
    parts = [
        f"---\n{yaml.safe_dump(header, sort_keys=True).strip()}\n---",
        f"# {plain_text(recipe.name)}: {plain_text(variant)} after {plain_text(stage.name)}",
        "A vision-language model that learned its tasks one after another, exported from a run of mmcl.",
        _how_to_load(export["class"], "" if spec.vlm else "\\n", export["adapter"]),
        "## What it is made of\n\n" + _list(_parts(recipe, stage, export)),
        "## What it learned, and what it forgot\n\n" + _matrix(run),
        _metrics(run),
        "## Before you use it\n\n" + LIMITS,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def plain_text(text: str) -> str:
    """Text of a recipe or data set, with nothing in it that Markdown or HTML would act on."""
    return _TELLING.sub(r"\\\1", " ".join(str(text).split())).replace("\\<", "&lt;").replace("\\>", "&gt;")


def _how_to_load(name: str, after_image: str, adapter: bool) -> str:
    lines = [
        "```python",
        *(["from peft import PeftModel"] if adapter else []),
        "from transformers import AutoModelForImageTextToText, AutoProcessor",
        "",
        f'model = AutoModelForImageTextToText.from_pretrained(".")  # {name}',
        *(['model = PeftModel.from_pretrained(model, "adapter")'] if adapter else []),
        'processor = AutoProcessor.from_pretrained(".")',
        f'question = {{"type": "text", "text": "{after_image}What is in the picture?"}}',
        'messages = [{"role": "user", "content": [{"type": "image", "url": "picture.png"}, question]}]',
        "inputs = processor.apply_chat_template(",
        '    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"',
        ")",
        'answer = model.generate(**inputs, do_sample=False)[0, inputs["input_ids"].shape[1] :]',
        "print(processor.decode(answer, skip_special_tokens=True))",
        "```",
    ]
    return "\n".join(lines)


def _parts(recipe: Recipe, stage: Stage, export: dict[str, Any]) -> list[tuple[str, str]]:
    spec = recipe.model
    route = f"{export['route']} (of the tasks {', '.join(export['tasks'])})" if export["tasks"] else export["route"]
    rows: list[tuple[str, str | None]] = [
        ("ready model", spec.vlm),
        ("encoder", _plugin(spec.encoder)),
        ("projector", _plugin(spec.projector)),
        ("language model", None if spec.vlm else spec.language.weights),
        ("methods", ", ".join(method.name for method in stage.methods) or "none"),
        ("stream", recipe.stream.name),
        ("route", route),
    ]
    return [(name, str(value)) for name, value in rows if value]


def _plugin(spec: Any) -> str | None:
    if spec is None:
        return None
    options = ", ".join(f"{key} {value}" for key, value in spec.options.items())
    return f"{spec.name} ({options})" if options else str(spec.name)


def _list(rows: Sequence[tuple[str, str]]) -> str:
    return "\n".join(f"- {name}: {plain_text(value)}" for name, value in rows)


def _matrix(run: dict[str, Any]) -> str:
    tasks = [plain_text(task) for task in run["tasks"]]
    lines = [f"| after | {' | '.join(tasks)} |", f"|---|{'---|' * len(tasks)}"]
    for name, row in zip(run["stages"], run["matrix"], strict=True):
        cells = " | ".join("" if score is None else f"{score:.3f}" for score in row)
        lines.append(f"| {plain_text(name)} | {cells} |")
    return "Scores from 0 to 1 on the test questions of each task (columns) after each stage (rows).\n\n" + "\n".join(
        lines
    )


def _metrics(run: dict[str, Any]) -> str:
    named = [(key, value) for key, value in run["metrics"].items() if isinstance(value, int | float)]
    return _list([(f"**{key}**", f"{value:.3f}: {run['definitions'].get(key, '')}") for key, value in named])
