"""Alignment with preferences: the preferred answer should gain on the rejected one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from mmcl.data.types import Sample, Samples, Turn
from mmcl.errors import UserError
from mmcl.protocols import Batch, LossSum, Model, Objective, Output, Route

ROLE = "preference"
"""Metadata key of a pair's two rows: `chosen` or `rejected`."""

_Key = tuple[str, str, str]


class DPO(Objective):
    """Direct preference optimisation (Rafailov et al. 2023, 2305.18290, equation 7).

    The reference is the stage's parent: its log-probabilities of all answers are taken once, before the first step, so
    no second model is kept. Samples that are no pairs (replayed ones of instruction tuning) train on their answers.

    Args:
        beta: how strongly the model is held to the reference; larger is stronger.
        answers_weight: weight of the preferred answer's own cross-entropy (Pang et al. 2024, 2404.19733); it
            keeps the probability of preferred answers from falling along with that of the rejected ones.
    """

    def __init__(self, *, beta: float = 0.1, answers_weight: float = 0.0) -> None:
        wrong = {"beta": beta <= 0, "answers_weight": answers_weight < 0}
        for name, bad in wrong.items():
            if bad:
                raise UserError("is too small", where=f"dpo.{name}", hint="beta > 0, answers_weight >= 0")
        self.beta = beta
        self.answers_weight = answers_weight
        self._reference: dict[_Key, float] = {}
        self._noted: list[tuple[list[_Key], Tensor]] = []  # margins as they were at each batch

    def begin(self, model: Model, samples: Samples, routes: Sequence[Route]) -> None:
        """Log-probabilities of all answers under the stage's parent."""
        pairs = [(row, route) for s, route in zip(samples, routes, strict=True) if s.rejected for row in self.rows(s)]
        rows = [row for row, _ in pairs]
        supervise = [self.supervise(row) for row in rows]
        with torch.no_grad():
            for batch in model.pack(rows, [route for _, route in pairs], supervise=supervise):
                values = _log_probabilities(batch, model.forward(batch)).tolist()
                for row, value in zip(batch.samples, values, strict=True):
                    self._reference[_key(row)] = value

    def rows(self, sample: Sample) -> Samples:
        """A pair's two answers to the same question; they share images and question in a packed row."""
        if not sample.rejected:
            return (sample,)
        other = (*sample.turns[:-1], Turn("assistant", sample.rejected))
        return (
            sample.replace(metadata={**sample.metadata, ROLE: "chosen"}),
            sample.replace(turns=other, metadata={**sample.metadata, ROLE: "rejected"}),
        )

    def supervise(self, row: Sample) -> tuple[bool, ...]:
        """The last answer of a pair: what was said before is given."""
        if row.rejected:
            return (*(False,) * (len(row.turns) - 1), True)
        return super().supervise(row)

    def counts(self, batch: Batch) -> Mapping[str, float]:
        """`pairs`, and the supervised tokens of rows that are no pairs."""
        chosen, _, alone = _parts(batch)
        tokens = int(alone[batch.target_sample].sum())
        counts = {"pairs": float(len(chosen)), "tokens": float(tokens)}
        if self.answers_weight:
            counts["answers"] = float(torch.isin(batch.target_sample, torch.tensor(chosen)).sum())
        return {name: count for name, count in counts.items() if count}

    def loss(self, model: Model, batch: Batch, out: Output) -> Mapping[str, LossSum]:
        """Minus log sigmoid of beta times the growth of a pair's log-ratio; cross-entropy for rows that are none."""
        counts = self.counts(batch)
        chosen, rejected, alone = _parts(batch)
        logs = _token_logs(batch, out)
        of_row = _summed(batch, logs)
        totals: dict[str, Tensor] = {}
        if chosen:
            reference = torch.tensor([self._reference[_key(row)] if row.rejected else 0.0 for row in batch.samples])
            gain = of_row - reference.to(of_row)
            margin = self.beta * (gain[chosen] - gain[rejected])
            totals["pairs"] = -logsigmoid(margin).sum()
            # Not read before the stage is over: an accelerator must not be waited for at each step.
            self._noted.append(([_key(batch.samples[index]) for index in chosen], margin.detach()))
        if "tokens" in counts:
            totals["tokens"] = -logs[alone.to(logs.device)[batch.target_sample.to(logs.device)]].sum()
        if "answers" in counts:
            totals["answers"] = -self.answers_weight * of_row[chosen].sum()
        return {name: LossSum(totals[name], count) for name, count in counts.items()}

    def summary(self) -> Mapping[str, float]:
        """Mean margin (times beta) and share of pairs with a positive one, when first and when last trained on."""
        first: dict[_Key, float] = {}
        last: dict[_Key, float] = {}
        for keys, margins in self._noted:
            for key, value in zip(keys, margins.tolist(), strict=True):
                first.setdefault(key, value)
                last[key] = value
        if not last:
            return {}
        return {
            "pairs": len(last),
            "margin_first": sum(first.values()) / len(last),
            "margin_last": sum(last.values()) / len(last),
            "preferred_last": sum(value > 0 for value in last.values()) / len(last),
        }


def _key(row: Sample) -> _Key:
    return row.task, row.id, str(row.metadata[ROLE])


def _parts(batch: Batch) -> tuple[list[int], list[int], Tensor]:
    """Indices of the preferred and, in the same order, of the rejected rows; and bool [samples]: which are no pairs."""
    waiting: dict[tuple[str, str], list[int]] = {}
    chosen: list[int] = []
    rejected: list[int] = []
    alone = torch.zeros(len(batch.samples), dtype=torch.bool)
    for index, row in enumerate(batch.samples):
        if not row.rejected:
            alone[index] = True
            continue
        other = waiting.setdefault((row.task, row.id), [])
        if other and batch.samples[other[-1]].metadata[ROLE] != row.metadata[ROLE]:
            pair = (other.pop(), index)
            good, bad = pair if row.metadata[ROLE] == "rejected" else pair[::-1]
            chosen.append(good)
            rejected.append(bad)
        else:
            other.append(index)
    if any(waiting.values()):
        raise RuntimeError("a batch holds one answer of a pair and not the other")
    return chosen, rejected, alone


def _token_logs(batch: Batch, out: Output) -> Tensor:
    """Log-probability [N] of each target."""
    targets = batch.targets.to(out.logits.device)
    return out.logits.float().log_softmax(-1).gather(-1, targets[:, None])[:, 0]


def _summed(batch: Batch, logs: Tensor) -> Tensor:
    """Log-probability [samples] of each row's supervised tokens."""
    total = torch.zeros(len(batch.samples), dtype=logs.dtype, device=logs.device)
    return total.index_add(0, batch.target_sample.to(logs.device), logs)


def _log_probabilities(batch: Batch, out: Output) -> Tensor:
    return _summed(batch, _token_logs(batch, out))
