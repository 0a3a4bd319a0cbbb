from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mmcl.errors import UserError
from mmcl.recipe import registry
from mmcl.recipe.spec import PluginSpec


def python(code: str, path: Path | None = None, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    paths = [str(path) if path else "", os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=cwd, check=False)


def distribution(folder: Path, name: str, entry_points: str) -> None:
    info = folder / f"{name}-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
    (info / "entry_points.txt").write_text(entry_points)


def test_every_kind_lists_built_in_plug_ins() -> None:
    listed = {kind: registry.entries(kind) for kind in registry.KINDS}
    assert all(listed.values())
    assert "finetune" in [entry.name for entry in listed["methods"]]
    finetune = next(entry for entry in listed["methods"] if entry.name == "finetune")
    assert finetune.distribution == "mmcl"
    assert finetune.version
    assert finetune.summary
    assert "\n" not in finetune.summary


def test_listing_imports_no_plug_in_and_no_torch(tmp_path: Path) -> None:
    package = tmp_path / "loud"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "method.py").write_text("raise RuntimeError('imported')\nclass Loud:\n    '''Shouts.\n\n    More.'''\n")
    distribution(tmp_path, "loud-package", "[mmcl.methods]\nloud = loud.method:Loud\ngone = nowhere.at:All\n")
    code = """
import sys
from mmcl.recipe import registry
found = {entry.name: entry for kind in registry.KINDS for entry in registry.entries(kind)}
print(found['loud'], repr(found['gone'].summary))
assert not {'torch', 'loud', 'pydantic', 'transformers'} & set(sys.modules), sys.modules.keys()
"""
    done = python(code, tmp_path, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "summary='Shouts.', distribution='loud-package', version='1.5'" in done.stdout
    assert done.stdout.rstrip().endswith("''")


def test_a_name_of_two_distributions_is_an_error_naming_both(tmp_path: Path) -> None:
    distribution(tmp_path, "one-package", "[mmcl.methods]\ntwin = a:A\n")
    distribution(tmp_path, "two-package", "[mmcl.methods]\ntwin = b:B\nfinetune = b:B\n")
    code = """
from pathlib import Path
from mmcl.errors import UserError
from mmcl.recipe import registry
print([entry.distribution for entry in registry.entries('methods') if entry.name == 'twin'])
for name in ('twin', 'finetune'):
    try:
        registry.load('methods', name, Path())
    except UserError as error:
        print(error)
"""
    done = python(code, tmp_path, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "['one-package', 'two-package']" in done.stdout
    assert "`twin` is registered by several packages: one-package and two-package" in done.stdout
    assert "`finetune` is registered by several packages: mmcl and two-package" in done.stdout


def test_a_missing_dependency_is_named(tmp_path: Path) -> None:
    (tmp_path / "needy.py").write_text("import not_installed_anywhere\nclass A: ...\n")
    distribution(tmp_path, "needy", "[mmcl.methods]\nneedy = needy:A\n")
    code = "from pathlib import Path\nfrom mmcl.recipe import registry\nregistry.load('methods', 'needy', Path())"
    done = python(code, tmp_path, tmp_path)
    assert "can't be imported: No module named 'not_installed_anywhere'" in done.stderr
    assert "Install the missing module `not_installed_anywhere`" in done.stderr


# ------------------------------------------------------------------------------------------------------ ./file.py:Class


def test_a_file_beside_the_recipe_is_loaded_without_touching_sys_path(folder: Path) -> None:
    before, modules = list(sys.path), set(sys.modules)
    first = registry.load("methods", "./mine.py:Plain", folder)
    assert sys.path == before
    assert {name for name in sys.modules if name not in modules and "mine" in name} == set()
    assert registry.load("methods", "./mine.py:Plain", folder) is first, "isinstance needs one class"
    assert first.__module__ in sys.modules, "pickle and dataclasses look the module up"


def test_a_changed_file_is_loaded_anew_and_files_of_one_name_are_apart(folder: Path, tmp_path: Path) -> None:
    old = registry.load("methods", "./mine.py:Plain", folder)
    (folder / "mine.py").write_text((folder / "mine.py").read_text() + "\n# changed\n")
    assert registry.load("methods", "./mine.py:Plain", folder) is not old
    (folder / "other").mkdir()
    (folder / "other" / "mine.py").write_text("from mmcl.protocols import Method\nclass Plain(Method): two = 2\n")
    assert registry.load("methods", "./mine.py:Plain", folder / "other").two == 2  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "text, message",
    [
        ("class A(:\n", "mine.py:1: invalid syntax"),
        ("import not_installed_anywhere\n", "No module named 'not_installed_anywhere'"),
        ("A = 3\n", "lacks a constructor"),
        ("class A: ...\n", "it lacks setup"),
    ],
)
def test_a_file_that_is_no_plug_in(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mine.py").write_text(text)
    for _ in range(2):  # a failed import leaves nothing behind
        with pytest.raises(UserError) as caught:
            registry.load("methods", "./mine.py:A", tmp_path)
        assert message in str(caught.value)


# -------------------------------------------------------------------------------------------------- signature and build


def test_signature_gives_types_defaults_and_docs(folder: Path) -> None:
    options = {option.name: option for option in registry.signature("encoders", "./mine.py:Eyes", folder)}
    assert list(options) == ["size", "level", "scale", "seed"]
    assert (options["size"].type, options["size"].default) == ("int", 8)
    assert options["size"].doc == "height = width, in pixels."
    assert options["level"].type == "Literal['low', 'high']"
    assert not options["seed"].required, "the core gives it"
    options = {option.name: option for option in registry.signature("projectors", "./mine.py:Bridge", folder)}
    assert list(options) == ["depth", "kind"], "without what the core gives"
    assert options["kind"].required


def test_build_converts_options_and_gives_what_the_core_knows(folder: Path) -> None:
    def build(group: str, name: str, core: dict[str, Any], **options: Any) -> Any:
        return registry.build(group, PluginSpec(name, options), folder, **core)

    assert build("encoders", "./mine.py:Eyes", {"seed": 5}, size=4).options == (4, "low", 1.0, 5)
    assert build("encoders", "./mine.py:Eyes", {"seed": 5}, seed=6).options[-1] == 6, "the recipe's word counts"
    widths = {"in_width": 2, "out_width": 3}
    assert build("projectors", "./mine.py:Bridge", widths, kind="x").options == (2, 3, None, "x")
    stream = build("streams", "./mine.py:Data", {"seed": 5}, files=[{"name": "a", "path": "b"}])
    assert stream.root == folder
    assert stream.files[0].path == Path("b")
    assert build("methods", "./mine.py:Plain", {"seed": 1}, strength=2).strength == 2


def test_build_refuses_what_check_finds(folder: Path) -> None:
    spec = PluginSpec("./mine.py:Bridge", {"depth": "x"})
    assert [problem.where for problem in registry.check("projectors", spec, folder, "p")] == ["p.depth", "p.kind"]
    with pytest.raises(UserError, match="depth"):
        registry.build("projectors", spec, folder, in_width=1, out_width=1)


def test_unknown_kind() -> None:
    with pytest.raises(UserError, match="Did you mean `methods`"):
        registry.entries("method")
