"""The commands that turn answers and matrices into numbers; they need no model."""

# ruff: noqa: D301  # the character \b keeps the paragraph after it from being wrapped

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmcl.cli_output import Result, print_table
from mmcl.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]


def metrics(
    matrices: Annotated[
        list[Path],
        typer.Argument(metavar="MATRIX...", help="matrix.csv: `stage,TASK1,...`, a row per stage; one for each run."),
    ],
    baseline: Annotated[
        Path | None, typer.Option(metavar="CSV", help="`task,score` of an untrained model, for FWT.")
    ] = None,
    single: Annotated[Path | None, typer.Option(metavar="CSV", help="`task,score` of single-task models.")] = None,
    answers: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Scored answers STAGE/TASK.jsonl behind the matrix; once for each matrix."),
    ] = None,
    as_json: Json = False,
) -> Result:
    """Compute forgetting and transfer from a matrix of scores.

    Several matrices are runs of one thing with other seeds: then it gives means with intervals. With answers intervals
    also hold that the test questions are a sample.

    \b
    Examples:
      mmcl metrics runs/quickstart/matrix.csv
      mmcl metrics matrix.csv --baseline zero_shot.csv --single single.csv --json
      mmcl metrics seed0.csv seed1.csv seed2.csv
      mmcl metrics matrix.csv --answers answers
    """
    from mmcl.evaluation.all_metrics import metrics_document

    document = metrics_document(matrices, baseline, single, answers or ())

    def show(console: Console) -> None:
        definitions, undefined = document.get("definitions", {}), document.get("undefined", {})
        intervals = document.get("intervals", {})
        rows = [
            {
                "metric": name,
                "value": value,
                "95 %": _ends(intervals.get(name, {}).get("interval")),
                "definition": undefined.get(name) or definitions.get(name, ""),
            }
            for name, value in document.items()
            if name not in ("definitions", "undefined", "warnings", "intervals")
        ]
        print_table(console, ("metric", "value", *(["95 %"] if intervals else []), "definition"), rows)
        for over in dict.fromkeys(each["over"] for each in intervals.values()):
            console.print(over, markup=False)
        for warning in document.get("warnings", ()):
            console.print(f"note: {warning}", markup=False)

    return Result(document, show)


def _ends(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}"


def score(
    file: Annotated[Path, typer.Argument(metavar="FILE", help='Answer file, or JSON {"cases": [...]}.')],
    metric: Annotated[str, typer.Option(metavar="NAME", help="See `mmcl list metrics`.")],
    mode: Annotated[str, typer.Option(metavar="strict|paper", help="`paper` follows the published script.")] = "strict",
    questions: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The questions, with the references that count.")
    ] = None,
    form: Annotated[str, typer.Option("--format", metavar="NAME", help="Of the questions.")] = "llava_json",
    images: Annotated[Path | None, typer.Option(metavar="DIR", help="Where their image paths start.")] = None,
    as_json: Json = False,
) -> Result:
    """Score a file of answers with one metric.

    With `--questions` a question without an answer is wrong, and answers to other questions don't count; without, each
    row is scored against the references that stand in it.

    \b
    Examples:
      mmcl score answers.jsonl --metric vqa_accuracy
      mmcl score cases.json --metric exact --mode paper --json
      mmcl score answers.jsonl --metric gqa --questions test.json --images GQA/images
      mmcl score answers.jsonl --metric vqa_accuracy --questions questions.json --format vqav2
    """
    if mode not in ("strict", "paper"):
        raise UserError(f"there is no mode `{mode}`", where="--mode", hint="Choose from: strict, paper.")
    from mmcl.evaluation.score import Questions, score_file

    asked = None if questions is None else Questions(questions, form, images)
    document = score_file(file, metric=metric, mode="paper" if mode == "paper" else "strict", questions=asked)

    def show(console: Console) -> None:
        console.print(f"{document['metric']}: {document['corpus']:.4f} over {document['n']} answers", markup=False)
        for name, value in document.get("details", {}).items():
            console.print(f"  {name}: {value:.4f}", markup=False)
        console.print(f"{document['mode'] or 'one'} mode: {document['definition']}", markup=False)
        console.print(f"follows: {document['follows']}", markup=False)
        for warning in document["warnings"]:
            console.print(f"note: {warning}", markup=False)

    return Result(document, show)
