"""Which samples of a stage are worth training on: duplicates, lengths and losses, decided before its first step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch

from mmcl.data.types import Sample, Samples
from mmcl.errors import UserError
from mmcl.model.packing import expand
from mmcl.protocols import Objective, Route

if TYPE_CHECKING:
    from mmcl.model.assembly import Assembly
    from mmcl.recipe.spec import SelectSpec

Content = tuple[tuple[str, ...], tuple[tuple[str, str], ...]]


def content(sample: Sample) -> Content:
    """What makes two samples the same: the images' contents and all texts, without case and outer blanks."""
    return (
        tuple(image.digest for image in sample.images),
        tuple((turn.role, turn.text.strip().casefold()) for turn in sample.turns),
    )


def select(
    model: Assembly,
    samples: Samples,
    routes: Sequence[Route],
    spec: SelectSpec,
    objective: Objective,
    *,
    earlier: Iterable[Sample] = (),
) -> tuple[list[Sample], dict[str, list[str]]]:
    """The samples to train on, and the ids of the others by the rule that left them out.

    Rules are asked in the order of `SelectSpec`; a sample is left out by the first that says so.

    Args:
        model: as it is before the stage.
        samples: of the stage.
        routes: of each, for the loss.
        spec: the rules.
        objective: says what is supervised.
        earlier: training samples of earlier stages, of which repetitions are left out.

    Raises:
        UserError: nothing is left.
    """
    left: dict[str, list[str]] = {}
    kept = list(zip(samples, routes, strict=True))

    def drop(rule: str, gone: Sequence[bool]) -> None:
        nonlocal kept
        left[rule] = [sample.id for (sample, _), out in zip(kept, gone, strict=True) if out]
        kept = [pair for pair, out in zip(kept, gone, strict=True) if not out]

    if spec.dedupe:
        known = {content(sample) for sample in earlier}
        gone = []
        for sample, _ in kept:
            key = content(sample)
            gone.append(key in known)
            known.add(key)
        drop("dedupe", gone)
    if spec.min_tokens is not None or spec.max_tokens is not None:
        lengths = [_lengths(model, sample, objective) for sample, _ in kept]
        few, many = spec.min_tokens or 0, spec.max_tokens or float("inf")
        drop("min_tokens", [supervised < few for supervised, _ in lengths])
        drop("max_tokens", [total > many for supervised, total in lengths if supervised >= few])
    if spec.min_loss is not None or spec.max_loss is not None:
        losses = sample_losses(model, [sample for sample, _ in kept], [route for _, route in kept], objective)
        least, most = spec.min_loss or 0.0, spec.max_loss or float("inf")
        drop("min_loss", [loss < least for loss in losses])
        drop("max_loss", [loss > most for loss in losses if loss >= least])
    if not kept:
        raise UserError(
            "no sample is left",
            where="stages.select",
            hint=", ".join(f"{rule} leaves out {len(ids)}" for rule, ids in left.items()),
        )
    return [sample for sample, _ in kept], {rule: ids for rule, ids in left.items() if ids}


@torch.no_grad()
def sample_losses(model: Assembly, samples: Samples, routes: Sequence[Route], objective: Objective) -> list[float]:
    """Mean cross-entropy per supervised token of each sample."""
    supervise = [objective.supervise(sample) for sample in samples]
    place = {id(sample): index for index, sample in enumerate(samples)}
    total, count = torch.zeros(len(samples)), torch.zeros(len(samples))
    for batch in model.pack(samples, routes, supervise=supervise):
        logits = model.forward(batch).logits.float()
        losses = torch.nn.functional.cross_entropy(logits, batch.targets.to(logits.device), reduction="none").cpu()
        own = torch.tensor([place[id(batch.samples[index])] for index in batch.target_sample.tolist()])
        total.index_add_(0, own, losses)
        count.index_add_(0, own, torch.ones(len(own)))
    return (total / count.clamp_min(1)).tolist()


def _lengths(model: Assembly, sample: Sample, objective: Objective) -> tuple[int, int]:
    """Supervised tokens, and all."""
    encoded = model.encode(sample, objective.supervise(sample))
    ids, supervised = expand(encoded, [model.picture(image).runs for image in sample.images])
    return sum(supervised), len(ids)
