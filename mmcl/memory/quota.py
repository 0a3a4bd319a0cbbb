"""How a budget is divided over the cells of the replay memory, in rows or in bytes.

A cell is a set of rows that share a quota: those of one task, of one (task, modality), or of one (task, modality,
group). What a cell does not need is handed on to the others.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Generic, Literal, TypeVar, get_args

from mmcl.errors import UserError

QuotaName = Literal["task", "task+modality", "task+modality+group", "proportional"]
QUOTAS: tuple[str, ...] = get_args(QuotaName)

Cell = tuple[str, ...]
Size = tuple[int, Mapping[str, int]]
"""Bytes of a row: its own, and those of each image that it refers to, by digest."""

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
T = TypeVar("T")


def parse_bytes(value: str | int, *, where: str = "budget") -> int:
    """`"2MB"` -> 2,000,000 (KB, MB, GB are powers of 1,000; KiB, MiB, GiB of 1,024); a number is bytes.

    Raises:
        UserError: not a size, or less than one byte.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(value))
    size = int(float(match[1]) * _UNITS[match[2].upper()]) if match and match[2].upper() in _UNITS else 0
    if size < 1:
        raise UserError(
            f"{value!r} is not a number of bytes", where=where, hint='write "2MB", "500KB", "1GiB" or a number of bytes'
        )
    return size


def cell_of(quota: str, *, task: str, modality: str, group: str) -> Cell:
    """The cell of a row. `proportional` has the default's cells, with quotas by their share of all rows offered."""
    if quota == "task":
        return (task,)
    return (task, modality) if quota == "task+modality" else (task, modality, group)


def divide_rows(budget: int, demand: Sequence[int], weights: Sequence[int]) -> list[int]:
    """Rows for each cell, exact: they sum to the budget, or to the whole demand if that is less.

    Cells that need less than their share get what they need, and the rest is divided again; the last rows go by the
    largest remainder, ties to earlier cells. With equal weights no two unfilled cells differ by more than one row.

    Args:
        budget: rows in all.
        demand: rows that each cell has.
        weights: positive; shares are proportional to them.
    """
    quotas = [0] * len(demand)
    left = budget
    hungry = [i for i, rows in enumerate(demand) if rows]
    while hungry:
        total = sum(weights[i] for i in hungry)
        full = [i for i in hungry if demand[i] * total <= left * weights[i]]
        if not full:
            for i in hungry:
                quotas[i] = left * weights[i] // total
            rest = left - sum(quotas[i] for i in hungry)
            for i in sorted(hungry, key=lambda i: -(left * weights[i] % total))[:rest]:
                quotas[i] += 1
            break
        for i in full:
            quotas[i] = demand[i]
        left -= sum(demand[i] for i in full)
        hungry = [i for i in hungry if i not in set(full)]
    return quotas


def divide_bytes(
    budget: int, cells: Sequence[Sequence[T]], weights: Sequence[int], size: Callable[[T], Size]
) -> list[list[T]]:
    """Which rows of each cell to keep so that all of them together fit the budget.

    Every cell has the same share of bytes (times its weight), the largest one with which the kept rows fit; images that
    several rows refer to count once in all. Bytes that are left go to cells in turn, one row at a time. In a cell the
    best rows are kept up to the first that does not fit: going on to smaller ones would favour small rows. Only rows
    that are larger than an equal share of the budget come last, smallest first, and never block a cell.

    Args:
        budget: bytes in all.
        cells: each cell's rows, best first.
        weights: positive; shares are proportional to them.
        size: bytes of a row. Asked only of rows that may fit, and not more than once for each.
    """
    whole = sum(weights)
    queues = [_Queue(cell, size, budget * weight // whole, budget) for cell, weight in zip(cells, weights, strict=True)]

    def leading(level: int) -> list[int]:
        """Rows of each cell within its share of `level` bytes."""
        return [queue.within(level * weight // whole) for queue, weight in zip(queues, weights, strict=True)]

    def union(counts: Sequence[int]) -> tuple[int, dict[str, int]]:
        kept = [row for queue, count in zip(queues, counts, strict=True) for row in queue.sizes[:count]]
        pictures = {key: n for _, of_row in kept for key, n in of_row.items()}
        return sum(own for own, _ in kept) + sum(pictures.values()), pictures

    low, high = budget, 2 * budget  # at `low` the rows would fit even if no two cells shared an image
    counts = leading(low)
    while any(queue.get(count) for queue, count in zip(queues, counts, strict=True)):
        more = leading(high)
        if union(more)[0] > budget:
            break
        low, high, counts = high, 2 * high, more
    while high - low > 1:
        middle = (low + high) // 2
        tried = leading(middle)
        if union(tried)[0] <= budget:
            low, counts = middle, tried
        else:
            high = middle

    used, pictures = union(counts)
    grew = True
    while grew:
        grew = False
        for cell, queue in enumerate(queues):
            row = queue.get(counts[cell])
            if row is None:
                continue
            own, of_row = row
            extra = own + sum(n for key, n in of_row.items() if key not in pictures)
            if used + extra <= budget:
                used += extra
                pictures.update(of_row)
                counts[cell] += 1
                grew = True
    return [queue.rows[:count] for queue, count in zip(queues, counts, strict=True)]


class _Queue(Generic[T]):
    """A cell's rows in the order in which they are kept, sized when they are looked at.

    Attributes:
        rows: those looked at so far; rows above `limit` are left out.
        sizes: theirs.
        charges: bytes of the first k + 1 rows, each image once.
    """

    def __init__(self, rows: Sequence[T], size: Callable[[T], Size], share: int, limit: int) -> None:
        self.rows: list[T] = []
        self.sizes: list[Size] = []
        self.charges: list[int] = []
        self._images: set[str] = set()
        self._source = self._ordered(rows, size, share, limit)

    @staticmethod
    def _ordered(rows: Sequence[T], size: Callable[[T], Size], share: int, limit: int) -> Iterator[tuple[T, Size]]:
        large: list[tuple[int, T, Size]] = []
        for row in rows:
            of_row = size(row)
            alone = of_row[0] + sum(of_row[1].values())
            if alone <= share:
                yield row, of_row
            elif alone <= limit:
                large.append((alone, row, of_row))
        for _, row, of_row in sorted(large, key=lambda item: item[0]):
            yield row, of_row

    def get(self, place: int) -> Size | None:
        """Size of the row at a place, at most one further than looked at so far; None behind the last."""
        if place == len(self.sizes):
            found = next(self._source, None)
            if found is None:
                return None
            row, (own, images) = found
            before = self.charges[-1] if self.charges else 0
            self.rows.append(row)
            self.sizes.append((own, images))
            self.charges.append(before + own + sum(n for key, n in images.items() if key not in self._images))
            self._images.update(images)
        return self.sizes[place]

    def within(self, share: int) -> int:
        """How many leading rows take no more than a share."""
        while (not self.charges or self.charges[-1] <= share) and self.get(len(self.sizes)):
            pass
        return bisect_right(self.charges, share)
