"""Evaluation: greedy answers by mmcl and by transformers' `generate`, compared, then timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from mmcl.bench.data import test_samples, unseen
from mmcl.bench.options import Cell
from mmcl.bench.sides import LlavaPeer, Rows
from mmcl.bench.train import Disagreement, rate_row
from mmcl.bench.trainers import synchronise
from mmcl.model.assembly import Assembly
from mmcl.model.generate import stop_tokens


class Answers:
    """Both sides of the evaluation, with the same weights.

    Args:
        cell: what is measured.
        model: mmcl's side.
        peer: the other side.
        say: gets a line on what goes on.
    """

    def __init__(
        self, cell: Cell, model: Assembly, peer: LlavaPeer, say: Callable[[str], None] = lambda _: None
    ) -> None:
        self.cell, self.model, self.peer, self.say = cell, model, peer, say
        self.samples = test_samples(cell)
        items = model.items(self.samples, None, [[False] * len(sample.turns) for sample in self.samples])
        self.rows = Rows(items, peer)
        self.stop = stop_tokens(model)
        self.generated = 0

    def ours(self, salt: str) -> list[str]:
        """Answers of mmcl; no image has been encoded before."""
        return self.model.generate(unseen(self.samples, salt))

    @torch.no_grad()
    def theirs(self, batch_size: int) -> list[str]:
        """Answers of `generate` over rows padded on the left; every row's image is encoded."""
        answers: list[str] = []
        self.generated = 0
        self.peer.eval()
        for start in range(0, len(self.samples), batch_size):
            indices = list(range(start, min(start + batch_size, len(self.samples))))
            batch = {k: v.to(self.cell.device) for k, v in self.rows.collate(indices, side="left").items()}
            out: Any = self.peer.language.generate(
                inputs_embeds=self.peer.embed(batch["input_ids"], batch["image_mask"], batch["pixel_values"]),
                attention_mask=batch["attention_mask"],
                max_new_tokens=self.cell.max_new_tokens,
                do_sample=False,
                num_beams=1,
                eos_token_id=sorted(self.stop),
                pad_token_id=self.rows.pad,
            )
            for ids in out.tolist():
                end = next((place for place, token in enumerate(ids) if token in self.stop), len(ids))
                self.generated += end
                answers.append(str(self.peer.tokenizer.decode(ids[:end], skip_special_tokens=True)).strip())
        return answers

    def measure(self) -> list[dict[str, Any]]:
        """Rows of the document: against batch size 1, and against padded batches.

        Raises:
            Disagreement: an answer differs in float32. In bfloat16 near ties are decided by rounding: the share of
                equal answers is told.
        """
        cell = self.cell
        sizes = (1, cell.generate_batch)
        ours: list[float] = []
        theirs: dict[int, list[float]] = {size: [] for size in sizes}
        equal: dict[int, int] = {}
        for repeat in range(cell.repeats + 1):
            seconds, answers = self._timed(lambda repeat=repeat: self.ours(f"test {repeat}"))  # type: ignore[misc]
            if repeat:
                ours.append(seconds)
            for size in sizes:
                seconds, others = self._timed(lambda size=size: self.theirs(size))  # type: ignore[misc]
                if repeat:
                    theirs[size].append(seconds)
                else:
                    equal[size] = self._check(answers, others, size)
            if repeat:
                self.say(f"evaluation, {cell.label}: repetition {repeat} of {cell.repeats}")
        return [
            rate_row(
                cell,
                "evaluation",
                f"generate, batch {size}",
                "questions/s",
                len(self.samples),
                ours,
                theirs[size],
                answers_equal=equal[size] == len(self.samples),
                answers_differ=len(self.samples) - equal[size],
                answers=len(self.samples),
                tokens_per_answer=self.generated / len(self.samples),
            )
            for size in sizes
        ]

    def _timed(self, work: Callable[[], list[str]]) -> tuple[float, list[str]]:
        synchronise(self.cell.device)
        begin = time.perf_counter()
        answers = work()
        synchronise(self.cell.device)
        return time.perf_counter() - begin, answers

    def _check(self, ours: Sequence[str], theirs: Sequence[str], size: int) -> int:
        differ = [place for place, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b]
        if differ and self.cell.dtype == "fp32":
            first = differ[0]
            raise Disagreement(
                f"{self.cell.label}: {len(differ)} of {len(ours)} answers differ from those of generate in batches of "
                f"{size}, such as {ours[first]!r} and {theirs[first]!r} to {self.samples[first].turns[-1].text!r}"
            )
        return len(ours) - len(differ)
