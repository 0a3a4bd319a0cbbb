"""Tensors to the accelerator, without waiting for it."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from mmcl.protocols import Batch


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device; on CUDA the copy is put in line behind what runs there, and the CPU goes on."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def on_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with all its tensors there."""
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    moved: dict[str, Any] = {name: upload(value, device) for name, value in values.items() if isinstance(value, Tensor)}
    return replace(batch, **moved)
