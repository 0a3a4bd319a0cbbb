"""A package of somebody else, installed by pip: its parts are listed, used, and answered for by name."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml

PROJECT = """
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "acme-vision"
version = "2.5"

[project.entry-points."mmcl.encoders"]
acme_patches = "acme.parts:Patches"
acme_broken = "acme.parts:Broken"
acme_pooled = "acme.parts:Pooled"
acme_careless = "acme.parts:Careless"

[project.entry-points."mmcl.projectors"]
acme_halved = "acme.parts:Halved"
linear = "acme.parts:Halved"

[tool.setuptools]
packages = ["acme"]
"""

PARTS = '''
import torch
from torch import nn

from mmcl.protocols import EncoderInfo


def pixels(image):
    data = torch.frombuffer(bytearray(image.resize((32, 32)).tobytes()), dtype=torch.uint8)
    return data.view(32, 32, 3).permute(2, 0, 1).float() / 255


class Patches(nn.Module):
    """Sixteen patches, mapped at random."""

    tokens = 16

    def __init__(self, *, width: int = 24, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Conv2d(3, width, kernel_size=8, stride=8)
        self.info = EncoderInfo(tokens=self.tokens, width=width, image_size=32, source=f"random:{seed}")

    def transform(self):
        return pixels

    def forward(self, pixels):
        return self.embed(pixels).flatten(2).transpose(1, 2)


class Broken(Patches):
    """Says nine tokens and gives sixteen."""

    tokens = 9


class Pooled(Patches):
    """One vector for an image, without a place for tokens."""

    def forward(self, pixels):
        return super().forward(pixels).mean(1)


class Careless:
    """Has nothing that an encoder needs."""


class Halved(nn.Module):
    """Two neighbours become one token."""

    def __init__(self, *, in_width: int, out_width: int):
        super().__init__()
        self.map = nn.Linear(2 * in_width, out_width)

    def tokens(self, tokens_in):
        return tokens_in // 2

    def forward(self, features):
        return self.map(features.unflatten(1, (-1, 2)).flatten(2))
'''


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment: what is installed here, and the package."""
    folder = tmp_path_factory.mktemp("acme")
    (folder / "source" / "acme").mkdir(parents=True)
    (folder / "source" / "pyproject.toml").write_text(PROJECT)
    (folder / "source" / "acme" / "__init__.py").touch()
    (folder / "source" / "acme" / "parts.py").write_text(PARTS)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    interpreter = folder / "venv" / "bin" / "python"
    ours = repr(sysconfig.get_path("purelib"))
    (site,) = (folder / "venv" / "lib").glob("python3*/site-packages")
    # An editable install of mmcl is a .pth file as well, which only `addsitedir` reads.
    (site / "ours.pth").write_text(f"import site; site.addsitedir({ours})\n")
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        interpreter,
        "install",
        "--quiet",
        "--no-deps",
        folder / "source",
    ]
    subprocess.run(install, check=True)
    return interpreter


def mmcl(python: Path, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [python, "-P", "-m", "mmcl.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def recipe(folder: Path, encoder: object, projector: object = "acme_halved") -> Path:
    content = {
        "name": "theirs",
        "model": {
            "encoder": encoder,
            "projector": projector,
            "language": {"weights": "tiny:llama", "lora": {"rank": 2}},
        },
        "stream": {"name": "shapes", "tasks": ["colour", "shape"], "train_size": 16, "test_size": 4},
    }
    path = folder / "theirs.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_its_parts_are_listed_with_its_name(python: Path, tmp_path: Path) -> None:
    for kind, name, summary in (
        ("encoders", "acme_patches", "Sixteen patches, mapped at random."),
        ("projectors", "acme_halved", "Two neighbours become one token."),
    ):
        done = mmcl(python, "list", kind, "--json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        (row,) = (row for row in json.loads(done.stdout) if row["name"] == name)
        assert (row["distribution"], row["version"], row["summary"]) == ("acme-vision", "2.5", summary)
    told = mmcl(python, "describe", "acme_patches", cwd=tmp_path)
    assert told.returncode == 0 and "width" in told.stdout and "acme-vision" in told.stdout


def test_a_recipe_uses_them(python: Path, tmp_path: Path) -> None:
    done = mmcl(python, "run", recipe(tmp_path, {"name": "acme_patches", "width": 12}), "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    matrix = json.loads(done.stdout)["variants"]["default"]["matrix"]
    assert len(matrix) == 2 and None not in matrix[1]


@pytest.mark.parametrize(
    ("encoder", "projector", "words"),
    [
        ("acme_broken", "acme_halved", ["Broken", "9", "16"]),
        ("acme_pooled", "acme_halved", ["Pooled", "shape"]),
        ("acme_careless", "acme_halved", ["acme_careless", "lacks", "transform"]),
        ("acme_patches", "linear", ["linear", "acme-vision", "mmcl"]),
        ({"name": "acme_patches", "widht": 3}, "acme_halved", ["widht", "width"]),
    ],
    ids=["tokens", "no patch tokens", "no encoder", "clash", "option"],
)
def test_what_is_wrong_with_them_is_told(
    python: Path, tmp_path: Path, encoder: object, projector: object, words: list[str]
) -> None:
    done = mmcl(python, "run", recipe(tmp_path, encoder, projector), cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr, done.stderr
    assert not (tmp_path / "runs" / "theirs" / "report.html").exists()
