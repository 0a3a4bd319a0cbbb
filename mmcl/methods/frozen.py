"""The model as it is."""

from __future__ import annotations

from collections.abc import Sequence

from mmcl.data.types import Task
from mmcl.protocols import Method, Model


class Frozen(Method):
    """Nothing trains: forgetting is exactly 0, and the row says what the model could do without training."""

    needs_boundaries = False

    def begin_task(self, model: Model, task: Task, seen: Sequence[Task]) -> None:
        """Freeze everything; the loop skips training where no parameter trains."""
        model.set_trainable(())
