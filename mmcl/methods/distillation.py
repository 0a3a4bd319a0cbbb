"""Distillation from the previous model on replayed samples, independent of how rows are packed.

Shapes: B rows, L positions, N supervised positions, V vocabulary, D width of the language model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmcl.protocols import Batch, Model, Output


def kl_divergence(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """KL(teacher || student) of softened distributions, summed over positions, times temperature^2; logits [N, V].

    Follows Hinton et al. (1503.02531, section 2), on masked tokens as in MoInCL (2412.13050). The gradient reaches only
    the student.
    """
    logs = (student.float() / temperature).log_softmax(-1)
    target = (teacher.detach().float() / temperature).log_softmax(-1)
    return (target.exp() * (target - logs)).sum() * temperature**2


def supervised(batch: Batch, chosen: Collection[int]) -> Tensor:
    """Bool [N]: which supervised positions belong to the chosen samples (indices into `batch.samples`)."""
    return torch.isin(batch.target_sample, torch.tensor(sorted(chosen), dtype=batch.target_sample.dtype))


def uses(batch: Batch, chosen: Collection[int]) -> Tensor:
    """How many of the chosen samples consist of each position, float32 [B, L]; 0 at padding.

    A position of a shared prefix counts once for every chosen sample behind it, as if each had a row of its own: that
    makes means over tokens the same for packed and padded rows.
    """
    count = torch.zeros(batch.owner.shape)
    for sample in chosen:
        row, column = (batch.owner == sample).nonzero()[-1].tolist()
        count[row] += batch.visible[row, column]  # a sample's last position sees all of it and nothing else
    return count.masked_fill(batch.is_padding, 0.0)


def layer_weights(layers: int, gamma: float) -> list[float]:
    """gamma^(distance from the top) for each hidden state, bottom first, normalised to sum 1."""
    raw = [gamma ** (layers - 1 - layer) for layer in range(layers)]
    return [weight / sum(raw) for weight in raw]


@dataclass(frozen=True, slots=True)
class Excerpt:
    """The part of a batch that some of its samples consist of, for a forward pass that computes nothing else.

    Attributes:
        batch: that part as a batch, its samples in their old order.
        rows: long, the rows kept.
        columns: long, the columns kept.
        supervised: long, the supervised positions kept.
    """

    batch: Batch
    rows: Tensor
    columns: Tensor
    supervised: Tensor

    def of(self, out: Output) -> Output:
        """The excerpt of the whole batch's output."""
        device = out.logits.device
        rows, columns = self.rows.to(device), self.columns.to(device)
        hidden = tuple(layer[rows][:, columns] for layer in out.hidden)
        return Output(logits=out.logits[self.supervised.to(device)], hidden=hidden)


def excerpt(batch: Batch, chosen: Sequence[int]) -> Excerpt:
    """Keep the positions that the chosen samples consist of; all that they see is among them: outputs are the same."""
    used = uses(batch, chosen) > 0
    rows, columns = used.any(1).nonzero().flatten(), used.any(0).nonzero().flatten()
    length = batch.input_ids.shape[1]
    new_row = {old: new for new, old in enumerate(rows.tolist())}
    new_column = {old: new for new, old in enumerate(columns.tolist())}
    new_sample = torch.full((len(batch.samples) + 1,), -1)  # the last entry is for owner -1
    new_sample[torch.tensor(sorted(chosen))] = torch.arange(len(chosen))

    def cut(table: Tensor) -> Tensor:
        return table[rows][:, columns]

    slots = [
        (new_row[row], new_column[start], entry, first, count)
        for row, start, entry, first, count in batch.image_slots
        if row in new_row and start in new_column
    ]
    entries = sorted({slot[2] for slot in slots})
    kept = supervised(batch, chosen).nonzero().flatten()
    where = [new_row[at // length] * len(columns) + new_column[at % length] for at in batch.where[kept].tolist()]
    part = Batch(
        samples=tuple(batch.samples[index] for index in sorted(chosen)),
        routes=tuple(batch.routes[index] for index in sorted(chosen)),
        input_ids=cut(batch.input_ids),
        position_ids=batch.position_ids[..., rows, :][..., columns],
        visible=batch.visible[rows][:, columns][:, :, columns],
        block=cut(batch.block),
        owner=new_sample[cut(batch.owner)],
        is_image=cut(batch.is_image),
        is_padding=cut(batch.is_padding),
        images=tuple(batch.images[entry] for entry in entries),
        image_routes=tuple(batch.image_routes[entry] for entry in entries),
        image_texts=tuple(batch.image_texts[entry] for entry in entries),
        image_slots=tuple(
            (row, start, entries.index(entry), first, count) for row, start, entry, first, count in slots
        ),
        where=torch.tensor(where, dtype=torch.long),
        targets=batch.targets[kept],
        target_sample=new_sample[batch.target_sample[kept]],
        lengths=_lengths(batch, rows, columns),
    )
    return Excerpt(part, rows, columns, kept)


def _lengths(batch: Batch, rows: Tensor, columns: Tensor) -> tuple[int, ...]:
    """What is left of each document of a packed row, or of each row of a padded batch."""
    if len(batch.input_ids) > 1:
        return tuple(batch.lengths[row] for row in rows.tolist())
    document = torch.arange(len(batch.lengths)).repeat_interleave(torch.tensor(batch.lengths))
    counts = document[columns].bincount(minlength=len(batch.lengths))
    return tuple(count for count in counts.tolist() if count)


@dataclass(frozen=True, slots=True)
class FeatureSums:
    """Squared differences of hidden states, averaged over the width and layers (by weight), summed over positions.

    Attributes:
        image: over image positions.
        text: over all others.
    """

    image: Tensor
    text: Tensor


def feature_sums(student: Sequence[Tensor], teacher: Sequence[Tensor], batch: Batch, *, gamma: float) -> FeatureSums:
    """Compare hidden states, each [B, L, D], at image and text positions of all samples of a batch.

    Follows MAFED (2406.19297): after projection both modalities share one sequence, so vision and language features are
    the hidden states at image and at text positions.

    Args:
        student: hidden states after the embedding and after each layer.
        teacher: the same of the previous model.
        batch: says where images, padding and shared prefixes are.
        gamma: discount per layer below the top.
    """
    device = student[0].device
    weight = uses(batch, range(len(batch.samples))).to(device)
    chosen = weight > 0
    error = torch.zeros(int(chosen.sum()), device=device)
    for share, ours, theirs in zip(layer_weights(len(student), gamma), student, teacher, strict=True):
        error = error + share * (ours[chosen].float() - theirs[chosen].detach().float()).square().mean(-1)
    weighted = error * weight[chosen]
    is_image = batch.is_image.to(device)[chosen]
    return FeatureSums(image=weighted[is_image].sum(), text=weighted[~is_image].sum())


@contextlib.contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """Inside, no part of the model is in training mode (dropout); afterwards each is as it was."""
    parts = (model.encoder, model.projector, model.experts, model.language)
    training = [module for part in parts for module in part.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def teach(model: Model, batch: Batch, teacher: dict[str, Tensor], *, hidden: bool) -> Output:
    """The previous model's output for a batch, without gradient."""
    with torch.no_grad(), model.using(teacher), evaluating(model):
        return model.forward(batch, hidden=hidden)
