"""How far representations of the same inputs have moved between two stages.

CKA compares the geometry of n inputs, whatever rotation or scale a space has; the cosine compares the vectors
themselves. A module whose vectors turned (cosine far from 1) but whose geometry stayed (CKA near 1) may be read by a
model that turned with it, and not by the one before.
"""

from __future__ import annotations

import torch
from torch import Tensor

DEFINITION = (
    "Linear CKA (Kornblith et al. 2019, arXiv 1905.00414) with the unbiased estimator of HSIC (Song et al. 2012), and "
    "the mean cosine between the two vectors of each input; 1 is unmoved. Vectors of images: the mean over the tokens "
    "that the projector gives; of texts: the last hidden state at the end of the question without its image."
)
LEAST = 4
"""The unbiased estimator of HSIC needs so many inputs."""


def cka(one: Tensor, other: Tensor) -> float | None:
    """Linear CKA of [n, D] and [n, E] by the unbiased HSIC, at most 1; None for fewer than 4 inputs or equal rows.

    HSIC_1(K, L) = (tr(KL) + 1'K1 1'L1 / ((n - 1)(n - 2)) - 2 / (n - 2) 1'KL1) / (n (n - 3)), K and L without diagonal.
    """
    if len(one) < LEAST:
        return None
    first, second = _gram(one), _gram(other)
    own, others = _hsic(first, first), _hsic(second, second)
    if own <= 0 or others <= 0:
        return None
    return min(1.0, float(_hsic(first, second) / (own * others) ** 0.5))


def cosine(one: Tensor, other: Tensor) -> float | None:
    """Mean cosine between the rows of [n, D] and [n, D]; None where there are none."""
    return float(torch.cosine_similarity(one.double(), other.double(), dim=1).mean()) if len(one) else None


def _gram(vectors: Tensor) -> Tensor:
    centred = vectors.double() - vectors.double().mean(0)
    return (centred @ centred.T).fill_diagonal_(0)


def _hsic(first: Tensor, second: Tensor) -> float:
    n = len(first)
    product = first @ second
    sums = first.sum() * second.sum() / ((n - 1) * (n - 2))
    return float((product.trace() + sums - 2 * product.sum() / (n - 2)) / (n * (n - 3)))
