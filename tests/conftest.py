"""For all tests."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import pytest

# Before torch is imported, and for subprocesses too: on tiny tensors, threads cost more than they bring.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Features go into a cache of this session's own; fetched weights are found where they are.
_cache = Path(tempfile.mkdtemp(prefix="mmcl-tests-"))
atexit.register(shutil.rmtree, _cache, ignore_errors=True)
_models = Path(os.environ.get("MMCL_CACHE") or Path.home() / ".cache" / "mmcl").expanduser() / "models"
if _models.is_dir():
    (_cache / "models").symlink_to(_models.resolve(), target_is_directory=True)
os.environ["MMCL_CACHE"] = str(_cache)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs an accelerator is skipped where there is none."""
    import torch  # after the environment is set

    if not torch.accelerator.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no accelerator"))
