"""Cells that were taken over or sampled are marked wherever the matrix is shown."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console

from mmcl.errors import UserError
from mmcl.report import document, tables, write


def tell(fake: Any, label: str, column: int, **about: Any) -> None:
    path = fake.stage("default", label) / "predictions" / f"{column}-task.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **about}))


@pytest.fixture
def marked(make_run: Any) -> Any:
    fake = make_run(alone=True)
    first = fake.stage("default", "01-shape").name
    tell(fake, "02-color", 0, reused=20, **{"from": {first: 20}}, seconds=0.5)
    tell(fake, "03-yes-no", 0, reused=5, **{"from": {first: 5}}, seconds=1.5)
    tell(fake, "03-yes-no", 1, questions=80, interval=[0.1, 0.46], interval_definition="95 % interval by <Wilson>")
    source = {"count": 3, "source": "the answers of the training set"}
    tell(fake, "03-yes-no", 2, answers="likelihood", choices=source)
    return fake


def test_the_document(marked: Any) -> None:
    got = document(marked.folder)["variants"]["default"]
    assert got["cells"][1][0] == {"n": 20, "questions": None, "reused": 20, "interval": None}
    assert got["cells"][2][0]["reused"] == 5
    assert got["cells"][2][1] == {"n": 20, "questions": 80, "reused": 0, "interval": [0.1, 0.46]}
    assert got["cells"][0][1] is None
    assert any("20 questions of each task" in note for note in got["notes"])
    assert [row["evaluation_seconds"] for row in got["cost"]] == [None, None, 0.5, 1.5]


def test_the_page(marked: Any) -> None:
    page = write(marked.folder).read_text()
    assert page.count('class="heat reused"') == 1  # a cell of which some questions were asked has no mark
    assert "taken over from 01-shape: same weights, route and prompt" in page
    assert "5 of 20 answers taken over from 01-shape" in page
    assert "<small>10\u201346</small>" in page
    assert "95 % interval by &lt;Wilson&gt;" in page
    assert "20 of 80" in page
    assert "Most likely of 3 answers (the answers of the training set)." in page
    assert "not comparable" in page


def test_the_terminal(marked: Any) -> None:
    console = Console(file=io.StringIO(), width=200)
    tables(marked.folder, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.count("=10.0") == 1
    assert "= taken over from an earlier stage" in text
    assert "25.0 (10\u201346)" in text
    assert "95 % interval by <Wilson>" in text


def test_nothing_is_said_where_there_is_nothing_to_say(make_run: Any) -> None:
    fake = make_run(alone=True)
    page = write(fake.folder).read_text()
    assert 'class="swatch reused"' not in page and "interval" not in page
    console = Console(file=io.StringIO(), width=200)
    tables(fake.folder, console)
    assert "taken over" not in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_broken_cell_is_named(marked: Any) -> None:
    tell(marked, "02-color", 0, interval=[0.1, 1.5])
    with pytest.raises(UserError, match=r"0-task\.json[\s\S]*interval is 1\.5"):
        document(marked.folder)
