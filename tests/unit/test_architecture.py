"""Who may import whom, how large a file may be, and that importing has no effect."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted([*(ROOT / "mmcl").rglob("*.py"), *(ROOT / "encoders").rglob("*.py")])
PLUGINS = {
    "mmcl.data.formats": {"mmcl.data"},
    "mmcl.data.streams": {"mmcl.data"},
    "mmcl.model.projectors": {"mmcl.model.projectors"},
    "mmcl.methods": {"mmcl.methods", "mmcl.memory"},
    "mmcl.evaluation.metrics": {"mmcl.evaluation.metrics"},
    "mmcl.training.objectives": {"mmcl.training.objectives"},
    "mmcl.encoders": set(),
}
CONTRACT = {"mmcl.protocols", "mmcl.data.types", "mmcl.errors"}
# Rooms and what they may not look into: the way of the data goes in one direction.
FORBIDDEN = {
    "mmcl.data": {"mmcl.model", "mmcl.training", "mmcl.evaluation", "mmcl.report", "mmcl.bench", "mmcl.protocols."},
    "mmcl.recipe": {"mmcl.model", "mmcl.training", "mmcl.evaluation", "mmcl.report", "mmcl.bench"},
    "mmcl.model": {"mmcl.training", "mmcl.evaluation", "mmcl.report", "mmcl.bench", "mmcl.methods", "mmcl.memory"},
    "mmcl.memory": {"mmcl.model", "mmcl.training", "mmcl.evaluation", "mmcl.report", "mmcl.bench", "mmcl.methods"},
    "mmcl.training": {"mmcl.evaluation", "mmcl.report", "mmcl.bench"},
    "mmcl.evaluation": {"mmcl.report", "mmcl.bench"},
    "mmcl.report": {"mmcl.experiment", "mmcl.session", "mmcl.model", "mmcl.training", "mmcl.bench"},
    "mmcl.bench": {"mmcl.report", "mmcl.cli", "mmcl.session"},
    "mmcl.export": {"mmcl.bench", "mmcl.cli"},
}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] == "encoders":
        parts = ("mmcl", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.split(".")[0] == "mmcl"}


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def test_the_walk_sees_the_package() -> None:
    assert len(FILES) > 60
    assert {"mmcl.protocols", "mmcl.encoders.timm", "mmcl.methods.replay"} <= {module_of(path) for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_files(path: Path) -> None:
    module = module_of(path)
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
    for name in imports(path):
        for package, allowed in PLUGINS.items():
            if within(module, package):
                assert name in CONTRACT or any(within(name, room) for room in allowed), f"{module} imports {name}"
            elif not within(module, "mmcl.testing") and not within(module, "mmcl.data"):  # streams read formats
                assert not within(name, package), f"{module} imports the plug-in {name}"
        for package, others in FORBIDDEN.items():
            if within(module, package):
                assert not any(within(name, other) for other in others), f"{module} imports {name}"


def test_every_folder_of_code_is_installed() -> None:
    installed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    folders = {module_of(path.parent / "__init__.py") for path in FILES} | {"mmcl.recipes"}
    assert folders == set(installed)


def test_importing_defines_names_and_nothing_else(tmp_path: Path) -> None:
    code = (
        "import os, sys, logging, random\n"
        "def state(): return (os.getcwd(), list(sys.path), dict(os.environ), random.getstate(),\n"
        "    logging.root.level, list(logging.root.handlers))\n"
        "before = state()\n"
        "import mmcl, mmcl.errors, mmcl.cli, mmcl.data.types, mmcl.recipe.load, mmcl.stages\n"
        "assert state() == before\n"
        "assert 'torch' not in sys.modules\n"
        "import torch\n"
        "seed = torch.random.initial_seed(); rng = torch.random.get_rng_state()\n"
        "import mmcl.protocols, mmcl.methods.replay, mmcl.methods.projector_experts\n"
        "assert torch.equal(rng, torch.random.get_rng_state())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
