"""`mmcl anatomy`."""

# ruff: noqa: D301  # the character \b keeps the paragraph after it from being wrapped

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmcl.cli_output import Result, run_folder, show_progress

if TYPE_CHECKING:
    from rich.console import Console


def anatomy(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, such as runs/quickstart.")],
    variant: Annotated[str | None, typer.Option(metavar="NAME", help="Only one of the recipe's variants.")] = None,
    stage: Annotated[
        str, typer.Option(metavar="STAGE", help="Look at the losses up to this stage, or `last`.")
    ] = "last",
    task: Annotated[list[str] | None, typer.Option(metavar="TASK", help="Only this task; may be repeated.")] = None,
    sample: Annotated[int, typer.Option(min=1, help="At most so many questions of each task.")] = 200,
    relearn: Annotated[int, typer.Option(min=0, help="Learn so many samples of each task again; 0: none.")] = 32,
    steps: Annotated[int, typer.Option(min=1, help="For so many optimiser steps.")] = 16,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")] = False,
) -> Result:
    """Find out why a run forgot what it forgot.

    Each task's lost questions are asked again with one thing at a time put back as it was when the task was learned:
    the route, the answer's format, the vision side, the language side. Nothing is trained but a few samples, on a copy,
    to see whether a task comes back; the run stays as it is. The page of the run shows the result.

    \b
    Examples:
      mmcl anatomy runs/quickstart
      mmcl anatomy runs/quickstart --variant finetune --task shape --sample 500
      mmcl anatomy runs/quickstart --stage color --relearn 0 --json
    """
    run_folder(run)
    from mmcl import report
    from mmcl.anatomy.run import Options
    from mmcl.anatomy.run import anatomy as examine

    options = Options(sample=sample, relearn=relearn, steps=steps)
    with show_progress() as progress:
        documents = examine(run, variant=variant, stage=stage, tasks=task or (), options=options, progress=progress)
    page = report.write(run)

    def show(console: Console) -> None:
        report.anatomy_tables(documents, console)
        console.print(f"report: {page}#anatomy", markup=False)

    return Result(documents, show)
