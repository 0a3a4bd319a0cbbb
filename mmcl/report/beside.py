"""What was measured beside the matrix: probes, losses on corpora, edits, knowledge that changes, learning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmcl.report import units
from mmcl.report.charts import Chart, Series, line_chart
from mmcl.report.csvs import csv_link
from mmcl.report.files import need, read_object


@dataclass(frozen=True, slots=True)
class Beside:
    """The documents of a variant; None where the run has none."""

    probes: Mapping[str, Any] | None = None
    losses: Mapping[str, Any] | None = None
    edits: Mapping[str, Any] | None = None
    knowledge: Mapping[str, Any] | None = None
    curves: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    """Points of each stage's learning curve, by the stage's label."""

    def to_dict(self) -> dict[str, Any]:
        """For the document of a run."""
        return {
            "probes": self.probes,
            "losses": self.losses,
            "edits": None if self.edits is None else self.edits["edits"],
            "knowledge": self.knowledge,
            "curves": dict(self.curves),
        }


def read_beside(home: Path, curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> Beside:
    """The documents in a variant's folder.

    Raises:
        UserError: naming a file that is broken.
    """
    needed = {
        "probes": ("probes", "stages", "scores", "delta"),
        "losses": ("corpora", "stages", "loss"),
        "edits": ("edits",),
        "knowledge": ("periods",),
    }
    found: dict[str, Mapping[str, Any]] = {}
    for name, keys in needed.items():
        path = home / f"{name}.json"
        if path.is_file():
            found[name] = read_object(path)
            for key in keys:
                need(dict(found[name]), key, list, str(path))
    return Beside(**found, curves={label: points for label, points in curves.items() if points})


@dataclass(frozen=True, slots=True)
class Grid:
    """A table of the page.

    Attributes:
        title: its heading.
        lead: what it shows.
        columns: headings, the first of the rows' names.
        rows: texts, the row's name first.
        note: definition and source.
    """

    title: str
    lead: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str

    @property
    def csv(self) -> str:
        """The table as a file."""
        return csv_link([self.columns, *self.rows])


def grids(beside: Beside) -> list[Grid]:
    """The tables of a variant; empty where nothing was measured beside the matrix."""
    found = []
    if beside.probes is not None:
        found.append(_probes(beside.probes))
    if beside.losses is not None:
        found.append(_losses(beside.losses))
    if beside.edits is not None:
        found.append(_edits(beside.edits))
    if beside.knowledge is not None:
        found.append(_knowledge(beside.knowledge))
    return found


def curve_chart(name: str, beside: Beside, tasks: Sequence[str]) -> Chart | None:
    """Learning curves of all stages in one chart: score against the share of the stage that is done."""
    parts = max((len(points) for points in beside.curves.values()), default=0)
    if parts < 2:
        return None
    series = [
        Series(task, tasks.index(task), tuple(point["scores"].get(task) for point in points), 0)
        for points in beside.curves.values()
        for task in points[0]["scores"]
        if task in tasks
    ]
    stops = tuple(f"{100 * part / (parts - 1):.0f} %" for part in range(parts))
    title, axis = f"{name}: while training, %", "of the stage's samples"
    return line_chart(title, series, stops, top=1.0, show=lambda value: units.percent(value, 0), x_title=axis)


def curve_rows(beside: Beside) -> list[Sequence[str | float | None]]:
    """Every point of every learning curve."""
    rows = [
        (label, int(point["samples"]), task, score)
        for label, points in beside.curves.items()
        for point in points
        for task, score in point["scores"].items()
    ]
    return [("stage", "samples", "task", "score"), *rows]


def _probes(document: Mapping[str, Any]) -> Grid:
    rows = [
        [stage, *(units.percent(value) for value in values), units.points(delta)]
        for stage, values, delta in zip(document["stages"], document["scores"], document["delta"], strict=True)
    ]
    return Grid(
        "General ability",
        "Held-out probes, never trained on, after each stage.",
        ["after stage", *document["probes"], "X-Delta, points"],
        rows,
        str(document.get("definition", "")),
    )


def _losses(document: Mapping[str, Any]) -> Grid:
    kept = document.get("heldout") or [True] * len(document["corpora"])
    names = [
        corpus if heldout else f"{corpus} (training samples)"
        for corpus, heldout in zip(document["corpora"], kept, strict=True)
    ]
    rows = [
        [stage, *("" if value is None else f"{value:.3f}" for value in values)]
        for stage, values in zip(document["stages"], document["loss"], strict=True)
    ]
    note = str(document.get("definition", ""))
    return Grid("Losses on corpora", "Captions and documents, after each stage.", ["after stage", *names], rows, note)


def _edits(document: Mapping[str, Any]) -> Grid:
    names = ("success", "generality", "locality", "retention")
    rows = [[str(row["stage"]), *(units.percent(row.get(name)) for name in names)] for row in document["edits"]]
    definitions = document.get("definitions", {})
    note = "; ".join(f"{name}: {definitions[name]}" for name in names if name in definitions)
    return Grid("Edits", "Corrections, one stage after another.", ["edit", *names], rows, note)


def _knowledge(document: Mapping[str, Any]) -> Grid:
    changes = ("updated", "invariant", "new")
    gaps = ("forgotten", "updated", "acquired")
    rows = [
        [
            str(row["task"]),
            *(units.exact(row["counts"].get(change, 0)) for change in changes),
            *(units.points(row.get(gap)) for gap in gaps),
            units.percent(row.get("outdated")),
        ]
        for row in document["periods"]
    ]
    ratio = document.get("FUAR")
    value = "undefined: nothing was gained" if ratio is None else f"{ratio:.2f}"
    counted = [f"{change} questions" for change in changes]
    return Grid(
        "Knowledge that changes",
        f"What each period did to the answers of earlier ones. FUAR {value}.",
        ["period", *counted, "lost, points", "gained on updated", "gained on new", "outdated answers still given"],
        rows,
        str(document.get("definition", "")),
    )
