"""The anatomy on the page, in the terminal, in the document; repeats folded away; numbers behind every figure."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mmcl.errors import UserError
from mmcl.report import document, tables, write
from mmcl.report.bars import stacked

CSV = re.compile(r'href="data:text/csv;charset=utf-8;base64,([^"]+)" download="([^"]+)\.csv"')


def files(folder: Path) -> dict[str, list[list[str]]]:
    """Every CSV file of the page, the last of each name."""
    page = write(folder).read_text(encoding="utf-8")
    return {name: list(csv.reader(io.StringIO(base64.b64decode(data).decode()))) for data, name in CSV.findall(page)}


def test_bars_are_as_long_as_the_loss_and_their_pieces_fill_them() -> None:
    drawn = stacked("t", ["a", "b", "none"], ["x", "y"], [[0.2, 0.3], [0.0, 0.25], [0.0, 0.0]])
    first, second, none = drawn.bars
    widths = [[segment.width for segment in bar.segments] for bar in drawn.bars]
    assert sum(widths[0]) == pytest.approx(2 * sum(widths[1]), abs=0.2)
    assert widths[0][0] / widths[0][1] == pytest.approx(2 / 3, abs=0.01)
    assert (widths[2], none.end, none.total) == ([], drawn.left, "0.0")
    assert first.segments[1].x == pytest.approx(first.segments[0].x + first.segments[0].width, abs=0.1)
    assert second.segments[0].slot == 1
    assert "a, y: 30.0 points, 60" in first.segments[1].title
    assert first.end <= drawn.ticks[-1][0] + 0.1
    assert "b: 25.0 points, of these y 25.0; none: 0.0 points" in drawn.description


def test_each_lost_task_has_a_bar_its_evidence_and_its_questions(make_run: Any) -> None:
    page = write(make_run(dissected=True).folder).read_text(encoding="utf-8")
    text = " ".join(re.sub(r"<[^>]+>", " ", page.split('id="anatomy"')[1].split('id="forgotten"')[0]).split())
    assert "65.0 points lost since 02-color, 62" in text
    assert "Nothing was lost on yes-no." in text
    assert "100 questions" in text and "(of 200, a sample)" in text
    for said in ("projector 30.0", "projected images 90 0.453 0.639", "texts 3 \u2013 0.500", "blank 20.0"):
        assert said in text, said
    assert text.count("circle again") == 8  # not where nothing brought it back
    assert "How it was measured" in text


def test_the_terminal_and_the_document_have_it(make_run: Any) -> None:
    folder = make_run(dissected=True).folder
    console = Console(width=160, record=True, file=io.StringIO())
    tables(folder, console)
    lines = [line.split() for line in console.export_text().splitlines()]
    assert ["color", "65.0", "40.0", "25.0"] in lines
    found = document(folder)["variants"]
    assert found["finetune"]["anatomy"]["stage"] == "03-yes-no"
    assert found["experts"]["anatomy"] is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tasks": [{"task": "shape"}]}, "learned is missing"),
        ({"tasks": "shape"}, "tasks should be a list"),
        ({"stage": 3}, "stage should be text"),
        ({"confusion": None}, "confusion should be an object"),
    ],
)
def test_a_broken_file_is_named(make_run: Any, change: dict[str, Any], said: str) -> None:
    folder = make_run(dissected=True).folder
    path = folder / "variants" / "finetune" / "anatomy.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=said) as caught:
        write(folder)
    assert str(path) in str(caught.value)


def test_the_numbers_of_every_figure_are_there(make_run: Any) -> None:
    found = files(make_run(dissected=True).folder)
    assert {"comparison", "means", "matrix", "average", "metrics", "anatomy", "confusion", "routing", "cost"} <= set(
        name.split("-")[0] for name in found
    ), sorted(found)
    assert found["anatomy"][2][:2] == ["color", "0.65"]
    assert found["average"][0] == ["variant", "after stage", "average accuracy"]
    assert len(found["average"]) == 7
    assert ["finetune", "OP", "2", "0.5"] in found["metrics"]
    assert ["experts", "forgetting_per_task", "shape", "0.09999999999999998"] in found["metrics"]
    assert found["cost"][1][:3] == ["finetune", "00-align", "100.0"]


def test_repeats_are_folded_behind_the_first_run(make_run: Any) -> None:
    folder = make_run().folder
    head = json.loads((folder / "run.json").read_text())
    for entry in head["variants"].values():
        entry["repeat"] = {"group": "both", "seed": 0, "order": ""}
    (folder / "run.json").write_text(json.dumps(head))
    page = write(folder).read_text(encoding="utf-8")
    summary = page.split('id="summary"')[1].split("</section>")[0]
    shown, folded = summary.split("<details")
    assert "finetune" in shown and "The other 1 run (seeds and orders)" in folded
    assert "projector_experts" not in shown and "projector_experts" in folded
    assert files(folder)["average"][-1][0] == "experts"  # all runs are in the files
