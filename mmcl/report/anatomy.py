"""The anatomy of forgetting on the page: what each task's loss is made of, and the questions behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmcl.report import units
from mmcl.report.bars import stacked
from mmcl.report.charts import Chart, Series, line_chart
from mmcl.report.csvs import csv_link
from mmcl.report.files import expect, need, read_object, texts
from mmcl.report.pictures import Picture, thumbnail

FILE = "anatomy.json"

NAMES: Mapping[str, str] = {
    "routing": "Routing",
    "format": "Answer format",
    "vision": "Vision side",
    "prior": "Language prior",
    "language": "Language side",
    "together": "Both sides together",
    "rest": "Not explained",
}
"""The parts of a loss, in the order in which they are counted."""

ADVICE: Mapping[str, str] = {
    "routing": "The task's own expert still knows it: mend the router.",
    "format": "The model still knows it and says it otherwise: tell it in the prompt what form an answer has, let it "
    "choose among the answers, or replay a few samples for their form.",
    "vision": "What the images become has changed: protect the projector (an expert per task, distillation of its "
    "features) or train it less.",
    "prior": "Answers no longer come from the image: replay samples with images, or protect the language side.",
    "language": "The image is still looked at and read otherwise: protect the adapters (one per task, a penalty), or "
    "replay.",
    "together": "Both sides moved and fit each other: replay, or train only one of them.",
    "rest": "Neither parts nor routes bring it back.",
}
"""What a person can do about each part."""

KINDS = (("own", "own image"), ("blank", "blank"), ("foreign", "another task's"), ("disordered", "tokens in disorder"))
SMALL = (360, 220)


def read_anatomy(home: Path) -> Mapping[str, Any] | None:
    """The document in a variant's folder; None where there is none.

    Raises:
        UserError: naming the file, if it is broken.
    """
    path = home / FILE
    if not path.is_file():
        return None
    document, where = read_object(path), str(path)
    need(document, "stage", str, where)
    for place, entry in enumerate(need(document, "tasks", list, where)):
        about = expect(entry, dict, where, f"tasks.{place}")
        for key in ("task", "learned"):
            need(about, key, str, where)
        for key in ("lost", "sampled", "questions"):
            need(about, key, int, where)
        for key in ("before", "after", "gained", "loss"):
            need(about, key, float, where)
        for part, value in need(about, "parts", dict, where).items():
            expect(value, float, where, f"tasks.{place}.parts.{part}")
        need(about, "examples", list, where)
    grid = need(document, "confusion", dict, where)
    texts(grid, "tasks", where), texts(grid, "columns", where)
    return document


def view(document: Mapping[str, Any] | None, folder: Path) -> dict[str, Any] | None:
    """Everything that the section shows of one variant, ready to print."""
    if document is None:
        return None
    tasks = document["tasks"]
    values = [_values(entry) for entry in tasks]
    definitions = document.get("definitions", {})
    used = [slot for slot in range(len(NAMES)) if any(row[slot] > 0 for row in values)]
    parts = list(NAMES)
    return {
        "stage": document["stage"],
        "bars": stacked("Points lost by cause", [entry["task"] for entry in tasks], list(NAMES.values()), values),
        "legend": [
            (NAMES[parts[slot]], slot, str(definitions.get(parts[slot], "")), ADVICE[parts[slot]]) for slot in used
        ],
        "csv": csv_link(_rows(tasks)),
        "tasks": [_task(entry, folder) for entry in tasks if entry["lost"]],
        "kept": [entry["task"] for entry in tasks if not entry["lost"]],
        "confusion": _confusion(document["confusion"]),
        "notes": {
            name: str(definitions.get(name, ""))
            for name in ("images", "drift", "transplants", "relearning", "confusion")
        },
    }


def summary_rows(document: Mapping[str, Any]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Columns and (task, cells) in percentage points, for a terminal; parts that no task has are left out."""
    tasks = document["tasks"]
    values = [_values(entry) for entry in tasks]
    used = [slot for slot in range(len(NAMES)) if any(row[slot] > 0 for row in values)]
    names = list(NAMES.values())
    rows = [
        (entry["task"], [units.cell(sum(row)), *(units.cell(row[slot]) for slot in used)])
        for entry, row in zip(tasks, values, strict=True)
    ]
    return ["lost", *(names[slot].lower() for slot in used)], rows


def _values(entry: Mapping[str, Any]) -> list[float]:
    known = {**entry["parts"], "rest": entry.get("rest", 0.0)}
    return [float(known.get(part, 0.0)) for part in NAMES]


def _rows(tasks: Sequence[Mapping[str, Any]]) -> list[Sequence[str | float | None]]:
    head = ("task", "before", "after", "gained", "lost", *NAMES)
    return [
        head,
        *(
            (entry["task"], entry["before"], entry["after"], entry["gained"], entry["loss"], *_values(entry))
            for entry in tasks
        ),
    ]


def _task(entry: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    loss = float(entry["loss"])
    values = dict(zip(NAMES, _values(entry), strict=True))
    largest = max(values, key=lambda part: values[part])
    return {
        "name": entry["task"],
        "learned": entry["learned"],
        "lost": entry["lost"],
        "sampled": entry["sampled"],
        "questions": entry["questions"],
        "loss": units.cell(loss),
        "gained": units.cell(entry["gained"]) if entry["gained"] else "",
        "largest": NAMES[largest],
        "share": units.percent(values[largest] / loss if loss else 0.0, 0),
        "advice": ADVICE[largest],
        "images": _images(entry),
        "drift": _drift(entry.get("drift") or {}),
        "transplants": _transplants(entry),
        "relearning": _relearning(entry),
        "examples": _examples(entry["examples"], folder),
    }


def _images(entry: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(kind of image, score when learned, score at the later stage)."""
    known = entry.get("images")
    if not known:
        return []
    before, after = known["before"], known["after"]
    return [(name, units.percent(before.get(kind)), units.percent(after.get(kind))) for kind, name in KINDS]


def _drift(known: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """(what, inputs, CKA, cosine)."""
    names = (("images", "projected images"), ("texts", "texts"))
    return [
        (name, units.exact(known[key]["n"]), _plain(known[key]["cka"]), _plain(known[key]["cosine"]))
        for key, name in names
        if key in known and known[key]["n"]
    ]


def _plain(value: float | None) -> str:
    return units.NONE if value is None else f"{value:.3f}"


def _transplants(entry: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(what was put back, score, points gained)."""
    base = entry["after"]
    return [
        (name, units.percent(score), units.points(score - base))
        for name, score in (entry.get("transplants") or {}).items()
    ]


def _relearning(entry: Mapping[str, Any]) -> Chart | None:
    known = entry.get("relearning")
    if not known:
        return None
    series = [
        Series("the model that forgot it", 0, tuple(known["forgotten"])),
        Series("its parent", 1, tuple(known["parent"])),
    ]
    return line_chart(
        f"Score on {entry['task']} while {known['samples']} samples are learned, %",
        series,
        tuple(str(step) for step in known["steps"]),
        top=1.0,
        show=lambda value: units.percent(value, 0),
        x_title="optimiser steps",
        direct=False,
        width=SMALL[0],
        height=SMALL[1],
    )


def _examples(found: Sequence[Mapping[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """By part: its name, its slot and its questions."""
    groups = []
    for slot, (part, name) in enumerate(NAMES.items()):
        items = [each for each in found if each["part"] == part]
        if items:
            groups.append({"name": name, "slot": slot, "items": [_example(each, folder) for each in items]})
    return groups


def _example(each: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    pictures = [
        Picture(str(image["name"]), thumbnail(folder / "gallery", str(image["digest"]))) for image in each["images"]
    ]
    return {**each, "pictures": pictures}


def _confusion(grid: Mapping[str, Any]) -> dict[str, Any]:
    rows = []
    for task, counts in zip(grid["tasks"], grid["counts"], strict=True):
        total = sum(counts)
        pairs = zip(counts, grid["columns"], strict=True)
        cells = [(count / total if total else None, count, total, name) for count, name in pairs]
        rows.append((task, cells))
    head = ("task asked", *grid["columns"])
    counted = [(task, *counts) for task, counts in zip(grid["tasks"], grid["counts"], strict=True)]
    return {"columns": grid["columns"], "rows": rows, "csv": csv_link([head, *counted])}
