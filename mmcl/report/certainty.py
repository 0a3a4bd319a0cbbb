"""How sure the metrics are: means over seeds and orders with intervals, and tests between variants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmcl.report import units
from mmcl.report.csvs import csv_link
from mmcl.report.files import expect, need, read_object

SHOWN = ("ACC", "MAA", "MFT", "BWT", "FM", "FWT")
"""Metrics in the table of means; the document has all."""

SIGNED = ("BWT", "FWT")
"""Metrics whose sign says something."""

TESTED = ("ACC", "MFT", "FM")
"""Metrics in the table of differences: what stands in the end, what was learned, what was lost."""

MANY = 30
"""With more pairs than so many, only those with the first variant are printed."""


@dataclass(frozen=True, slots=True)
class Value:
    """A value with its interval and, for a difference, its p-value adjusted for the number of pairs."""

    value: float
    ends: tuple[float, float] | None
    p: float | None
    over: str

    def text(self, *, signed: bool) -> str:
        """In percent or (with a sign) percentage points, such as `61.2 (58.0 to 64.4)`."""
        shown = units.points if signed else units.cell
        return shown(self.value) + ("" if self.ends is None else f" ({shown(self.ends[0])} to {shown(self.ends[1])})")

    @property
    def p_text(self) -> str:
        """Such as `p = 0.012`; empty where there was no test."""
        if self.p is None:
            return ""
        return "p < 0.001" if self.p < 0.001 else f"p = {self.p:.3f}" if self.p < 0.1 else f"p = {self.p:.2f}"

    @property
    def holds(self) -> bool:
        """Whether a difference holds with 95 %, together with the others."""
        return self.p is not None and self.p < 0.05


@dataclass(frozen=True, slots=True)
class Group:
    """A variant with all its runs."""

    name: str
    runs: Sequence[str]
    seeds: Sequence[Any]
    orders: Sequence[Any]
    metrics: Mapping[str, Value]

    @property
    def repeats(self) -> str:
        """Such as `3 seeds, 2 orders`; `1 run` where there is but one."""
        parts = [
            f"{len(each)} {name}" for name, each in (("seeds", self.seeds), ("orders", self.orders)) if len(each) > 1
        ]
        return ", ".join(parts) or "1 run"


@dataclass(frozen=True, slots=True)
class Summary:
    """What the run's `summary.json` says.

    Attributes:
        groups: variants with their runs.
        differences: {(one, other): {metric: one minus other}}.
        document: the file itself.
    """

    groups: Sequence[Group]
    differences: Mapping[tuple[str, str], Mapping[str, Value]]
    document: Mapping[str, Any]

    @property
    def repeated(self) -> bool:
        """Whether some variant has several runs."""
        return any(len(group.runs) > 1 for group in self.groups)

    @property
    def pairs(self) -> Mapping[tuple[str, str], Mapping[str, Value]]:
        """The differences that are printed."""
        if len(self.differences) <= MANY:
            return self.differences
        first = self.groups[0].name
        return {pair: values for pair, values in self.differences.items() if first in pair}

    @property
    def over(self) -> list[str]:
        """What the intervals are over."""
        return list(dict.fromkeys(value.over for group in self.groups for value in group.metrics.values()))


def read_summary(folder: Path) -> Summary | None:
    """The summary of a run; None where there is none (yet).

    Raises:
        UserError: naming the file, if it is broken.
    """
    path = folder / "summary.json"
    if not path.is_file():
        return None
    document, where = read_object(path), str(path)
    groups = []
    for name, entry in need(document, "groups", dict, where).items():
        about = expect(entry, dict, where, f"groups.{name}")
        metrics = need(about, "metrics", dict, where)
        values = {metric: _value(each, where, f"groups.{name}.{metric}") for metric, each in metrics.items()}
        runs, seeds, orders = (tuple(need(about, key, list, where)) for key in ("runs", "seeds", "orders"))
        groups.append(Group(str(name), runs, seeds, orders, values))
    differences: dict[tuple[str, str], dict[str, Value]] = {}
    for place, row in enumerate(need(document, "differences", list, where)):
        about = expect(row, dict, where, f"differences.{place}")
        pair = need(about, "one", str, where), need(about, "other", str, where)
        differences.setdefault(pair, {})[need(about, "metric", str, where)] = _value(
            about, where, f"differences.{place}"
        )
    return Summary(groups, differences, document)


def view(summary: Summary | None) -> dict[str, Any] | None:
    """Two tables, ready to print: `columns` and `groups`, `tested` and `pairs`; and what the intervals are over."""
    if summary is None or not summary.groups:
        return None
    columns = [name for name in SHOWN if any(name in group.metrics for group in summary.groups)]
    tested = [name for name in TESTED if any(name in values for values in summary.pairs.values())]
    return {
        "columns": columns,
        "groups": [
            (
                group,
                [
                    group.metrics[name].text(signed=name in SIGNED) if name in group.metrics else units.NONE
                    for name in columns
                ],
            )
            for group in summary.groups
        ],
        "tested": tested,
        "pairs": [
            (
                one,
                other,
                [
                    (values[name].text(signed=True), values[name].p_text, values[name].holds)
                    if name in values
                    else (units.NONE, "", False)
                    for name in tested
                ],
            )
            for (one, other), values in summary.pairs.items()
        ],
        "csv": csv_link(_means_rows(summary)),
        "pairs_csv": csv_link(_difference_rows(summary)),
        "left_out": len(summary.differences) - len(summary.pairs),
        "over": summary.over,
    }


def _means_rows(summary: Summary) -> list[Sequence[str | float | None]]:
    return [
        ("variant", "runs", "metric", "value", "low", "high"),
        *(
            (group.name, len(group.runs), name, value.value, *(value.ends or (None, None)))
            for group in summary.groups
            for name, value in group.metrics.items()
        ),
    ]


def _difference_rows(summary: Summary) -> list[Sequence[str | float | None]]:
    return [
        ("variant", "minus", "metric", "difference", "low", "high", "p_holm"),
        *(
            (one, other, name, value.value, *(value.ends or (None, None)), value.p)
            for (one, other), values in summary.differences.items()
            for name, value in values.items()
        ),
    ]


def _value(data: Any, where: str, what: str) -> Value:
    about = expect(data, dict, where, what)
    ends = about.get("interval")
    if ends is not None:
        low, high = (expect(end, float, where, f"{what}.interval") for end in expect(ends, list, where, what))
        ends = low, high
    p = about.get("p_holm")
    return Value(
        need(about, "value", float, where),
        ends,
        None if p is None else expect(p, float, where, f"{what}.p_holm"),
        str(about.get("over") or ""),
    )
