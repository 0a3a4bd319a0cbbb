"""How far the score of a sampled test set can be off."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

Z = 1.959963984540054
"""Half-width of a 95 % interval of the normal distribution, in standard deviations."""

DEFINITION = (
    "95 % interval of the score on questions like these about other images: Wilson's, with the number of independent "
    "questions that the spread between images amounts to. Of one run: other seeds are not in it."
)


def interval(scores: Sequence[float], images: Sequence[Hashable]) -> tuple[float, float] | None:
    """A 95 % interval of a mean score, clustered by image.

    Questions about one image are right or wrong together, so the variance of the mean is that of sums over images
    (Miller 2024, 2411.00640, section 2.2), at least that of independent questions. Wilson's interval (Wilson 1927)
    takes it as an effective number of questions n = p (1 - p) / variance (as Korn and Graubard 1998 do for surveys):
    unlike a bootstrap it does not shrink to a point where all answers are right or all wrong; there n is the number of
    images. It is not narrowed for the share of the test set that was asked.

    Args:
        scores: of each question, in [0, 1].
        images: what each question is about; equal for questions that share an image.

    Returns:
        Lower and upper end in [0, 1]; None for no questions.
    """
    count = len(scores)
    if not count:
        return None
    mean = math.fsum(scores) / count
    sums: dict[Hashable, float] = {}
    for score, image in zip(scores, images, strict=True):
        sums[image] = sums.get(image, 0.0) + score - mean
    clusters = len(sums)
    effective = float(clusters)
    if clusters > 1 and 0 < mean < 1:
        between = math.fsum(total**2 for total in sums.values()) * clusters / (clusters - 1) / count**2
        alone = math.fsum((score - mean) ** 2 for score in scores) / (count - 1) / count
        variance = max(between, alone)
        if variance > 0:
            effective = mean * (1 - mean) / variance
    middle = (mean + Z**2 / (2 * effective)) / (1 + Z**2 / effective)
    half = Z / (1 + Z**2 / effective) * math.sqrt(mean * (1 - mean) / effective + Z**2 / (4 * effective**2))
    return max(0.0, middle - half), min(1.0, middle + half)
