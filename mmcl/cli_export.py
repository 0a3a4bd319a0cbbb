"""`mmcl export`."""

# ruff: noqa: D301  # the character \b keeps the paragraph after it from being wrapped

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mmcl.cli_output import Result, show_progress
from mmcl.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, such as runs/quickstart.")],
    stage: Annotated[str, typer.Option(metavar="NAME", help="A finished stage, by name or label.")] = "last",
    to: Annotated[str, typer.Option(metavar="FORMAT", help="hf: a folder for transformers.")] = "hf",
    variant: Annotated[str | None, typer.Option(metavar="NAME", help="One of the recipe's variants.")] = None,
    route: Annotated[str | None, typer.Option(metavar="NAME", help="A task, expert, or `base`; default: all.")] = None,
    adapters: Annotated[str, typer.Option(metavar="HOW", help="merged, or peft: in a folder beside.")] = "merged",
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Default: RUN/exports/STAGE.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")] = False,
) -> Result:
    """Write a stage's model as a folder that transformers loads without mmcl.

    A ready VLM keeps its own class; an assembly takes the shape of LLaVA where its parts allow that. Adapters are
    merged into the weights, or written beside them for peft. Per-task projector experts give one folder each. A model
    card tells what was measured.

    \b
    Examples:
      mmcl export runs/mine
      mmcl export runs/mine --stage color --variant replay_experts --route shape --out shape-expert
    """
    if to != "hf":
        raise UserError(f"there is no format `{to}`", where="--to", hint="Choose from: hf.")
    if adapters not in ("merged", "peft"):
        raise UserError(
            f"`{adapters}` is no way to write adapters", where="--adapters", hint="Choose from: merged, peft."
        )
    from mmcl.export import export as write

    how: Literal["merged", "peft"] = "peft" if adapters == "peft" else "merged"

    with show_progress() as progress:
        done = write(run, stage=stage, variant=variant, route=route, out=out, adapters=how, progress=progress)
    rows = [
        {"folder": str(each.folder), "route": each.route, "tasks": list(each.tasks), "class": each.model_class}
        for each in done
    ]

    def show(console: Console) -> None:
        for row in rows:
            console.print(f"{row['folder']}: {row['class']}, route {row['route']}", markup=False)

    return Result(rows, show)
