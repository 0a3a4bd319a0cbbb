"""For all tests."""

from __future__ import annotations

import os

# Before torch is imported, and for subprocesses too: on tiny tensors, threads cost more than they bring.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs an accelerator is skipped where there is none."""
    if not torch.accelerator.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no accelerator"))
