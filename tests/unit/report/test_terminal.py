"""The terminal tables."""

from __future__ import annotations

import io
import re
from typing import Any

from rich.console import Console

from mmcl.report import tables


def printed(folder: Any, *, width: int = 240, colour: bool = False) -> str:
    out = io.StringIO()
    tables(folder, Console(file=out, width=width, force_terminal=colour, color_system="truecolor" if colour else None))
    return out.getvalue().replace("\u00a0", " ").replace("\u2212", "-")


def test_tables_hold_matrix_metrics_routing_and_cost(make_run: Any) -> None:
    text = printed(make_run().folder)
    assert re.search(r"02-color +10\.0 +90\.0 +·", text)
    assert re.search(r"zero-shot +5\.0 +15\.0 +40\.0", text)
    assert re.search(r"change since learned +-95\.0 +-65\.0 +\u2013", text)
    assert re.search(r"FM +80\.0 pts +7\.5 pts +from learned", text)
    assert re.search(r"shape +18 +0 +0 +2 +90\.0 %", text)
    assert re.search(r"03-yes-no +10 min 12 s .* 4\.88 M +139 M +19\.6 MB", text)
    assert "After 3 tasks, average accuracy is 36.7 %." in text
    assert "oracle: projector_experts read the task id at test time" in text


def test_cells_are_coloured_and_hostile_text_neither_styles_nor_moves_the_cursor(fake_run: Any) -> None:
    text = printed(fake_run.folder, colour=True)
    assert re.search(r"\x1b\[[\d;]*48;2;[\d;]+m +95\.0", text)
    shown = re.sub(r"\x1b\[[\d;]*m", "", text)
    assert "\x1b" not in shown
    assert "[bold]\ufffd[31m" in shown


def test_tables_of_an_unfinished_run_and_of_a_narrow_terminal(make_run: Any) -> None:
    fake = make_run(alone=True)
    for label in ("01-shape", "02-color", "03-yes-no"):
        (fake.stage("default", label) / "DONE").unlink()
    text = printed(fake.folder, width=60)
    assert "Nothing has been scored yet. The run is not finished: 1 of 4" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 60
