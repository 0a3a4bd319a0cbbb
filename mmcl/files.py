"""Text and JSON files: written whole or not at all, and read with mistakes named by the file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from mmcl.errors import UserError


def write_atomically(path: Path, text: str) -> None:
    """Write UTF-8 text under a temporary name beside `path`, then rename: a crash leaves the old file or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, with or without a byte order mark, line ends as they are.

    Raises:
        UserError: naming the file, if it can't be read or is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"can't be read: {error.strerror}", where=str(path)) from error
    except UnicodeDecodeError as error:
        raise UserError(f"is not UTF-8 text (byte {error.start})", where=str(path), hint="save it as UTF-8") from error


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON, whole or not at all."""
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: naming the file, if it can't be read or is no JSON.
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(
            f"is not JSON: {error.msg}",
            where=f"{path}:{error.lineno}:{error.colno}",
            hint="the file is damaged; delete it, and run the recipe again",
        ) from error
