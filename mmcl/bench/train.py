"""Training: both sides agree, then their speeds are measured, repetition by repetition, one after the other."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmcl.bench.data import training_samples, unseen
from mmcl.bench.options import Cell
from mmcl.bench.peak import FlopCount, matmul_peak
from mmcl.bench.sides import Rows, as_peer, build_ours, build_stock, train_spec
from mmcl.bench.trainers import Ours, Run, Start, Theirs, order_rows, step_plan, synchronise, trl_missing
from mmcl.protocols import Batch
from mmcl.training.loop import make_optimiser

LOSS_BOUND = {"fp32": 1e-4, "bf16": 2e-2}
"""Largest relative difference of the first step's loss."""
GRADIENT_BOUND = {"fp32": 5e-3, "bf16": 1.0}
"""Largest relative difference (norm) of the first step's gradient. Through 30 layers in bfloat16 even stock modules,
padded or packed, end about 0.5 away from their own float32 gradient: there the figure is told, not judged."""
LEARNING_STEPS = 8
"""Optimiser steps before answers are timed, at least."""
PEER_NAMES = {"hf": "HF Trainer", "trl": "TRL SFTTrainer"}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Disagreement(Exception):
    """The two sides do not compute the same: no speed is worth telling."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Relative differences between the sides in the first optimiser step."""

    loss: float
    theirs: float
    gradient: float

    @property
    def loss_difference(self) -> float:
        """Relative."""
        return abs(self.loss - self.theirs) / abs(self.theirs)


class Comparison:
    """Both sides of training with the same weights and samples.

    Args:
        cell: what is measured.
        peers: of `hf`, `trl`; TRL only if it is installed.
        say: gets a line on what goes on.
    """

    def __init__(self, cell: Cell, peers: Sequence[str], say: Callable[[str], None] = lambda _: None) -> None:
        self.cell, self.say = cell, say
        self.samples = training_samples(cell)
        self.model = build_ours(cell, self.samples)
        stock = build_stock(cell)
        stock.load_state(self.model.state())
        self.flops = FlopCount(stock)
        self.peer = as_peer(stock)
        self.ours = Ours(self.model, cell)
        self.plan = step_plan(self.model, self.samples, cell)
        ordered = order_rows(self.plan, cell.seed)
        supervise = [self.ours.objective.supervise(sample) for sample in ordered]
        self.rows = Rows(self.model.items(ordered, None, supervise), self.peer)
        self.theirs = {kind: Theirs(self.peer, self.rows, cell, kind) for kind in PEER_NAMES if kind in peers}

    def ready(self) -> list[list[Batch]]:
        """The packed rows of each optimiser step, made as the loop makes them."""
        spec, objective = train_spec(self.cell), self.ours.objective
        return [
            self.model.pack(step, row_tokens=spec.row_tokens, supervise=[objective.supervise(s) for s in step])
            for step in self.plan
        ]

    def agree(self) -> Agreement:
        """Loss and gradient of the first step on both sides.

        Raises:
            Disagreement: they differ by more than rounding.
        """
        cell = self.cell
        start, start_of_peer = Start(self.model), Start(self.peer)
        loss, gradient = self._our_step()
        start.restore()
        theirs, gradient_of_peer = self._their_step()
        start_of_peer.restore()
        if gradient.keys() != gradient_of_peer.keys():
            odd = sorted(gradient.keys() ^ gradient_of_peer.keys())
            raise Disagreement(f"{cell.label}: other parameters train on the two sides, such as {odd[0]}")
        ours = torch.cat([gradient[name].flatten() for name in sorted(gradient)])
        peers = torch.cat([gradient_of_peer[name].flatten() for name in sorted(gradient)])
        found = Agreement(loss, theirs, float((ours - peers).norm() / peers.norm()))
        for what, value, bound in (
            ("loss", found.loss_difference, LOSS_BOUND[cell.dtype]),
            ("gradient", found.gradient, GRADIENT_BOUND[cell.dtype]),
        ):
            if not value <= bound:
                raise Disagreement(
                    f"{cell.label}: the {what} of the first step differs by {value:.2e} (relative), the bound is "
                    f"{bound:.0e}; losses are {loss:.7f} (mmcl) and {theirs:.7f} (padded rows)"
                )
        return found

    def _our_step(self) -> tuple[float, dict[str, Tensor]]:
        total = self._bare_step(self.ready()[0])
        return total, _gradient(self.model.trainable())

    def _bare_step(self, batches: Sequence[Batch]) -> float:
        count = sum(len(batch.targets) for batch in batches)
        total = 0.0
        for batch in batches:
            part = self.ours.objective.loss(self.model, batch, self.model.forward(batch))["tokens"]
            (part.total / count).backward()  # type: ignore[no-untyped-call]
            total += float(part.total.detach()) / count
        return total

    def _their_step(self) -> tuple[float, dict[str, Tensor]]:
        cell, total = self.cell, 0.0
        chunks = [list(range(start, start + cell.micro_batch)) for start in range(0, cell.batch_size, cell.micro_batch)]
        count = sum(sum(self.rows.items[index].supervised) for chunk in chunks for index in chunk)
        for chunk in chunks:
            batch = {key: value.to(cell.device) for key, value in self.rows.collate(chunk).items()}
            loss = self.peer(**batch, num_items_in_batch=count).loss
            loss.backward()
            total += float(loss.detach())
        return total, _gradient(self.peer.trainable())

    def bare(self, ready: Sequence[Sequence[Batch]]) -> float:
        """Seconds of forward, backward and optimiser step over ready rows, and of nothing else."""
        self.ours.start.restore()
        parameters = self.model.trainable()
        optimiser = make_optimiser(parameters, train_spec(self.cell))
        synchronise(self.cell.device)
        begin = time.perf_counter()
        for batches in ready:
            self._bare_step(batches)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        synchronise(self.cell.device)
        return time.perf_counter() - begin

    def measure(self, agreement: Agreement) -> list[dict[str, Any]]:
        """Rows of the document, after the sides have agreed."""
        cell = self.cell
        ready = self.ready()
        dtype = DTYPES[cell.dtype]
        runs: dict[str, list[Run]] = {"first": [], "cached": [], **{kind: [] for kind in self.theirs}}
        bare: list[float] = []
        peak = 0.0
        for repeat in range(cell.repeats + 1):
            fresh = unseen(self.samples, f"{cell.seed} {repeat}")
            found = {"first": self.ours.run(fresh), "cached": self.ours.run(self.samples)}
            seconds = self.bare(ready)
            found |= {kind: side.run() for kind, side in self.theirs.items()}
            peak = max(peak, matmul_peak(dtype, cell.device))
            if repeat == 0:  # warm-up; and the trainers themselves, not only the step taken apart, must agree
                self._check_losses(found)
                continue
            bare.append(seconds)
            for name, run in found.items():
                runs[name].append(run)
            self.say(f"training, {cell.label}: repetition {repeat} of {cell.repeats}")
        return self._rows(runs, bare, ready, peak, agreement)

    def _check_losses(self, found: dict[str, Run]) -> None:
        ours, bound = found["cached"].losses[0], LOSS_BOUND[self.cell.dtype]
        for kind, run in found.items():
            difference = abs(run.losses[0] - ours) / abs(ours)
            if not difference <= bound:
                raise Disagreement(
                    f"{self.cell.label}: the first loss of {PEER_NAMES.get(kind, 'mmcl, first epoch')} is "
                    f"{run.losses[0]:.7f}, mmcl's {ours:.7f}"
                )

    def _rows(
        self,
        runs: dict[str, list[Run]],
        bare: list[float],
        ready: Sequence[Sequence[Batch]],
        peak: float,
        agreement: Agreement,
    ) -> list[dict[str, Any]]:
        cell = self.cell
        asked = cell.steps * cell.batch_size
        flat = [batch for batches in ready for batch in batches]
        real = sum(int((~batch.is_padding).sum()) for batch in flat)
        positions = sum(batch.is_padding.numel() for batch in flat)
        common = {"loss_difference": agreement.loss_difference, "gradient_difference": agreement.gradient}
        seconds = {name: [run.seconds for run in of_side] for name, of_side in runs.items()}
        rows = []
        for kind in self.theirs:
            theirs = runs[kind][0]
            last = abs(runs["cached"][0].losses[-1] - theirs.losses[-1]) / abs(theirs.losses[-1])
            extra = {**common, "last_loss_difference": last}
            for work, name in (("training, first epoch", "first"), ("training, features cached", "cached")):
                rows.append(
                    rate_row(cell, work, PEER_NAMES[kind], "questions/s", asked, seconds[name], seconds[kind], **extra)
                )
            if kind == "hf":
                for work, ours, other in (
                    ("tokens without padding", real, theirs.tokens),
                    ("tokens with padding", positions, theirs.positions),
                ):
                    rows.append(
                        rate_row(
                            cell, work, PEER_NAMES[kind], "tokens/s", (ours, other), seconds["cached"], seconds[kind]
                        )
                    )
        step = [value / cell.steps for value in seconds["cached"]]
        rows.append(row(cell, "time of a step", "bare loop", "s", step, [value / cell.steps for value in bare]))
        speed = [self.flops.of(flat) / value / 1e9 for value in seconds["cached"]]
        rows.append(row(cell, "share of the peak", "matrix product", "GFLOP/s", speed, [peak / 1e9] * len(speed)))
        return rows

    def finish(self) -> None:
        """Leave both sides with the same trained weights, for the evaluation: trained for long enough to answer as
        briefly as the task does, or most of the time would go into the tokens of rambling answers.
        """
        longer = dataclasses.replace(self.cell, steps=max(self.cell.steps, LEARNING_STEPS))
        self.ours.start.restore()
        Ours(self.model, longer).run(training_samples(longer))
        values, theirs = self.model.trainable(), self.peer.trainable()
        with torch.no_grad():
            for name, parameter in theirs.items():
                parameter.copy_(values[name])
        for parameter in theirs.values():
            parameter.grad = None


def missing_peers(peers: Sequence[str]) -> tuple[list[str], list[str]]:
    """The trainers that can be run, and why others can't."""
    missing = trl_missing() if "trl" in peers else ""
    return [kind for kind in peers if kind in PEER_NAMES and not (kind == "trl" and missing)], [missing] * bool(missing)


def rate_row(
    cell: Cell,
    work: str,
    peer: str,
    unit: str,
    amount: int | tuple[int, int],
    ours: Sequence[float],
    theirs: Sequence[float],
    **extra: Any,
) -> dict[str, Any]:
    """A row of speeds: `amount` (of ours and theirs) per second."""
    done = amount if isinstance(amount, tuple) else (amount, amount)
    return row(cell, work, peer, unit, [done[0] / s for s in ours], [done[1] / s for s in theirs], **extra)


def row(
    cell: Cell, work: str, peer: str, unit: str, ours: Sequence[float], theirs: Sequence[float], **extra: Any
) -> dict[str, Any]:
    """A row of the document: medians, the median ratio ours / theirs of the repetitions, and its range."""
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    return {
        "work": work,
        "ours": statistics.median(ours),
        "theirs": statistics.median(theirs),
        "unit": unit,
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "peer": peer,
        "dtype": cell.dtype,
        "image_tokens": cell.image_tokens,
        "questions": cell.questions,
        **extra,
    }


def _gradient(parameters: dict[str, torch.nn.Parameter]) -> dict[str, Tensor]:
    return {name: p.grad.detach().float().clone() for name, p in parameters.items() if p.grad is not None}
