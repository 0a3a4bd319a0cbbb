"""Means over runs with their intervals, and tests between variants, on the page, in the terminal, in the document."""

from __future__ import annotations

import base64
import io
import json
import re
from typing import Any

import pytest
from rich.console import Console

from mmcl.errors import UserError
from mmcl.report import document, tables, write
from mmcl.report.certainty import MANY, Value, read_summary
from mmcl.report.csvs import csv_link


def test_the_page(make_run: Any) -> None:
    page = write(make_run().folder).read_text(encoding="utf-8")
    section = page[page.index('id="certainty"') :].split("</section>")[0]
    text = " ".join(re.sub(r"<[^>]+>", " ", section).split())
    assert "finetune 3 seeds 36.7 (32.6 to 40.8) \u221280.0 (\u221290.0 to \u221270.0) 80.0" in text
    assert "experts 1 run 81.7 (79.7 to 83.7) \u2013" in text.replace("\u2014", "\u2013")
    assert "finetune experts \u221245.0 (\u221250.0 to \u221240.0) p &lt; 0.001" in text
    assert "95 % interval over runs" in text
    assert '<td class="number best">' in section  # it holds


def test_the_terminal(make_run: Any) -> None:
    console = Console(file=io.StringIO(), width=200)
    tables(make_run().folder, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "3 seeds" in text and "(32.6 to 40.8)" in text and "p < 0.001" in text


def test_the_document(make_run: Any) -> None:
    fake = make_run()
    assert document(fake.folder)["summary"] == json.loads((fake.folder / "summary.json").read_text())
    (fake.folder / "summary.json").unlink()
    assert document(fake.folder)["summary"] is None


def test_of_many_pairs_those_with_the_first_variant_are_printed(make_run: Any) -> None:
    fake = make_run()
    about = json.loads((fake.folder / "summary.json").read_text())
    names = [f"v{k}" for k in range(9)]
    about["groups"] = {name: about["groups"]["finetune"] for name in names}
    row = about["differences"][0]
    about["differences"] = [{**row, "one": a, "other": b} for place, a in enumerate(names) for b in names[place + 1 :]]
    (fake.folder / "summary.json").write_text(json.dumps(about))
    found = read_summary(fake.folder)
    assert found is not None and len(found.differences) == 36 > MANY
    assert list(found.pairs) == [("v0", name) for name in names[1:]]
    assert "28 more pairs are in summary.json" in write(fake.folder).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("p", "text", "holds"),
    [(None, "", False), (0.0004, "p < 0.001", True), (0.049, "p = 0.049", True), (0.3, "p = 0.30", False)],
)
def test_p_values(p: float | None, text: str, holds: bool) -> None:
    value = Value(0.1, None, p, "")
    assert (value.p_text, value.holds, value.text(signed=True)) == (text, holds, "+10.0")


def test_a_broken_summary_is_named(make_run: Any) -> None:
    fake = make_run()
    about = json.loads((fake.folder / "summary.json").read_text())
    about["groups"]["finetune"]["metrics"]["ACC"]["interval"] = ["low", 1]
    (fake.folder / "summary.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match=r"finetune\.ACC\.interval should be a number") as caught:
        write(fake.folder)
    assert "summary.json" in caught.value.problems[0].where


def csv_of(page: str, name: str) -> str:
    (found,) = re.findall(rf'<a href="data:text/csv;charset=utf-8;base64,([^"]+)" download="{name}.csv"', page)
    return base64.b64decode(found).decode()


def test_the_numbers_of_the_figures_can_be_taken_away(make_run: Any) -> None:
    page = write(make_run().folder).read_text(encoding="utf-8")
    means = csv_of(page, "means").splitlines()
    assert means[0] == "variant,runs,metric,value,low,high" and means[1].startswith("finetune,1,ACC,0.367,0.326,0.40")
    assert csv_of(page, "differences").splitlines()[1].startswith("finetune,experts,ACC,-0.45,-0.5,-0.4,0.0002")
    compared = csv_of(page, "comparison").splitlines()
    assert compared[0].startswith("variant,Average accuracy,Learned (MFT),Forgetting (FM)") and len(compared) == 3
    matrix = csv_of(page, "matrix-finetune").splitlines()
    assert matrix[0].startswith("stage,shape,color") and matrix[-1].startswith("03-yes-no,0.0,0.25,0.85")


def test_a_text_in_a_file_is_no_formula() -> None:
    address = csv_link([("=1+1", -1.5, None, 'a "b", c')])
    text = base64.b64decode(address.partition("base64,")[2]).decode()
    assert text == '\'=1+1,-1.5,,"a ""b"", c"\n'


def test_runs_of_one_variant_stand_in_one_row(make_run: Any) -> None:
    fake = make_run()
    about = json.loads((fake.folder / "summary.json").read_text())
    one = {**about["groups"]["finetune"], "runs": ["finetune", "experts"]}
    (fake.folder / "summary.json").write_text(json.dumps({**about, "groups": {"both": one}}))
    assert 'id="comparison"' not in write(fake.folder).read_text(encoding="utf-8")  # one variant has nothing beside it
    again = {**one, "runs": ["experts"]}
    (fake.folder / "summary.json").write_text(json.dumps({**about, "groups": {"x": again}}))
    rows = csv_of(write(fake.folder).read_text(encoding="utf-8"), "comparison").splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == ["x", "finetune"]
