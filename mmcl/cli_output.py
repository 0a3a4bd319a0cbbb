"""What commands hand back, and how it, or what went wrong, is printed."""

from __future__ import annotations

import contextlib
import errno
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from mmcl.errors import Problem, UserError

if TYPE_CHECKING:
    from rich.console import Console

    from mmcl.progress import Progress

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # full disk, used-up quota, limit on a file's size
DONE, OUR_FAULT, YOUR_MISTAKE, INTERRUPTED = 0, 1, 2, 130


@dataclass(frozen=True, slots=True)
class Result:
    """What a command found.

    Attributes:
        document: for `--json`.
        show: prints it for people.
        code: exit code.
    """

    document: Any
    show: Callable[[Console], None]
    code: int = DONE


def run_folder(folder: Path) -> None:
    """Raise a UserError if this is no folder of a run."""
    if not (folder / "run.json").is_file():
        hint = "Give the folder that `mmcl run` wrote, such as runs/quickstart."
        raise UserError("this is no folder of a run: it has no run.json", where=str(folder), hint=hint)


@contextlib.contextmanager
def show_progress() -> Iterator[Progress]:
    """Bars on standard error while a command works."""
    from mmcl.progress import Progress

    progress = Progress()
    try:
        yield progress
    finally:
        progress.close()


def print_result(result: Result, *, as_json: bool) -> None:
    """On standard output: one JSON document, or text for people."""
    if as_json:
        print_document(result.document)
        return
    from rich.console import Console

    result.show(Console(highlight=False, soft_wrap=True))


def print_document(document: Any) -> None:
    """One JSON document on standard output; no NaN, which is no JSON."""
    print(json.dumps(document, indent=2, allow_nan=False, default=_path_text), flush=True)


def print_problems(problems: Sequence[Problem], *, as_json: bool, headline: str = "") -> None:
    """Mistakes on standard error, and with `as_json` also as a document on standard output."""
    if as_json:
        print_document(problems_document(problems))
    if headline:
        print(headline, file=sys.stderr)
    for problem in problems:
        text = str(problem).replace("\n", "\n  ")
        print(f"  {text}" if headline else f"error: {text}", file=sys.stderr)


def print_table(console: Console, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows for people; a missing or undefined cell is a dash."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(escape(_cell_text(row.get(column))) for column in columns))
    console.print(table)


def problems_document(problems: Sequence[Problem]) -> dict[str, Any]:
    """`{"ok", "problems": [{"where", "message", "hint"}]}`."""
    rows = [{"where": problem.where, "message": problem.message, "hint": problem.hint} for problem in problems]
    return {"ok": not rows, "problems": rows}


def disk_full(error: BaseException) -> UserError | None:
    """The mistake to report if `error`, or what caused it, is a full disk."""
    link: BaseException | None = error
    while link is not None:
        # safetensors raises an exception of its own, which has the system's words alone.
        if (isinstance(link, OSError) and link.errno in NO_ROOM) or "No space left on device" in str(link):
            name = getattr(link, "filename", None)
            hint = "Free some space and give the same command again: finished stages are kept."
            return UserError("disk full", where=str(name) if name else "", hint=hint)
        link = link.__cause__ or link.__context__
    return None


def _cell_text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(_cell_text(item) for item in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_cell_text(item)}" for key, item in value.items())
    return "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def _path_text(value: Any) -> str:
    if isinstance(value, PurePath):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not JSON")
