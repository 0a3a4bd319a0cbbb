"""Exact packing: one image, many questions, in one row.

A row holds several documents. A document is the set of samples that share images and route: their longest common
token prefix (which holds the images) stands once, and each sample's remainder is a branch that sees the prefix and
itself, never its siblings; its positions continue the prefix. So every token has the same context and position as in
a row of its own, and loss and gradients are those of one padded row per sample.

Shapes: B rows, L positions, N supervised positions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from mmcl.data.types import ImageSource, Sample
from mmcl.model.prompt import Encoded
from mmcl.protocols import Batch, Route

Look = Literal["causal", "images", "prefix"]
"""Which positions also see what follows them: none, the tokens of an image each other, or all before the answer."""

Position = int | tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Item:
    """A tokenised sample with images already counted out: `ids` has one `-1 - k` per visual token of image k.

    Attributes:
        sample: the sample.
        route: that it takes.
        ids: token ids.
        supervised: which of them are targets.
        positions: of each token, single numbers or (time, height, width); empty for 0, 1, 2 ...
        texts: what the projector reads beside each image; empty where it reads no text.
    """

    sample: Sample
    route: Route
    ids: tuple[int, ...]
    supervised: tuple[bool, ...]
    positions: tuple[Position, ...] = ()
    texts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Document:
    """Samples that share images and route; `prefix` is how many leading tokens stand once."""

    items: tuple[Item, ...]
    prefix: int

    @property
    def length(self) -> int:
        """Positions that the document takes in a row."""
        return self.prefix + sum(len(item.ids) - self.prefix for item in self.items)


def expand(encoded: Encoded, runs: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Write each marker of an image as many times as there are visual tokens in its place.

    Args:
        encoded: has one marker per run of visual tokens.
        runs: of each image, the lengths of its runs in order.
    """
    if all(i >= 0 for i in encoded.ids):
        return encoded.ids, encoded.supervised
    ids: list[int] = []
    supervised: list[bool] = []
    rest = [iter(lengths) for lengths in runs]
    for token, target in zip(encoded.ids, encoded.supervised, strict=True):
        repeat = next(rest[-1 - token]) if token < 0 else 1
        ids.extend([token] * repeat)
        supervised.extend([target] * repeat)
    return tuple(ids), tuple(supervised)


def common_prefix(items: Sequence[Item]) -> int:
    """Leading tokens that all items share and that neither are targets nor predict one."""
    limit = min(_first_target(item) for item in items) - 1
    prefix = 0
    first = items[0].ids
    while prefix < limit and all(item.ids[prefix] == first[prefix] for item in items[1:]):
        prefix += 1
    # Never cut through an image: it is spliced in as a whole.
    while prefix > 0 and first[prefix] < 0 and first[prefix - 1] == first[prefix]:
        prefix -= 1
    return prefix


def _first_target(item: Item) -> int:
    # An unanswered question predicts from its last token, as if a target followed.
    return item.supervised.index(True) if True in item.supervised else len(item.ids)


def documents(items: Iterable[Item], row_tokens: int, look: Look = "causal") -> list[Document]:
    """Group items by route, images and what the projector reads beside them, in order of first appearance.

    A document longer than a row is cut in several, but not between items of the same sample. Where an image sees the
    question, nothing can be shared: each item is a document of its own.
    """
    if look == "prefix":
        return [Document(tuple(unit), 0) for unit in _units(items)]
    groups: dict[tuple[object, ...], list[Item]] = {}
    for item in items:
        key = (tuple(image.digest for image in item.sample.images), item.texts, item.route)
        groups.setdefault(key, []).append(item)
    result = []
    for group in groups.values():
        chosen: list[Item] = []
        length = 0
        prefix = common_prefix(group)
        for unit in _units(group):
            own = sum(len(item.ids) - prefix for item in unit)
            if chosen and prefix + length + own > row_tokens:
                result.append(Document(tuple(chosen), prefix))
                chosen, length = [], 0
            chosen += unit
            length += own
        result.append(Document(tuple(chosen), prefix))
    return result


def _units(items: Iterable[Item]) -> list[list[Item]]:
    """Runs of items of the same sample (the answers of a preference pair), whose loss needs them in one batch."""
    units: list[list[Item]] = []
    for item in items:
        last = units[-1][-1].sample if units else None
        if last is not None and item.sample.rejected and (last.task, last.id) == (item.sample.task, item.sample.id):
            units[-1].append(item)
        else:
            units.append([item])
    return units


def rows(docs: Sequence[Document], row_tokens: int) -> list[list[Document]]:
    """Fill rows with documents; all of a row share their adapters. First fit, longest first: rows come out full."""
    result: list[tuple[int, tuple[str, ...], list[Document]]] = []
    for doc in sorted(docs, key=lambda doc: -doc.length):  # stable: equal lengths keep their order
        adapters = doc.items[0].route.adapters
        for index, (used, names, row) in enumerate(result):
            if names == adapters and used + doc.length <= row_tokens:
                row.append(doc)
                result[index] = (used + doc.length, names, row)
                break
        else:
            result.append((doc.length, adapters, [doc]))
    return [row for _, _, row in result]


class _Builder:
    """Collects the columns of rows and turns them into a Batch."""

    def __init__(self, pad: int, look: Look) -> None:
        self.pad = pad
        self.look = look
        self.samples: list[Sample] = []
        self.routes: list[Route] = []
        self.images: list[ImageSource] = []
        self.image_routes: list[Route] = []
        self.image_texts: list[str] = []
        self.image_index: dict[tuple[str, str, tuple[tuple[str, float], ...]], int] = {}
        self.slots: list[tuple[int, int, int, int, int]] = []
        self.ids: list[list[int]] = []
        self.positions: list[list[Position]] = []
        self.owner: list[list[int]] = []
        self.block: list[list[int]] = []
        self.document: list[list[int]] = []
        self.where: list[tuple[int, int]] = []
        self.targets: list[int] = []
        self.target_sample: list[int] = []
        self.documents = 0
        self.blocks = -1
        self.lengths: list[int] = []

    def start_row(self) -> None:
        for column in (self.ids, self.owner, self.block, self.document):
            column.append([])
        self.positions.append([])

    def add(self, doc: Document) -> None:
        shared = len(doc.items) > 1
        first = len(self.samples)
        if doc.prefix:
            self._span(doc.items[0], 0, doc.prefix, owner=-1 if shared else first)
        for item in doc.items:
            index = len(self.samples)
            self.samples.append(item.sample)
            self.routes.append(item.route)
            start = len(self.ids[-1])
            self._span(item, doc.prefix, len(item.ids), owner=index)
            for place in range(max(doc.prefix, 1), len(item.ids)):  # nothing predicts a row's first token
                if item.supervised[place]:
                    self.where.append((len(self.ids) - 1, start + place - doc.prefix - 1))
                    self.targets.append(item.ids[place])
                    self.target_sample.append(index)
            if True not in item.supervised:
                self.where.append((len(self.ids) - 1, len(self.ids[-1]) - 1))
                self.targets.append(self.pad)
                self.target_sample.append(index)
        self.documents += 1
        self.lengths.append(doc.length)

    def _span(self, item: Item, start: int, end: int, *, owner: int) -> None:
        row = len(self.ids) - 1
        before = len(self.ids[row]) - start
        for first, last in _runs(item.ids, start, end):
            token = item.ids[first]
            image = item.sample.images[-1 - token]
            text = item.texts[-1 - token] if item.texts else ""
            key = (image.digest, text, item.route.experts)
            if key not in self.image_index:
                self.image_index[key] = len(self.images)
                self.images.append(image)
                self.image_routes.append(item.route)
                self.image_texts.append(text)
            used = item.ids[:first].count(token)
            self.slots.append((row, before + first, self.image_index[key], used, last - first))
        self.ids[row].extend(item.ids[start:end])
        self.positions[row].extend(item.positions[start:end] or range(start, end))
        self.owner[row].extend([owner] * (end - start))
        self.block[row].extend(self._blocks(item, start, end))
        self.document[row].extend([self.documents] * (end - start))

    def _blocks(self, item: Item, start: int, end: int) -> list[int]:
        """Of each position, the block in which all see each other; -1 for none."""
        blocks = [-1] * (end - start)
        if self.look == "images":
            for first, last in _runs(item.ids, start, end):
                number = self.blocks = self.blocks + 1
                blocks[first - start : last - start] = [number] * (last - first)
        if self.look == "prefix":
            before = max(0, min(_first_target(item), end) - start)
            self.blocks += 1
            blocks[:before] = [self.blocks] * before
        return blocks

    def build(self) -> Batch:
        length = max(len(row) for row in self.ids)

        def table(columns: Sequence[Sequence[Position]], fill: Position) -> torch.Tensor:
            return torch.tensor([[*row, *[fill] * (length - len(row))] for row in columns], dtype=torch.long)

        ids = table(self.ids, self.pad)
        owner = table(self.owner, -1)
        block = table(self.block, -1)
        deep = isinstance(self.positions[0][0], tuple)
        positions = table(self.positions, (0, 0, 0)).permute(2, 0, 1) if deep else table(self.positions, 0)
        document = table(self.document, -1)
        is_padding = document < 0
        visible = torch.ones(length, length, dtype=torch.bool).tril().expand(len(self.ids), -1, -1)
        if self.blocks >= 0:
            visible = visible | same_block(block, block)
        visible = visible & (document[:, :, None] == document[:, None, :])
        visible &= (owner[:, :, None] == owner[:, None, :]) | (owner[:, None, :] < 0)
        # A padded position sees itself, so that no row of the attention is empty (which would be NaN).
        visible &= ~is_padding[:, None, :] | torch.eye(length, dtype=torch.bool)
        return Batch(
            samples=tuple(self.samples),
            routes=tuple(self.routes),
            input_ids=ids.masked_fill(ids < 0, self.pad),
            position_ids=positions,
            visible=visible,
            block=block,
            owner=owner,
            is_image=ids < 0,
            is_padding=is_padding,
            images=tuple(self.images),
            image_routes=tuple(self.image_routes),
            image_texts=tuple(self.image_texts),
            image_slots=tuple(self.slots),
            where=torch.tensor([row * length + column for row, column in self.where], dtype=torch.long),
            targets=torch.tensor(self.targets, dtype=torch.long),
            target_sample=torch.tensor(self.target_sample, dtype=torch.long),
            lengths=tuple(self.lengths),
        )


def same_block(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Blocks [B, Q] and [B, K] -> bool [B, Q, K]: where both are of the same block."""
    return (query[:, :, None] == key[:, None, :]) & (key[:, None, :] >= 0)


def _runs(ids: Sequence[int], start: int, end: int) -> list[tuple[int, int]]:
    """(first, last + 1) of each run of visual tokens of one image between `start` and `end`."""
    runs = []
    first = start
    for place in range(start, end + 1):
        if place == end or ids[place] != ids[first]:
            if first < end and ids[first] < 0:
                runs.append((first, place))
            first = place
    return runs


def pack(items: Sequence[Item], *, row_tokens: int, pad: int, look: Look = "causal") -> list[Batch]:
    """Packed batches of one row each (B = 1), each at most `row_tokens` long unless a single sample is longer."""
    batches = []
    for row in rows(documents(items, row_tokens, look), row_tokens):
        builder = _Builder(pad, look)
        builder.start_row()
        for doc in row:
            builder.add(doc)
        batches.append(builder.build())
    return batches


def padded(items: Sequence[Item], *, row_tokens: int, pad: int, look: Look = "causal") -> list[Batch]:
    """One row per sample, padded on the right; as many rows per batch as fit `row_tokens` (at least one)."""
    batches: list[Batch] = []
    chosen: list[Item] = []
    longest = 0
    for unit in sorted(_units(items), key=lambda unit: -max(len(item.ids) for item in unit)):
        longest = longest or max(len(item.ids) for item in unit)
        if chosen and (
            unit[0].route.adapters != chosen[0].route.adapters or (len(chosen) + len(unit)) * longest > row_tokens
        ):
            batches.append(_padded(chosen, pad, look))
            chosen, longest = [], max(len(item.ids) for item in unit)
        chosen += unit
    if chosen:
        batches.append(_padded(chosen, pad, look))
    return batches


def _padded(items: Sequence[Item], pad: int, look: Look) -> Batch:
    builder = _Builder(pad, look)
    for item in items:
        builder.start_row()
        builder.add(Document((item,), 0))
    return builder.build()
