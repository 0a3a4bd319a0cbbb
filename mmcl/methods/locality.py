"""Editing with a locality loss: what has nothing to do with the edit should stay as it is."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from torch import Tensor

from mmcl.data.types import Sample, Samples, Task, Turn
from mmcl.errors import Problem, UserError
from mmcl.methods.distillation import excerpt, kl_divergence, supervised, teach
from mmcl.methods.replay import interleave
from mmcl.protocols import Batch, LossSum, Method, Model, Output, Stream

UNRELATED = "unrelated"
"""The task that a source's questions belong to while an edit trains."""


class Locality(Method):
    """Hold the model to what it said before, on questions of another source (the locality loss of MEND, 2110.11309).

    The questions are answered by the model as it was before the stage (greedy, by the base route); its answers are the
    targets, and its distribution at their tokens is distilled.

    Args:
        source: a stream whose questions have nothing to do with the edits; training samples count, then test ones.
        ratio: share of these questions among all rows, in [0, 1).
        weight: of the divergence from the model before the stage.
        temperature: of the softened distributions.
        seed: of the choice of questions.
    """

    def __init__(
        self, *, source: Stream, ratio: float = 0.5, weight: float = 1.0, temperature: float = 1.0, seed: int = 0
    ) -> None:
        wrong = [
            ("ratio", not 0 <= ratio < 1, "a share in [0, 1)"),
            ("weight", weight < 0, "not negative"),
            ("temperature", temperature <= 0, "positive"),
        ]
        problems = [Problem(f"locality.{name}", "is out of range", hint) for name, bad, hint in wrong if bad]
        if problems:
            raise UserError(problems=problems)
        self.source = source
        self.ratio = ratio
        self.weight = weight
        self.temperature = temperature
        self.seed = seed
        self._questions: list[Sample] = []
        self._answered: list[Sample] | None = None
        self._previous: dict[str, Tensor] = {}

    def begin_task(self, model: Model, task: Task, seen: Sequence[Task]) -> None:
        """Take the model as it is as the teacher.

        Raises:
            UserError: the source has no questions.
        """
        if not self._questions:
            self._questions = [
                sample.replace(
                    id=f"{each.name}/{sample.id}",
                    task=UNRELATED,
                    turns=sample.turns[:-1] if sample.reply else sample.turns,
                    answers=(),
                    rejected="",
                )
                for each in self.source.tasks()
                for sample in (*each.train, *each.test)
            ]
        if not self._questions:
            raise UserError("the source has no questions", where="locality.source", hint="name another stream")
        self._previous = model.snapshot()
        self._answered = None

    def training_samples(self, model: Model, task: Task, samples: Samples, rng: random.Random) -> Samples:
        """The samples with unrelated questions between them."""
        self._previous |= model.snapshot([name for name in model.trainable() if name not in self._previous])
        count = round(len(samples) * self.ratio / (1 - self.ratio))
        if self._answered is None:  # before the first step: by the model as it was
            chooser = random.Random(f"locality {self.seed} {task.name}")
            chosen = chooser.sample(self._questions, min(count, len(self._questions)))
            self._answered = [
                question.replace(turns=(*question.turns, Turn("assistant", answer)))
                for question, answer in zip(chosen, model.generate(chosen) if chosen else [], strict=True)
            ]
        repeated = [self._answered[place % len(self._answered)] for place in range(count)] if self._answered else []
        rng.shuffle(repeated)
        return interleave(samples, repeated)

    def loss_counts(self, batch: Batch) -> Mapping[str, float]:
        """Supervised positions of unrelated rows."""
        count = int(supervised(batch, self._unrelated(batch)).sum()) if self.weight else 0
        return {"unrelated": count} if count else {}

    def loss(self, model: Model, batch: Batch, out: Output) -> Mapping[str, LossSum]:
        """KL divergence from the model before the stage, on unrelated rows."""
        counts = self.loss_counts(batch)
        if not counts:
            return {}
        part = excerpt(batch, self._unrelated(batch))
        theirs = teach(model, part.batch, self._previous, hidden=False)
        divergence = kl_divergence(part.of(out).logits, theirs.logits, temperature=self.temperature)
        return {"unrelated": LossSum(self.weight * divergence, counts["unrelated"])}

    def end_task(self, model: Model, task: Task) -> None:
        """Let the teacher go."""
        self._previous, self._answered = {}, None

    @staticmethod
    def _unrelated(batch: Batch) -> list[int]:
        return [index for index, sample in enumerate(batch.samples) if sample.task == UNRELATED]
