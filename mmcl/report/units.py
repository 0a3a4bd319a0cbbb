"""Numbers as people read them. A no-break space stands before a unit, U+2212 is the minus sign."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

SPACE, MINUS, NONE = "\u00a0", "\u2212", "\u2013"

LOWER_IS_BETTER = ("FM", "intransigence", "forgetting", "first_minus_last", "climb_forgetting")
"""Metrics, by the start of their names, of which less is better."""
DIFFERENCES = ("BWT", "DR_BWT", "FM", "FWT", "intransigence", "forgetting", "first_minus_last")
"""Metrics, by the start of their names, that are differences of scores: shown in points."""


_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What a terminal obeys, what turns the reading direction of the text around it, and what is no character."""


def percent(value: float | None, digits: int = 1) -> str:
    """A share in [0, 1] as `31.2 %`."""
    return NONE if value is None else f"{_signed(value * 100, digits)}{SPACE}%"


def cell(value: float | None, digits: int = 1) -> str:
    """As `percent`, without the sign, for cells whose table says that they are percentages."""
    return NONE if value is None else _signed(value * 100, digits)


def span(ends: tuple[float, float]) -> str:
    """An interval of shares as whole percentages without the sign, an en dash between them."""
    return "\u2013".join(f"{end * 100:.0f}" for end in ends)


def points(value: float | None, digits: int = 1) -> str:
    """A difference of two shares in percentage points: `+3.1`, or with the minus sign."""
    if value is None:
        return NONE
    text = _signed(value * 100, digits)
    return f"+{text}" if float(text.replace(MINUS, "-")) > 0 else text


def _signed(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.removeprefix("-")  # no "-0.0"
    return text.replace("-", MINUS)


def duration(seconds: float | None) -> str:
    """`4.2 s`, `3 min 05 s`, `2 h 07 min`."""
    if seconds is None:
        return NONE
    if 0 < seconds < 10:
        return f"{seconds:.1f}{SPACE}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}{SPACE}s"
    if whole < 3600:
        rest = f"{SPACE}{whole % 60:02d}{SPACE}s" if whole % 60 else ""
        return f"{whole // 60}{SPACE}min{rest}"
    minutes = round(seconds / 60)
    return f"{minutes // 60}{SPACE}h" + (f"{SPACE}{minutes % 60:02d}{SPACE}min" if minutes % 60 else "")


def count(value: float | None) -> str:
    """`950`, `12.3 k`, `4.61 M`, `7.00 G`."""
    return NONE if value is None else _scaled(value, ("", "k", "M", "G", "T", "P", "E"), "")


def size(value: float | None) -> str:
    """Bytes: `950 B`, `12.3 kB`, `4.61 MB` (1 kB = 1,000 bytes)."""
    return NONE if value is None else _scaled(value, ("", "k", "M", "G", "T"), "B")


def _scaled(value: float, prefixes: tuple[str, ...], unit: str) -> str:
    step = 0
    while abs(value) >= 999.5 and step < len(prefixes) - 1:
        value, step = value / 1000, step + 1
    digits = 0 if step == 0 else max(0, 2 - (abs(value) >= 9.995) - (abs(value) >= 99.95))
    return f"{value:.{digits}f}{SPACE}{prefixes[step]}{unit}".strip(SPACE)


def exact(value: float | None) -> str:
    """All digits, for a tooltip."""
    if value is None:
        return "not recorded"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.3f}"


def metric(name: str, value: Any) -> str:
    """A continual-learning metric: a number; one per stage, `98.0 → 61.5`; one per task, `shape 98.0, color 61.5`."""
    if isinstance(value, list):
        return f"{SPACE}\u2192 ".join(_bare(metric(name, item)) for item in value)
    if isinstance(value, Mapping):
        if any(isinstance(item, Mapping) for item in value.values()):
            return "; ".join(f"{key}: {metric(name, item)}" for key, item in value.items())
        return ", ".join(f"{key}{SPACE}{_bare(metric(name, item))}" for key, item in value.items()) or NONE
    if not isinstance(value, int | float) or isinstance(value, bool):
        return NONE if value is None else str(value)
    if name.endswith("_percent"):
        return percent(value / 100)
    if name.startswith(DIFFERENCES):
        text = cell(value) if name.startswith(LOWER_IS_BETTER) else points(value)
        return f"{text}{SPACE}pts"
    return percent(value) if abs(value) <= 1 else f"{value:.4g}"


def _bare(text: str) -> str:
    return text.removesuffix("%").removesuffix("pts").removesuffix(SPACE)


def better(name: str, values: Mapping[str, Any]) -> frozenset[str]:
    """Which variants have the best value as printed; none if they all have the same, or only one has a number."""
    numbers = {key: value for key, value in values.items() if isinstance(value, int | float)}
    printed = {key: round(value, 3) for key, value in numbers.items()}
    if len(set(printed.values())) < 2:
        return frozenset()
    choose: Callable[..., float] = min if name.startswith(LOWER_IS_BETTER) else max
    best = choose(printed.values())
    return frozenset(key for key, value in printed.items() if value == best)


def plain(text: str, limit: int = 400) -> str:
    """Text on one line, without control characters (a terminal would obey them), cut to `limit` characters."""
    return _cut(_CONTROL.sub("\ufffd", re.sub(r"[ \t\r\n]+", " ", text).strip(" ")), limit)  # no-break spaces stay


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}\u2026"


def lines(text: str, limit: int = 600) -> str:
    """As `plain`, with the line breaks kept (multiple-choice options stand on lines of their own)."""
    return _cut("\n".join(plain(line, limit) for line in text.splitlines() if line.strip()), limit)


def flat(value: Any) -> str:
    """A recipe value in a few words: `mlp (depth 2)`, `projector, language.lora`."""
    if isinstance(value, Mapping):
        rest = ", ".join(f"{key} {flat(item)}" for key, item in value.items() if key != "name" and not _unset(item))
        if "name" not in value:
            return rest
        return f"{value['name']} ({rest})" if rest else str(value["name"])
    if isinstance(value, list | tuple):
        return ", ".join(flat(item) for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def _unset(value: Any) -> bool:
    return value is None or value in ({}, [], "")
