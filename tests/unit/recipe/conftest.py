"""A folder with plug-ins of a user's own, and a small right recipe that names them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

MINE = '''
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mmcl.errors import Problem, UserError
from mmcl.protocols import Method


class Eyes:
    """Sees.

    More about seeing.

    Args:
        size: height = width,
            in pixels.
        level: which layer.
    """

    def __init__(self, *, size: int = 8, level: Literal["low", "high"] = "low", scale: float = 1.0, seed: int) -> None:
        self.options = (size, level, scale, seed)

    def transform(self): ...

    def forward(self, pixels): ...


class Bridge:
    def __init__(self, *, in_width: int, out_width: int, depth: int | None = None, kind: str) -> None:
        self.options = (in_width, out_width, depth, kind)

    def tokens(self, tokens_in): ...

    def forward(self, features): ...


@dataclass
class File:
    name: str
    path: Path
    metric: str = "exact"


class Data:
    def __init__(self, *, root: Path, files: Sequence[File] = (), order: Literal["asc"] | list[str] = "asc") -> None:
        self.root, self.files, self.order = root, files, order

    def tasks(self):
        return []


class Router(Method):
    owns = frozenset({"route"})


class OtherRouter(Method):
    owns = frozenset({"route", "weather"})


class Plain(Method):
    def __init__(self, *, strength: float = 1.0) -> None:
        problems = [Problem("strength", "expected at most 9", "Lower it.")] * (strength > 9)
        problems += [Problem("", "odd", "Change it.")] * (strength == 11)
        if problems:
            raise UserError(problems=problems)
        self.strength = strength


class NoPlugin:
    pass


class Unresolved(Method):
    def __init__(self, *, thing: Missing = None) -> None: ...
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path


@pytest.fixture
def data() -> dict[str, Any]:
    return {
        "name": "small",
        "model": {
            "encoder": {"name": "./mine.py:Eyes", "size": 16},
            "projector": {"name": "./mine.py:Bridge", "kind": "wide"},
            "language": {"weights": "somewhere", "lora": {"rank": 4}},
        },
        "stream": "./mine.py:Data",
        "methods": ["./mine.py:Plain"],
    }
