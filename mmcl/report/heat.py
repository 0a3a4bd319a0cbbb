"""Colours of scores: one hue, faint for 0 and strong for 1, with an ink that can be read on each."""

from __future__ import annotations

from dataclasses import dataclass

LIGHT = ("#f1f5fb", "#c9dcf5", "#8fb9ea", "#4a8ad8", "#1f5aa8", "#0c2f66")
DARK = ("#20252d", "#22406a", "#2a62a8", "#4d8fdc", "#8dbcf2", "#d3e6fc")
"""Anchors from score 0 to score 1, for a light and a dark page."""

INKS = ("#ffffff", "#000000")


@dataclass(frozen=True, slots=True)
class Shade:
    """A cell's background and text colour, as `#rrggbb`."""

    fill: str
    ink: str


def shade(value: float, anchors: tuple[str, ...] = LIGHT) -> Shade:
    """The colours of a score in [0, 1]."""
    place = min(max(value, 0.0), 1.0) * (len(anchors) - 1)
    index = min(int(place), len(anchors) - 2)
    low, high = _channels(anchors[index]), _channels(anchors[index + 1])
    mixed = tuple(round(a + (b - a) * (place - index)) for a, b in zip(low, high, strict=True))
    fill = "#{:02x}{:02x}{:02x}".format(*mixed)
    return Shade(fill, max(INKS, key=lambda ink: contrast(ink, fill)))


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours, 1 to 21 (WCAG 2.2, definition of contrast ratio)."""
    high, low = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def _channels(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _luminance(colour: str) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (x / 255 for x in _channels(colour))]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
