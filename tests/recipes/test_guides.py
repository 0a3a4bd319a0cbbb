"""The guides do what they say: their code blocks are run, in a folder of their own, as a newcomer would."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import yaml

from mmcl.recipe import registry
from mmcl.recipe.spec import plugin_spec

GUIDE = Path(__file__).parents[2] / "docs" / "encoders.md"
BLOCKS = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def in_folder(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True, check=False)


def test_an_encoder_of_ones_own_in_ten_minutes(tmp_path: Path) -> None:
    blocks = BLOCKS.findall(GUIDE.read_text(encoding="utf-8"))
    assert [kind for kind, _ in blocks] == ["python", "python", "yaml", "sh", "toml"]
    (_, module), (_, check), (_, recipe), (_, commands), _ = blocks
    (tmp_path / "mine.py").write_text(module)
    (tmp_path / "mine.yaml").write_text(recipe)
    (tmp_path / "try_it.py").write_text(check)
    done = in_folder(tmp_path, "try_it.py")
    assert done.returncode == 0, done.stderr
    for line in commands.splitlines():
        program, *words = line.split()
        assert program == "mmcl"
        done = in_folder(tmp_path, "-P", "-m", "mmcl.cli", *words)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs/mine/report.html").is_file()
    assert (tmp_path / "runs/wider/report.html").is_file()


def test_the_lines_of_the_guide_are_valid(tmp_path: Path) -> None:
    lines = re.findall(r"^    encoder: (\{.*\})", GUIDE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(lines) >= 7
    for line in lines:
        spec = plugin_spec(yaml.safe_load(line))
        assert spec is not None
        assert registry.check("encoders", spec, tmp_path) == []
