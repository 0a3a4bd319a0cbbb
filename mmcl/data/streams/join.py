"""Several streams as one: the stages of a vertical chain, or data sets of different kinds side by side."""

from __future__ import annotations

from collections.abc import Sequence

from mmcl.data.types import Task
from mmcl.errors import UserError
from mmcl.protocols import Stream


class Join:
    """The tasks of several streams, one stream after another.

    Args:
        streams: in order.
    """

    def __init__(self, *, streams: tuple[Stream, ...]) -> None:
        if not streams:
            raise UserError("there are no streams", where="stream.streams", hint="list at least one")
        self.streams = streams

    def tasks(self) -> Sequence[Task]:
        """The tasks in order."""
        return [task for stream in self.streams for task in stream.tasks()]
