"""The replay memory: what is kept of earlier tasks, within a budget that is never exceeded."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from mmcl.data.types import ImageSource, Samples
from mmcl.errors import UserError
from mmcl.memory.intake import Entry, FeatureSource, Intake, LogitSource
from mmcl.memory.quota import QUOTAS, Cell, QuotaName, cell_of, divide_bytes, divide_rows
from mmcl.memory.records import (
    FIELDS,
    STORES,
    FeatureType,
    Record,
    StoreName,
    add_sizes,
    image_bytes,
    kept_images,
    make_record,
)
from mmcl.memory.selection import SELECTIONS, random_key
from mmcl.memory.state import pack_state, unpack_state

CHUNK = 32


class ReplayMemory:
    """Records of earlier tasks in cells with quotas, within a budget in bytes or in rows.

    An image that several records refer to is stored and counted once. Bytes are those of what is kept (encoded images,
    tensors, utf-8 text, provenance), without the overhead of Python objects or of the file they are saved to.

    Args:
        budget_bytes: the memory is never larger, not even while rows come in.
        budget_rows: the same in rows; exactly one of the two is given.
        quota: what a cell is: `task`, `task+modality`, `task+modality+group` have equal shares per cell;
            `proportional` has shares by the number of rows offered. A share that a cell does not need is handed on.
        selection: which rows of a cell stay (`mmcl.memory.selection.SELECTIONS`).
        store: what is kept of a row: `full`; `features` of a frozen encoder; only the `question`; only the `text`.
        feature_dtype: of stored features.
        seed: of the choice inside cells.

    Raises:
        UserError: an unknown name, or not exactly one budget.
    """

    def __init__(
        self,
        *,
        budget_bytes: int | None = None,
        budget_rows: int | None = None,
        quota: QuotaName = "task+modality+group",
        selection: str = "reservoir",
        store: StoreName = "full",
        feature_dtype: FeatureType = "fp32",
        seed: int = 0,
    ) -> None:
        for option, value, known in (
            ("quota", quota, QUOTAS),
            ("selection", selection, tuple(SELECTIONS)),
            ("store", store, STORES),
        ):
            if value not in known:
                raise UserError(f"unknown {option} {value!r}", where=option, hint=f"choose from {', '.join(known)}")
        if (budget_bytes is None) == (budget_rows is None):
            raise UserError("give the budget either in bytes or in rows", where="budget")
        budget = budget_bytes if budget_bytes is not None else budget_rows
        if budget is None or budget < 1:
            raise UserError(f"a budget of {budget} holds nothing", where="budget", hint="give at least 1")
        self.budget_bytes = budget_bytes
        self.budget_rows = budget_rows
        self.quota = quota
        self.selection = selection
        self.store = store
        self.feature_dtype: FeatureType = feature_dtype
        self.seed = seed
        self._rank = SELECTIONS[selection]
        self._records: dict[int, Record] = {}
        self._images: dict[str, ImageSource] = {}
        self._users: dict[str, int] = {}
        self._sizes = dict.fromkeys(FIELDS, 0)
        self._seen: dict[Cell, int] = {}
        self._step = 0

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records.values())

    def get(self, key: int | None) -> Record | None:
        """The record of that key (`Record.key`), if it is held."""
        return None if key is None else self._records.get(key)

    @property
    def bytes(self) -> int:
        """Bytes kept now."""
        return sum(self._sizes.values())

    @property
    def tasks(self) -> set[str]:
        """Tasks of which something is kept."""
        return {record.task for record in self}

    # ------------------------------------------------------------------------------------------------------ filling

    def add(
        self,
        samples: Samples,
        *,
        task: str,
        features: FeatureSource | None = None,
        logits: LogitSource | None = None,
    ) -> None:
        """Offer the samples of the task that was just learned; the memory keeps what quotas and selection say.

        A sample that is held already is not counted again.

        Args:
            samples: all of this task; rows of another task are refused, since they came from a memory.
            task: its name.
            features: needed for `store="features"`.
            logits: keep the teacher's distribution with each record.

        Raises:
            UserError: a row of another task; an unreadable image; a budget in which no record fits.
        """
        for sample in samples:
            if sample.task != task:
                raise UserError(
                    f"sample {sample.id} is a row of task {sample.task!r}, but the memory is filled with task {task!r}",
                    where="replay memory",
                    hint="offer only samples of the current task: a replayed row must not be stored again as a new one",
                )
        if self.store == "features" and features is None:
            raise ValueError("store='features' needs a FeatureSource")
        entries = [Entry(record) for record in self]
        known = set(self._records)
        for sample in samples:
            key = random_key(sample, self.seed)
            if key in known:
                continue
            known.add(key)
            record = make_record(sample, self.store, key=key, step=self._step)
            self._step += 1
            cell = self._cell(record)
            self._seen[cell] = self._seen.get(cell, 0) + 1
            entries.append(Entry(record, new=True, images=kept_images(sample, self.store)))
        intake = Intake(features if self.store == "features" else None, logits, self.feature_dtype)
        chosen = self._choose(entries, intake)
        kept = {entry.record.key for entry in chosen}
        for key in [key for key in self._records if key not in kept]:
            self._remove(key)
        new = [entry for entry in chosen if entry.new]
        for start in range(0, len(new), CHUNK):
            for record in intake.build(new[start : start + CHUNK]):
                self._insert(record)

    def forget(self, task: str) -> int:
        """Delete everything that is kept of a task; returns the number of its records."""
        keys = [key for key, record in self._records.items() if record.task == task]
        for key in keys:
            self._remove(key)
        self._seen = {cell: seen for cell, seen in self._seen.items() if cell[0] != task}
        return len(keys)

    def score(self, measure: Callable[[Samples], Sequence[float]], *, new: bool) -> None:
        """Measure the loss of records: of the `new` ones as their `Record.score`, of the others for `Record.drift`."""
        records = [record for record in self if (record.score is None) == new]
        for record, value in zip(records, measure([record.sample() for record in records]), strict=True):
            first = value if record.score is None else record.score
            self._records[record.key] = dataclasses.replace(record, score=first, drift=value - first)

    def _cell(self, record: Record) -> Cell:
        return cell_of(self.quota, task=record.task, modality=record.modality, group=record.group)

    def _choose(self, entries: Sequence[Entry], intake: Intake) -> list[Entry]:
        """Which of the entries stay."""
        cells: dict[Cell, list[Entry]] = {}
        for entry in entries:
            cells.setdefault(self._cell(entry.record), []).append(entry)
        ranked = [sorted(cell, key=lambda entry: self._rank(entry.record.candidate)) for cell in cells.values()]
        weights = [self._seen[cell] if self.quota == "proportional" else 1 for cell in cells]
        if self.budget_rows is not None:
            counts = divide_rows(self.budget_rows, [len(cell) for cell in ranked], weights)
            return [entry for cell, count in zip(ranked, counts, strict=True) for entry in cell[:count]]
        budget = self.budget_bytes or 0
        chosen = [entry for cell in divide_bytes(budget, ranked, weights, intake.size) for entry in cell]
        if entries and not chosen:
            smallest = min(own + sum(images.values()) for own, images in map(intake.size, entries))
            raise UserError(
                f"the budget of {budget:,} bytes holds no record: the smallest one takes {smallest:,} bytes",
                where="replay memory",
                hint=f"set `budget` to at least {smallest}, count in `rows`, or keep less with "
                "`store: features`, `question` or `text`",
            )
        return chosen

    def _insert(self, record: Record) -> None:
        images = []
        for image in record.images:
            if image.digest not in self._images:
                self._images[image.digest] = image
                add_sizes(self._sizes, dict([image_bytes(image)]))
            self._users[image.digest] = self._users.get(image.digest, 0) + 1
            images.append(self._images[image.digest])
        record = dataclasses.replace(record, images=tuple(images))
        self._records[record.key] = record
        add_sizes(self._sizes, record.own_sizes())

    def _remove(self, key: int) -> None:
        record = self._records.pop(key)
        add_sizes(self._sizes, record.own_sizes(), -1)
        for image in record.images:
            self._users[image.digest] -= 1
            if not self._users[image.digest]:
                del self._users[image.digest]
                add_sizes(self._sizes, dict([image_bytes(self._images.pop(image.digest))]), -1)

    # ------------------------------------------------------------------------------------------------------ drawing

    def sample(self, n: int, rng: random.Random, *, exclude: Collection[str] = ()) -> list[Record]:
        """Draw records: cells in turn, so that a rare modality is not drowned, and uniformly within a cell.

        Every cell comes once in each round, in random order, and a cell's records come once each before any comes
        again. `proportional` quotas draw uniformly from all records instead.

        Args:
            n: how many; more than the memory holds means that records come again.
            rng: the same state and the same memory give the same records.
            exclude: tasks that are not drawn, such as the current one.

        Returns:
            n records; none if there is nothing to draw from.
        """
        cells: dict[Cell, list[Record]] = {}
        for record in self:
            if record.task not in exclude:
                cells.setdefault(() if self.quota == "proportional" else self._cell(record), []).append(record)
        decks: dict[Cell, list[Record]] = {cell: [] for cell in cells}
        drawn: list[Record] = []
        turn: list[Cell] = []
        while cells and len(drawn) < n:
            if not turn:
                turn = list(cells)
                rng.shuffle(turn)
            cell = turn.pop()
            if not decks[cell]:
                decks[cell] = list(cells[cell])
                rng.shuffle(decks[cell])
            drawn.append(decks[cell].pop())
        return drawn

    # ---------------------------------------------------------------------------------------------- report and state

    def report(self) -> dict[str, Any]:
        """Rows and bytes: in all, by field and by cell.

        An image that several cells refer to is in the bytes of each; `shared` is what is counted more than once so.
        """
        cells: dict[Cell, list[Record]] = {cell: [] for cell in self._seen}
        for record in self:
            cells.setdefault(self._cell(record), []).append(record)
        table: list[dict[str, Any]] = []
        for cell, records in cells.items():
            images = {image.digest: image_bytes(image)[1] for record in records for image in record.images}
            size = sum(sum(record.own_sizes().values()) for record in records) + sum(images.values())
            named = dict(zip(("task", "modality", "group"), cell, strict=False))
            table.append({**named, "seen": self._seen.get(cell, 0), "rows": len(records), "bytes": size})
        return {
            "rows": len(self),
            "bytes": self.bytes,
            "budget_rows": self.budget_rows,
            "budget_bytes": self.budget_bytes,
            "fields": dict(self._sizes),
            "cells": table,
            "shared": sum(row["bytes"] for row in table) - self.bytes,
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything that is kept; budgets and names are the recipe's."""
        seen = [{"cell": list(cell), "rows": rows} for cell, rows in self._seen.items()]
        return {"step": self._step, "seen": seen, "store": self.store, **pack_state(list(self), self._images)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The reverse; a smaller budget than when it was saved keeps the best ranked records.

        Raises:
            UserError: the state was saved with another `store` or `quota`.
        """
        seen = {tuple(row["cell"]): int(row["rows"]) for row in state["seen"]}
        width = len(cell_of(self.quota, task="", modality="", group=""))
        if state["store"] != self.store or {len(cell) for cell in seen} - {width}:
            raise UserError(
                "the saved memory was filled with another `store` or `quota`",
                where="replay memory",
                hint="keep both options, or start the run again",
            )
        for key in list(self._records):
            self._remove(key)
        self._step = int(state["step"])
        self._seen = seen
        records = unpack_state(state)
        kept = {entry.record.key for entry in self._choose([Entry(record) for record in records], Intake())}
        for record in records:
            if record.key in kept:
                self._insert(record)
