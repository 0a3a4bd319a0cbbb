"""A file of weights -> tensors by name, without running anything that is in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import timm as _timm
from safetensors import SafetensorError
from torch import Tensor

from mmcl.errors import UserError

timm: Any = _timm  # hardly annotated


def read_checkpoint(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a safetensors file, or of a torch file that needs no code to be read.

    Training checkpoints keep them under `state_dict` or `model`, averaged ones under `state_dict_ema`, which is
    preferred. What distributed training and compilation put before the names is dropped.

    Raises:
        UserError: there is no such file, or it is something else.
    """
    if not path.is_file():
        raise UserError(
            f"{path} does not exist",
            where="model.encoder.checkpoint",
            hint="a relative path starts at the recipe's folder",
        )
    unreadable = (OSError, RuntimeError, ValueError, LookupError, AttributeError, EOFError)
    try:
        found = timm.models.load_state_dict(str(path), weights_only=True)
    except (*unreadable, UnpicklingError, SafetensorError) as error:
        raise UserError(
            f"cannot read {path}: {first_line(error)}",
            where="model.encoder.checkpoint",
            hint="a safetensors file, or a torch file that holds tensors only",
        ) from error
    return {name: tensor for name, tensor in found.items() if isinstance(tensor, Tensor)}


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
