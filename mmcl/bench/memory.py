"""Peak memory of training on each side, in fresh processes that run one after another."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from mmcl.bench.options import Cell
from mmcl.bench.train import PEER_NAMES, row

STEPS = 2
MIB = 1024.0**2
UNLIMITED = 10**6
"""Tokens of a row: a whole optimiser step."""
PASS = 32
"""Questions in a pass of the comparison at the same batch: all at once would be more than a usual machine has."""


def measure(cell: Cell, peers: Sequence[str], say: Callable[[str], None] = lambda _: None) -> list[dict[str, Any]]:
    """Rows of the document: of the whole process, and of what training takes beyond the loaded model; both with the
    same 32 questions in a pass, and with rows and micro-batches as they are timed.
    """
    short = dataclasses.replace(cell, steps=min(cell.steps, STEPS))
    together = min(PASS, cell.batch_size)
    whole = dataclasses.replace(short, batch_size=together, micro_batch=together, row_tokens=UNLIMITED)
    rows = []
    for batch, of in (("same batch", whole), ("as timed", short)):
        found = {side: peak_of(of, side) for side in ("ours", *peers)}
        say(f"memory, {batch}, {cell.label}: measured")
        for kind in peers:
            ours, theirs = found["ours"], found[kind]
            for work, mine, other in (
                (f"peak memory, {batch}", ours["peak"], theirs["peak"]),
                (
                    f"peak memory beyond the loaded model, {batch}",
                    ours["peak"] - ours["loaded"],
                    theirs["peak"] - theirs["loaded"],
                ),
            ):
                # where training fits into what loading left free there is nothing to divide by
                rows.append(row(cell, work, PEER_NAMES[kind], "MiB", [mine / MIB], [max(other, 1) / MIB]))
    return rows


def peak_of(cell: Cell, side: str) -> dict[str, int]:
    """Bytes after loading and at the peak, of one side in a fresh process.

    Raises:
        RuntimeError: the process failed.
    """
    done = subprocess.run(
        [sys.executable, "-P", "-m", "mmcl.bench.worker"],  # -P: this package, not a folder of its name right here
        input=json.dumps({"cell": cell.document(), "side": side}),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the process that measures the memory of `{side}` failed:\n{done.stderr[-4000:]}")
    found: dict[str, int] = json.loads(done.stdout)
    return found
