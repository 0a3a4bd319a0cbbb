"""Choice inside a cell of the replay memory: candidates are ranked, and the lowest ranks that fit the quota stay.

Ranking keeps every choice nested: a smaller quota keeps a subset of what a larger one keeps, so cells can shrink when
new tasks arrive without a bias.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from mmcl.data.types import Sample

Rank = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Candidate:
    """What a selection may look at.

    Attributes:
        key: a uniform random number of 64 bits, drawn for the sample (`random_key`).
        step: when it was offered; counts every sample ever offered.
        drift: by how much its loss has risen since it was stored; 0 for a new one.
    """

    key: int
    step: int
    drift: float = 0.0


def reservoir(candidate: Candidate) -> Rank:
    """A uniform random subset of everything offered to the cell, in whatever order, however often the quota shrinks.

    The k lowest of n uniform keys are a uniform k-subset: the distribution of Vitter's algorithm R (Random sampling
    with a reservoir, 1985), in the form with one random key per item, which also allows k to change.
    """
    return (candidate.key,)


def ring(candidate: Candidate) -> Rank:
    """First in, first out: the newest stay."""
    return (-candidate.step,)


def drift(candidate: Candidate) -> Rank:
    """The most forgotten stay, ties as in a reservoir: score drift as in BriMA (2602.19170), with the loss as score."""
    return (-candidate.drift, candidate.key)


SELECTIONS: Mapping[str, Callable[[Candidate], Rank]] = MappingProxyType(
    {"reservoir": reservoir, "ring": ring, "drift": drift}
)
"""Rankings by the name that a recipe uses."""


def random_key(sample: Sample, seed: int) -> int:
    """A number of 64 bits, uniform over seeds and samples; the same in every process and for any order of arrival."""
    parts = [str(seed), sample.task, sample.id, *(image.name for image in sample.images)]
    parts += [text for turn in sample.turns for text in (turn.role, turn.text)]
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "big") + data)  # lengths keep ("a", "bc") apart from ("ab", "c")
    return int.from_bytes(digest.digest(), "big")
