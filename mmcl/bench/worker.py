"""One side of training in a process of its own, to see how much memory it takes at its peak.

Reads `{"cell": {...}, "side": "ours" | "hf" | "trl"}` on standard input, prints `{"loaded", "peak"}` in bytes: after
the model and the libraries were loaded, and the most during the steps. On a CPU it is the resident set (sampled), on a
CUDA device what torch has allocated there.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from typing import Any

import psutil
import torch

from mmcl.bench.data import training_samples
from mmcl.bench.options import Cell
from mmcl.bench.sides import Rows, as_peer, build_ours, build_stock
from mmcl.bench.trainers import Ours, Theirs, order_rows, step_plan

INTERVAL = 0.002
"""Seconds between two looks at the resident set."""


class ResidentPeak:
    """Inside the context, watches the resident set."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self.peak = self._now()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _now(self) -> int:
        return int(self._process.memory_info().rss)

    def _watch(self) -> None:
        while not self._done.wait(INTERVAL):
            self.peak = max(self.peak, self._now())

    def __enter__(self) -> ResidentPeak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.peak = max(self.peak, self._now())


def measure(cell: Cell, side: str) -> dict[str, int]:
    """Train `cell.steps` steps on one side."""
    import transformers

    _ = transformers.Trainer  # both sides have the libraries loaded before the first look
    if side == "trl":
        import trl

        _ = trl.SFTTrainer
    samples = training_samples(cell)
    run: Any
    if side == "ours":
        ours = Ours(build_ours(cell, samples), cell)

        def run() -> None:
            ours.run(samples)
    else:
        model = build_stock(cell)
        plan = step_plan(model, samples, cell)
        supervise = [[turn.role == "assistant" for turn in sample.turns] for sample in order_rows(plan, cell.seed)]
        peer = as_peer(model)
        rows = Rows(model.items(order_rows(plan, cell.seed), None, supervise), peer)
        theirs = Theirs(peer, rows, cell, side)

        def run() -> None:
            theirs.run()

    if cell.device == "cuda":
        torch.cuda.synchronize()
        loaded = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return {"loaded": loaded, "peak": torch.cuda.max_memory_allocated()}
    loaded = int(psutil.Process().memory_info().rss)
    with ResidentPeak() as watched:
        run()
    return {"loaded": loaded, "peak": watched.peak}


def main() -> None:
    """Read what to do, do it, print what was found."""
    wanted = json.load(sys.stdin)
    with contextlib.redirect_stdout(sys.stderr):
        found = measure(Cell(**wanted["cell"]), wanted["side"])
    print(json.dumps(found))


if __name__ == "__main__":
    main()
