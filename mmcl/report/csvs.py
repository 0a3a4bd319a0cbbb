"""The numbers behind a figure as a file: a link that holds it, so that the page needs no other file."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Iterable, Sequence

from mmcl.report.units import plain

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""How a text begins that a spreadsheet would run."""


def csv_link(rows: Iterable[Sequence[str | float | None]]) -> str:
    """A `data:` address of a CSV file in UTF-8; None is an empty cell."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([_cell(value) for value in row] for row in rows)
    return "data:text/csv;charset=utf-8;base64," + base64.b64encode(out.getvalue().encode()).decode()


def _cell(value: str | float | None) -> str | float:
    if not isinstance(value, str):
        return "" if value is None else value
    text = plain(value)
    return f"'{text}" if text.startswith(_FORMULA) else text
