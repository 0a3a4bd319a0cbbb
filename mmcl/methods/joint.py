"""Joint training: the upper bound."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from mmcl.data.types import Samples, Task
from mmcl.protocols import Method, Model


class Joint(Method):
    """Multi-task training on all data seen so far: the usual upper bound of a stream.

    At each stage the model starts again from where it was before the first task and trains on the union of the tasks up
    to this one. The last row is therefore multi-task training on the whole stream, with as many steps as the sequential
    run takes in all.

    Args:
        restart: start again at each stage; False continues from the stage before, with more steps in total.
    """

    owns = frozenset({"training data"})

    def __init__(self, *, restart: bool = True) -> None:
        self.restart = restart
        self._start: dict[str, Tensor] = {}
        self._seen: tuple[Task, ...] = ()

    def begin_task(self, model: Model, task: Task, seen: Sequence[Task]) -> None:
        """Go back to the start."""
        self._seen = tuple(seen)
        if not self._start:
            self._start = model.snapshot()
        elif self.restart:
            parameters = model.trainable()
            for name, tensor in self._start.items():
                parameters[name].data.copy_(tensor)

    def training_samples(self, model: Model, task: Task, samples: Samples, rng: random.Random) -> Samples:
        """The union of all tasks seen, shuffled."""
        union = [*samples, *(sample for earlier in self._seen for sample in earlier.train)]
        rng.shuffle(union)
        return union

    def state_dict(self) -> dict[str, Any]:
        """The start."""
        return {"start": dict(self._start)}

    def load_state_dict(self, model: Model, state: Mapping[str, Any]) -> None:
        """The reverse."""
        self._start = dict(state["start"])

    def stored_bytes(self) -> Mapping[str, int]:
        """The copy of the start."""
        return {"start": sum(tensor.numel() * tensor.element_size() for tensor in self._start.values())}
