"""The miniatures, by the name of their format."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def miniature() -> ModuleType:
    """The module beside this file, which is in no package."""
    spec = importlib.util.spec_from_file_location("miniature", Path(__file__).with_name("miniature.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["miniature"] = module
    spec.loader.exec_module(module)
    return module
