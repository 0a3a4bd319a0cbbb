"""What a fresh process does: help without torch, quickly; exit codes; clean standard output."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmcl.cli import main

COMMANDS = ("run", "check", "report", "eval", "ask", "list", "describe", "fetch", "metrics", "score", "export")


def python(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "COLUMNS": "100"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=env, cwd=cwd, check=False)


def mmcl(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return python("-m", "mmcl.cli", *arguments, cwd=cwd)


def seconds(*arguments: str) -> float:
    times = []
    for _ in range(3):
        started = time.perf_counter()
        assert python(*arguments).returncode == 0
        times.append(time.perf_counter() - started)
    return min(times)


def test_help_is_about_as_quick_as_its_libraries() -> None:
    libraries = seconds("-c", "import typer, rich.console, rich.table")
    assert seconds("-m", "mmcl.cli", "--help") < 2 * libraries + 0.2


@pytest.mark.parametrize(
    "arguments", [["--help"], ["list", "methods"], ["list", "models", "--json"], ["list", "recipes"]]
)
def test_neither_help_nor_listing_imports_torch(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom mmcl.cli import main\n"
        f"code = main({arguments!r})\n"
        "heavy = {'torch', 'transformers', 'PIL', 'timm', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else code)\n"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_importing_the_commands_defines_names_and_nothing_else(tmp_path: Path) -> None:
    code = """
import logging, os, random, sys, typer
def state():
    return os.getcwd(), list(sys.path), dict(os.environ), random.getstate(), list(logging.root.manager.loggerDict)
before = state()
import mmcl.cli, mmcl.cli_check, mmcl.cli_catalogue, mmcl.progress, mmcl.recipe.load
assert state() == before
"""
    done = python("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_each_command_has_help_with_an_example() -> None:
    listed = mmcl("--help").stdout
    for command in COMMANDS:
        assert f"  {command} " in listed
        done = mmcl(command, "--help")
        assert done.returncode == 0
        assert f"\n    mmcl {command} " in done.stdout, "an example on a line of its own"
        assert "--json" in done.stdout


def test_version() -> None:
    from mmcl import __version__

    assert mmcl("--version").stdout == f"mmcl {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [["list"], ["list", "nothing"], ["list", "methods", "--jsn"], ["lst"], ["describe", "nothing"], ["run", "nothing"],
     ["check", "nothing.yaml"], ["report", "nowhere"], ["eval", "nowhere", "--task", "a"], ["ask", "nowhere", "why?"],
     ["metrics", "nowhere.csv"], ["score", "nowhere.json", "--metric", "exact"], ["fetch", "nothing"],
     ["score", "nowhere.json", "--metric", "exact", "--mode", "lenient"]],
    ids=" ".join,
)  # fmt: skip
def test_a_mistake_exits_with_2_and_no_traceback(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(("error: ", "nothing.yaml: 1 mistake"))
    assert main([*arguments, "--json"]) == 2
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is False
    assert document["problems"]
    assert all(set(problem) == {"where", "message", "hint"} for problem in document["problems"])


def test_exit_codes_of_the_process(tmp_path: Path) -> None:
    assert mmcl("list", "methods").returncode == 0
    done = mmcl("describe", "nothing", "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["ok"] is False
    assert "Traceback" not in done.stderr
    broken = (
        "import mmcl.recipe.registry as r\nr.KINDS = 3\nimport sys, mmcl.cli\nsys.exit(mmcl.cli.main(['list', 'x']))"
    )
    done = python("-c", broken)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_a_reader_that_leaves_early_does_no_harm() -> None:
    code = (
        "import subprocess, sys\n"
        "writer = subprocess.Popen([sys.executable, '-m', 'mmcl.cli', 'list', 'methods', '--json'],"
        " stdout=subprocess.PIPE, stderr=subprocess.PIPE)\n"
        "writer.stdout.close()\n"
        "print(writer.stderr.read().decode())\n"
    )
    assert "Traceback" not in python("-c", code).stdout
