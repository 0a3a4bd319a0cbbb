"""The command `mmcl bench`: what is asked for, and what becomes of the result."""

# ruff: noqa: D301  # the character \b keeps the paragraph after it from being wrapped

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmcl.bench import table
from mmcl.bench.options import Cell, cells, check_peers
from mmcl.cli_output import DONE, OUR_FAULT, Result, show_progress
from mmcl.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console


def bench(
    model: Annotated[str, typer.Option(metavar="NAME", help="tiny, or smollm2-135m (mmcl fetch first).")] = "tiny",
    stream: Annotated[str, typer.Option(metavar="NAME", help="easy_vqa or shapes.")] = "easy_vqa",
    dtype: Annotated[str, typer.Option(metavar="NAMES", help="Of the language model: fp32, bf16.")] = "fp32,bf16",
    image_tokens: Annotated[str, typer.Option(metavar="N,..", help="Visual tokens per image.")] = "16,64",
    questions: Annotated[str, typer.Option(metavar="N,..", help="Questions per image; `all` the stream has.")] = "all",
    peers: Annotated[str, typer.Option(metavar="NAMES", help="What to compare with.")] = "hf,trl,generate",
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps in a repetition.")] = 2,
    repeats: Annotated[int, typer.Option(min=1, help="Repetitions of each side, interleaved.")] = 3,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions per optimiser step.")] = 96,
    micro_batch: Annotated[int, typer.Option(min=1, help="Rows per forward pass of the padded trainers.")] = 16,
    row_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens per packed row in training.")] = None,
    image_size: Annotated[int, typer.Option(min=32, help="What the encoder sees, in pixels.")] = 64,
    test_questions: Annotated[int, typer.Option(min=1, help="Questions answered in a repetition.")] = 64,
    generate_batch: Annotated[int, typer.Option(min=2, help="Rows of a padded batch of `generate`.")] = 16,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 8,
    device: Annotated[str, typer.Option(metavar="NAME", help="cpu or cuda.")] = "cpu",
    seed: Annotated[int, typer.Option(min=0, help="Of random parts and of the order.")] = 0,
    memory: Annotated[
        bool | None,
        typer.Option("--memory/--no-memory", help="Also peak memory; default: yes, but not of tiny models."),
    ] = None,
    matrix: Annotated[
        bool,
        typer.Option("--matrix", help="Also what `evaluate.reuse` saves over 20 tasks (tiny models; a minute)."),
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the table (.md) or the document (.json).")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a plot of the ratios (.svg).")] = None,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as Markdown.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")] = False,
) -> Result:
    """Compare mmcl's speed and memory with what people use today.

    Both sides have the same weights, samples and optimiser steps, and are measured in turns. Before a speed is told,
    losses, gradients and answers must agree; if they don't, the exit code is 1.

    \b
    Peers:
      hf         Hugging Face Trainer, padded rows, image encoded in every step
      trl        TRL's SFTTrainer, the same rows (pip install 'mmcl[bench]')
      generate   answers by transformers' generate, one by one and in padded batches
    \b
    Examples:
      mmcl bench
      mmcl bench --model smollm2-135m --dtype fp32 --image-tokens 16 --steps 2
      mmcl bench --model smollm2-135m --questions 2,5,all --out docs/table.md --plot docs/plot.svg
    """
    wanted = _split(peers)
    check_peers(wanted)
    _check_file(out, "--out", (".md", ".json"))
    _check_file(plot, "--plot", (".svg",))
    base = Cell(
        model=model,
        stream=stream,
        image_size=image_size,
        steps=steps,
        repeats=repeats,
        batch_size=batch_size,
        micro_batch=micro_batch,
        row_tokens=row_tokens,
        test_questions=test_questions,
        generate_batch=generate_batch,
        max_new_tokens=max_new_tokens,
        device=device,
        seed=seed,
    )
    grid = cells(
        base,
        dtypes=_split(dtype),
        image_tokens=[_whole("--image-tokens", part) for part in _split(image_tokens)],
        questions=[None if part == "all" else _whole("--questions", part) for part in _split(questions)],
    )
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("torch sees no CUDA device", where="--device", hint="use cpu")
    from mmcl.bench.run import measure

    def keep(document: dict[str, Any]) -> None:
        if out is not None:
            as_text = table.markdown(document) if out.suffix == ".md" else json.dumps(document, indent=2) + "\n"
            out.write_text(as_text, encoding="utf-8")
        if plot is not None and document["rows"]:
            plot.write_text(table.plot(document), encoding="utf-8")

    with show_progress() as progress:
        document = measure(
            grid,
            wanted,
            with_memory=model != "tiny" if memory is None else memory,
            with_matrix=matrix,
            say=progress.message,
            keep=keep,
        )

    def show(console: Console) -> None:
        if as_markdown:
            console.print(table.markdown(document), markup=False, end="")
        else:
            _show(document, console)

    return Result(document, show, OUR_FAULT if document["disagreement"] else DONE)


def _show(document: dict[str, Any], console: Console) -> None:
    for line in [*table.machine_lines(document), *document["skipped"]]:
        console.print(line, markup=False)
    if document["disagreement"]:
        console.print(f"The two sides disagree, no speed is told: {document['disagreement']}", markup=False)
    for line in table.lines_for_terminal(document["rows"]):
        console.print(line, markup=False)


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _whole(where: str, text: str) -> int:
    if not text.isdecimal():
        raise UserError(f"`{text}` is no whole number", where=where, hint="several have commas between them: 16,64")
    return int(text)


def _check_file(path: Path | None, where: str, suffixes: Sequence[str]) -> None:
    if path is None:
        return
    if path.suffix not in suffixes:
        raise UserError(
            f"{path} ends in none of {', '.join(suffixes)}", where=where, hint=f"such as bench{suffixes[0]}"
        )
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent}", where=where, hint="make it first")
