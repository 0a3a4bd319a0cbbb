"""The report as terminal tables."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from mmcl.report import anatomy, certainty, units
from mmcl.report.cells import CellInfo
from mmcl.report.costs import cost_table
from mmcl.report.heat import shade
from mmcl.report.routing import Routing, routing
from mmcl.report.run import Cell, Row, Run, Variant, read_run
from mmcl.report.summary import BEFORE, metric_rows, sampling, summary


def tables(folder: Path, console: Console) -> None:
    """Print matrices, metrics, routing and cost of a run.

    Raises:
        UserError: naming file and line, if the folder is no run or a file in it is broken.
    """
    run = read_run(Path(folder))
    console.print(_text(run.name, "bold"))
    for variant in run.variants:
        console.print()
        methods = " + ".join(method.name for method in variant.methods)
        console.print(_text(f"{variant.name}: {methods}" if methods else variant.name, "bold"))
        if variant.oracle:
            console.print(_text(f"oracle: {', '.join(variant.oracle)} read the task id at test time", "red"))
        console.print(_text(summary(variant)))
        if variant.matrix:
            console.print(_matrix(variant))
            if any(cell.taken_over for cell in variant.all_cells):
                console.print(_text("= taken over from an earlier stage: same weights, route and prompts", "dim"))
        taken = routing(variant)
        if taken is not None:
            console.print(_routing(taken))
        if variant.anatomy is not None:
            console.print(_anatomy(variant.anatomy))
    for note in sampling(run):
        console.print(_text(note, "dim"))
    for table in (_metrics(run), *_certainty(run), _cost(run, console)):
        if table.row_count:
            console.print()
            console.print(table)


def anatomy_tables(documents: Mapping[str, Mapping[str, Any]], console: Console) -> None:
    """Print what the losses of each variant are made of."""
    for name, found in documents.items():
        if len(documents) > 1:
            console.print(_text(name, "bold"))
        console.print(_anatomy(found))


def _text(text: str, style: str = "") -> Text:
    # Text, not a string: a name with [brackets] is no markup, and control characters are gone.
    return Text(units.plain(text), style=style)


def _table(title: str) -> Table:
    return Table(
        title=title, title_justify="left", title_style="dim", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1)
    )


def _heat(value: Cell, text: str | None = None, style: str = "") -> Text:
    if value is None:
        return Text("\u00b7", style="dim", justify="center")
    colours = shade(value)
    return Text(f"  {text or units.cell(value)}", style=f"{colours.ink} on {colours.fill} {style}", justify="right")


def _matrix(variant: Variant) -> Table:
    table = _table("score on a task (column) after a stage (row), %; underlined: learned there")
    table.add_column("stage")
    for task in variant.tasks:
        table.add_column(_text(task), justify="right")
    wide = len(variant.tasks) <= 6  # with more columns there is no room for intervals; the page has them
    if variant.row0 is not None:
        table.add_row(
            _text(BEFORE, "italic"),
            *(
                _heat(cell, _shown(cell, variant.row0_cells.get(task), wide))
                for task, cell in _pairs(variant, variant.row0)
            ),
        )
    for index, (label, row) in enumerate(zip(variant.rows, variant.matrix, strict=True)):
        cells = (
            _heat(
                cell,
                _shown(cell, variant.row_stages[index].cells.get(task), wide),
                "underline" if variant.learned(task) == index else "",
            )
            for task, cell in _pairs(variant, row)
        )
        table.add_row(_text(label), *cells)
    changes = [variant.change(task) for task in variant.tasks]
    if any(change is not None for change in changes):
        table.add_section()
        cells = (Text(units.points(change), style="red" if (change or 0) < 0 else "dim") for change in changes)
        table.add_row(Text("change since learned", style="dim"), *cells)
    return table


def _pairs(variant: Variant, row: Row) -> Iterator[tuple[str, Cell]]:
    return zip(variant.tasks, row, strict=True)


def _shown(value: Cell, info: CellInfo | None, wide: bool) -> str | None:
    """The score with a mark where it was taken over, and its interval; None for the score alone."""
    ends = info.interval if info is not None and wide else None
    if info is None or (ends is None and not info.taken_over):
        return None
    mark = "=" if info.taken_over else ""
    return mark + units.cell(value) + (f" ({units.span(ends)})" if ends is not None else "")


def _routing(taken: Routing) -> Table:
    table = _table(f"questions by true task (row) and expert taken (column); accuracy {units.percent(taken.accuracy)}")
    table.add_column("task")
    for expert in taken.experts:
        table.add_column(_text(expert), justify="right")
    table.add_column("own expert", justify="right")
    for task, counts, accuracy in zip(taken.tasks, taken.counts, taken.per_task, strict=True):
        total = sum(counts)
        cells = (_heat(count / total if total else None, f"{count:,}") for count in counts)
        table.add_row(_text(task), *cells, Text(units.percent(accuracy)))
    return table


def _anatomy(document: Mapping[str, Any]) -> Table:
    columns, rows = anatomy.summary_rows(document)
    table = _table(f"points lost up to {units.plain(document['stage'])}, by cause")
    table.add_column("task")
    for name in columns:
        table.add_column(name, justify="right")
    for task, cells in rows:
        table.add_row(_text(task), *(Text("" if text == "0.0" else text) for text in cells))
    return table


def _metrics(run: Run) -> Table:
    table = _table("metrics (best in bold)" if len(run.variants) > 1 else "metrics")
    table.add_column("metric", no_wrap=True)
    for variant in run.variants:
        table.add_column(_text(variant.name if len(run.variants) > 1 else "value"), justify="right")
    table.add_column("definition", style="dim", ratio=1)
    for row in (row for row in metric_rows(run) if row["core"]):
        values = (Text(cell["text"], style="bold" if cell["best"] else "") for cell in row["cells"])
        table.add_row(_text(row["name"]), *values, _text(row["definition"]))
    return table


def _certainty(run: Run) -> Iterator[Table]:
    shown = certainty.view(run.summary)
    if shown is None:
        return
    table = _table("means over a variant's runs, with 95 % intervals, in % or points")
    for name in ("variant", "runs", *shown["columns"]):
        table.add_column(name, justify="left" if name in ("variant", "runs") else "right")
    for group, cells in shown["groups"]:
        table.add_row(_text(group.name), group.repeats, *(cell.replace(" (", "\n(") for cell in cells))
    yield table
    if shown["pairs"]:
        table = _table("differences in points; bold: they hold together with 95 % (p adjusted by Holm)")
        for name in ("variant", "minus"):
            table.add_column(name)
        for name in shown["tested"]:
            table.add_column(name, justify="right")
        for one, other, cells in shown["pairs"]:
            texts = (
                Text(f"{text}\n{p}".rstrip().replace(" (", "\n("), style="bold" if holds else "")
                for text, p, holds in cells
            )
            table.add_row(_text(one), _text(other), *texts)
        yield table


def _cost(run: Run, console: Console) -> Table:
    """The cost table, without the columns that matter least where the terminal is too narrow; the page has them all."""
    costs = cost_table(run)
    dropped: set[str] = set()
    for name in ("", "FLOPs", "Evaluation", "Stored parameters", "Steps", "Experts", "Trainable parameters", "Tokens"):
        dropped.add(name)
        table = _cost_table(costs, dropped, several=len(run.variants) > 1)
        if Measurement.get(console, console.options.update(max_width=1000), table).maximum <= console.width:
            break
    return table


def _cost_table(costs: Mapping[str, Any], dropped: Collection[str], *, several: bool) -> Table:
    kept = [index for index, name in enumerate(costs["columns"]) if name not in dropped]
    table = _table("cost")
    table.add_column("stage", no_wrap=True)
    for index in kept:
        table.add_column(costs["columns"][index].lower().replace(" ", "\n"), justify="right", no_wrap=True)
    for group in costs["groups"]:
        if several:
            table.add_row(_text(group["variant"], "bold"))
        for label, cells in group["rows"]:
            table.add_row(_text(label), *(Text(cells[index][0]) for index in kept))
        if group["total"]:
            sums = (Text(group["total"][index][0], style="dim") for index in kept)
            table.add_row(Text("all stages", style="dim"), *sums)
        table.add_section()
    return table
