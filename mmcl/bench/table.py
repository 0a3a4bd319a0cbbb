"""A measurement as tables for people and as Markdown, and its plot as SVG. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

COLUMNS = (
    "work",
    "peer",
    "dtype",
    "image tokens",
    "questions",
    "mmcl",
    "peer's",
    "unit",
    "ratio",
    "range",
    "agreement",
)
WIDTH, HEIGHT, LEFT, TOP, BAR, GAP = 760, 60, 300, 46, 16, 10
COLOURS = {"fp32": "#3b6ea8", "bf16": "#c26a2e"}


def cells_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The row's cells as text, by `COLUMNS`."""
    low, high = row["ratio_range"]
    asked = row["questions"] if row["questions"] is not None else "all"
    values = (
        row["work"],
        row["peer"],
        row["dtype"],
        row["image_tokens"] or "",
        asked,
        number(row["ours"]),
        number(row["theirs"]),
        row["unit"],
        f"{row['ratio']:.2f}",
        f"{low:.2f} to {high:.2f}",
        agreement(row),
    )
    return tuple(str(value) for value in values)


def number(value: float) -> str:
    """Three digits that count."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def agreement(row: Mapping[str, Any]) -> str:
    """How far both sides agree."""
    if "loss_difference" in row:
        return f"loss {row['loss_difference']:.0e}"
    if "answers_equal" in row:
        if row["answers_equal"]:
            return "answers equal"
        return f"{row['answers_differ']} of {row['answers']} answers differ"
    return ""


def machine_lines(document: Mapping[str, Any]) -> list[str]:
    """What it was measured on, and how."""
    machine, options = document["machine"], document["options"]
    peak = ", ".join(f"{value:,.0f} GFLOP/s in {name}" for name, value in machine["peak_gflops"].items())
    libraries = ", ".join(f"{name} {value}" for name, value in machine["libraries"].items())
    device = "" if machine["device"] == "cpu" else f"{machine['device']}; "
    return [
        f"{device}{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads; matrix product {peak}; "
        f"{machine['date']}",
        f"{libraries}, Python {machine['python']}, {machine['system']}",
        f"model {options['model']}, stream {options['stream']}, {options['batch_size']} questions per optimiser step "
        f"(peers: micro-batches of {options['micro_batch']}), {options['steps']} steps per repetition, "
        f"{options['repeats']} repetitions, {options['test_questions']} test questions, encoder at "
        f"{options['image_size']} pixels",
    ]


def markdown(document: Mapping[str, Any]) -> str:
    """The table of `docs/performance.md`."""
    lines = [f"- {line}" for line in machine_lines(document)]
    lines += [f"- {text}" for text in document["skipped"]]
    if document["disagreement"]:
        lines += ["", f"**The two sides disagree**, no speed is told: {document['disagreement']}"]
    if not document["rows"]:
        return "\n".join([*lines, ""])
    lines += ["", "| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(cells_of(row)) + " |" for row in document["rows"]]
    return "\n".join([*lines, ""])


def plot(document: Mapping[str, Any]) -> str:
    """An SVG of the ratios in questions per second, over image tokens and questions per image."""
    rows = [row for row in document["rows"] if row["unit"] == "questions/s"]
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["work"], row["peer"]), []).append(row)
    longest = max((row["ratio"] for row in rows), default=1.0)
    scale = (WIDTH - LEFT - 90) / max(longest, 1.0)
    parts: list[str] = []
    y = TOP
    for (work, peer), members in groups.items():
        parts.append(_text(12, y + 12, f"{work}, against {peer}", weight="bold"))
        y += BAR + 6
        for row in members:
            asked = "all" if row["questions"] is None else row["questions"]
            name = f"{row['image_tokens']} image tokens, {asked} questions an image, {row['dtype']}"
            long = max(row["ratio"] * scale, 1.0)
            parts.append(_text(LEFT - 8, y + 12, name, anchor="end"))
            colour = COLOURS.get(row["dtype"], "#777777")
            parts.append(f'<rect x="{LEFT}" y="{y}" width="{long:.1f}" height="{BAR}" fill="{colour}"/>')
            parts.append(_text(LEFT + long + 6, y + 12, f"{row['ratio']:.2f} x"))
            y += BAR + 4
        y += GAP
    one = LEFT + scale
    parts.append(f'<path d="M{one:.1f} {TOP - 8}V{y}" stroke="#555555" stroke-dasharray="3 3"/>')
    parts.append(_text(one, TOP - 12, "as fast", anchor="middle"))
    title = f"mmcl / peer, questions per second: {document['options']['model']}, {document['options']['stream']}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y + 12}" '
        f'viewBox="0 0 {WIDTH} {y + 12}" font-family="sans-serif" font-size="12" role="img">\n'
        f"<title>{escape(title)}</title>\n"
        f'<rect width="100%" height="100%" fill="#ffffff"/>\n'
        + _text(12, 18, title, weight="bold")
        + "\n"
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _text(x: float, y: float, text: str, *, anchor: str = "start", weight: str = "normal") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}">{escape(text)}</text>'


def lines_for_terminal(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A block of lines for each cell of the grid; ratios are mmcl's value over the peer's."""
    lines: list[str] = []
    cell: tuple[Any, ...] = ()
    for row in rows:
        here = (row["dtype"], row["image_tokens"], row["questions"])
        if here != cell:
            asked = "all" if row["questions"] is None else row["questions"]
            tokens = f"{row['image_tokens']} image tokens, {asked} questions of an image"
            title = f"{row['dtype']}, {tokens if row['image_tokens'] else 'tiny models'}"
            lines += ["", f"{title:<56} {'mmcl':>9} {'peer':>9} {'':<11} {'ratio':>6}"]
            cell = here
        low, high = row["ratio_range"]
        work = f"  {row['work']} / {row['peer']}"
        values = f"{number(row['ours']):>9} {number(row['theirs']):>9} {row['unit']:<11} {row['ratio']:>6.2f}"
        more = f"({low:.2f} to {high:.2f})" if low != high else ""
        lines.append(f"{work:<56} {values}  {more} {agreement(row)}".rstrip())
    return lines
