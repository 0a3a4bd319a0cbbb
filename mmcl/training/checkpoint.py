"""Checkpoints without pickles: tensors in safetensors, everything else in JSON, written to a temporary name first."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmcl.errors import UserError

DONE = "DONE"


def save_tree(tree: Any, stem: Path) -> None:
    """Write nested dicts and lists of tensors, bytes, numbers, strings and None to `stem`.json and `stem`.safetensors.

    Raises:
        TypeError: something else is in the tree.
    """
    tensors: dict[str, Tensor] = {}

    def pack(value: Any, path: str) -> Any:
        if isinstance(value, Tensor):
            tensors[path] = value.detach().cpu().contiguous().clone()
            return {"$tensor": path}
        if isinstance(value, bytes):
            return {"$bytes": base64.b64encode(value).decode()}
        if isinstance(value, Mapping):
            if any(not isinstance(key, str) or key.startswith("$") for key in value):
                raise TypeError(f"{path}: keys must be strings that do not start with `$`")
            return {key: pack(item, f"{path}.{key}") for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [pack(item, f"{path}.{index}") for index, item in enumerate(value)]
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise TypeError(f"{path}: cannot save a {type(value).__name__}")

    text = json.dumps(pack(tree, "state"), ensure_ascii=False)
    stem.with_suffix(".json").write_text(text, encoding="utf-8")
    save_tensors(tensors, stem.with_suffix(".safetensors"))


def load_tree(stem: Path) -> Any:
    """The reverse of `save_tree` (tuples come back as lists).

    Raises:
        UserError: a file is missing or broken.
    """
    try:
        tensors = load_file(stem.with_suffix(".safetensors"))
        tree = json.loads(stem.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(
            f"cannot read the state: {error}", where=str(stem), hint="delete the stage's folder to train it again"
        ) from error

    def unpack(value: Any) -> Any:
        if isinstance(value, dict):
            if "$tensor" in value:
                return tensors[value["$tensor"]]
            if "$bytes" in value:
                return base64.b64decode(value["$bytes"])
            return {key: unpack(item) for key, item in value.items()}
        return [unpack(item) for item in value] if isinstance(value, list) else value

    return unpack(tree)


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write named tensors.

    Raises:
        UserError: there is no room.
    """
    try:
        save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        raise UserError(
            f"{size:,} bytes can't be written: {error}",
            where=str(path.parent),
            hint="is the disk full? Make room and run the same command again: finished stages are kept",
        ) from error


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read named tensors.

    Raises:
        UserError: the file is missing or broken.
    """
    try:
        tensors: dict[str, torch.Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error
    return tensors


def tensor_names(path: Path) -> list[str]:
    """Names of the tensors in a file, which is not read whole.

    Raises:
        UserError: the file is missing or broken.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error


def replace_folder(temporary: Path, final: Path) -> None:
    """Put a finished folder in its place, over an unfinished one of the same name."""
    if final.exists():
        shutil.rmtree(final)
    temporary.rename(final)


def bytes_of(path: Path) -> int:
    """Size of a file, or of all files below a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(item.stat().st_size for item in path.rglob("*") if item.is_file())


def _unreadable(path: Path, error: Exception) -> UserError:
    hint = "delete the stage's folder to train it again"
    return UserError(f"cannot read the checkpoint: {error}", where=str(path), hint=hint)
