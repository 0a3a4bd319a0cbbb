"""General data mixed into a stage: the plainest guard against losing general ability to a domain."""

from __future__ import annotations

import random
from collections.abc import Sequence

from mmcl.data.types import Sample, Samples, Task
from mmcl.errors import UserError
from mmcl.methods.replay import interleave
from mmcl.protocols import Method, Model, Stream

GENERAL = "general"
"""The task that mixed-in samples belong to."""


class GeneralMix(Method):
    """Mix samples of a general source into every epoch, at an exact ratio, spread evenly.

    Usual ratios: 0.02 (SaulLM, 2403.03883), 0.05 (PMC-LLaMA, 2304.14454), 0.25 (Me-LLaMA, 2402.12749). Each epoch goes
    on where the last one stopped in the source, which is shuffled once. The mixture is in the stage's manifest.

    Args:
        source: a stream; the training samples of all its tasks are the general data.
        ratio: share of general samples among all that are trained on, in [0, 1).
        seed: of the source's order.
    """

    needs_boundaries = False

    def __init__(self, *, source: Stream, ratio: float = 0.1, seed: int = 0) -> None:
        if not 0 <= ratio < 1:
            raise UserError(f"{ratio} is out of range", where="general_mix.ratio", hint="a share in [0, 1)")
        self.source = source
        self.ratio = ratio
        self.seed = seed
        self._general: list[Sample] = []
        self._used = 0

    def begin_task(self, model: Model, task: Task, seen: Sequence[Task]) -> None:
        """Read the source, the first time.

        Raises:
            UserError: it has no training samples.
        """
        if self._general:
            return
        for each in self.source.tasks():
            self._general += [sample.replace(id=f"{each.name}/{sample.id}", task=GENERAL) for sample in each.train]
        if not self._general:
            raise UserError("the source has no training samples", where="general_mix.source", hint="name another")
        random.Random(f"general {self.seed}").shuffle(self._general)

    def training_samples(self, model: Model, task: Task, samples: Samples, rng: random.Random) -> Samples:
        """The samples with general ones between them."""
        count = round(len(samples) * self.ratio / (1 - self.ratio))
        size = len(self._general)
        chosen = [self._general[(self._used + place) % size] for place in range(count)]
        self._used += count
        return interleave(samples, chosen)

    def state_dict(self) -> dict[str, int]:
        """Where the source goes on."""
        return {"used": self._used}

    def load_state_dict(self, model: Model, state: dict[str, int]) -> None:  # type: ignore[override]
        """The reverse."""
        self._used = state["used"]
