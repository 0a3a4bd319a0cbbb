"""The whole measurement: every cell of the grid, one after another, in one process (memory apart)."""

from __future__ import annotations

import datetime
import gc
import os
import platform
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from mmcl.bench import memory
from mmcl.bench.evaluate import Answers
from mmcl.bench.matrix import matrix_reuse
from mmcl.bench.options import Cell
from mmcl.bench.peak import matmul_peak
from mmcl.bench.train import DTYPES, Comparison, Disagreement, missing_peers
from mmcl.bench.trainers import trl_missing


def measure(
    cells: Sequence[Cell],
    peers: Sequence[str],
    *,
    with_memory: bool = True,
    with_matrix: bool = False,
    say: Callable[[str], None],
    keep: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """The document of `mmcl bench`.

    Args:
        cells: what to measure.
        peers: of `hf`, `trl`, `generate`.
        with_memory: also measure peak memory.
        with_matrix: also the evaluation of a whole matrix of tiny models, once.
        say: gets a line on what goes on.
        keep: gets the document after each cell, so that nothing measured is lost.

    Returns:
        `{"machine", "options", "rows", "skipped", "disagreement"}`; a cell whose sides disagree has no rows,
        `disagreement` says what differs.
    """
    trainers, skipped = missing_peers(peers)
    for text in skipped:
        say(text)
    document: dict[str, Any] = {
        "machine": machine(cells),
        "options": {**cells[0].document(), "peers": list(peers)},
        "rows": [],
        "skipped": skipped,
        "disagreement": None,
    }
    for name in ("dtype", "image_tokens", "questions"):  # these are in every row
        document["options"].pop(name)
    differences: list[str] = []
    for cell in cells:
        try:
            document["rows"] += _cell(cell, trainers, "generate" in peers, with_memory, say)
        except Disagreement as difference:
            differences.append(str(difference))
            say(f"the two sides disagree: {difference}")
        document["disagreement"] = "; ".join(differences) or None
        keep(document)
    if with_matrix:
        say("the whole matrix of 20 tasks, with tiny models")
        row = matrix_reuse()
        if row["answers_equal"]:
            document["rows"].append(row)
        else:
            differences.append("with `evaluate.reuse` the matrix or an answer is another than without")
        document["disagreement"] = "; ".join(differences) or None
        keep(document)
    return document


def _cell(
    cell: Cell, trainers: Sequence[str], with_answers: bool, with_memory: bool, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    comparison = Comparison(cell, trainers, say)
    agreement = comparison.agree()
    say(
        f"{cell.label}: loss {agreement.loss:.6f} and {agreement.theirs:.6f}, gradients differ by "
        f"{agreement.gradient:.1e} (relative)"
    )
    rows = comparison.measure(agreement)
    if with_answers:
        comparison.finish()
        rows += Answers(cell, comparison.model, comparison.peer, say).measure()
    del comparison
    gc.collect()
    if with_memory and trainers:
        rows += memory.measure(cell, trainers, say)
    return rows


def machine(cells: Sequence[Cell]) -> dict[str, Any]:
    """What the numbers were measured on."""
    device = cells[0].device
    dtypes = list(dict.fromkeys(cell.dtype for cell in cells))
    libraries = ["torch", "transformers", "peft", "accelerate"] + ([] if trl_missing() else ["trl"])
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in libraries},
        "peak_gflops": {name: matmul_peak(DTYPES[name], device) / 1e9 for name in dtypes},
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def cpu_name() -> str:
    """As the system calls it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
