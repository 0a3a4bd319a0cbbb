"""What a person sees: the page in a headless Chromium, light and dark, wide and narrow."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmcl.report import write

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH")]

PROBE = """
const frame = document.getElementById("page");
frame.addEventListener("load", () => {
  const page = frame.contentDocument, root = page.documentElement, view = frame.contentWindow;
  const style = node => view.getComputedStyle(node);
  const boxes = [...page.querySelectorAll("h1, h2, h3, p, .card, figure, .scroll, .chart")];
  document.getElementById("result").textContent = JSON.stringify({
    overflow: root.scrollWidth - root.clientWidth,
    outside: boxes.filter(n => n.getBoundingClientRect().right > root.clientWidth + 1).map(n => n.outerHTML),
    width: root.clientWidth,
    background: style(page.body).backgroundColor,
    ink: style(page.body).color,
    cells: [...page.querySelectorAll("table.matrix:not(.confusion) td.heat")].map(n => n.innerText.trim()),
    fills: [...page.querySelectorAll("table.matrix:not(.confusion) td.heat")].map(n => style(n).backgroundColor),
    cards: [...page.querySelectorAll(".card")].map(n => n.innerText),
    pictures: [...page.images].map(n => [n.complete, n.naturalWidth, n.getBoundingClientRect().width]),
    lines: [...page.querySelectorAll(".chart .line")].map(n => style(n).stroke),
    segments: [...page.querySelectorAll(".segment rect")].map(n => [style(n).fill, n.getBoundingClientRect().width]),
    swatches: [...page.querySelectorAll("#anatomy .legend .swatch")].map(n => style(n).backgroundColor),
    ran: view.hacked === true,
  });
});
"""


def chromium(tmp_path: Path, page: Path, *flags: str) -> str:
    assert CHROMIUM is not None
    profile = tmp_path / "profile"
    shutil.rmtree(profile, ignore_errors=True)
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", *flags, page.resolve().as_uri()]
    return subprocess.run(command, capture_output=True, check=True, timeout=120).stdout.decode()


def dark_flags(dark: bool) -> tuple[str, ...]:
    return (f"--blink-settings=preferredColorScheme={0 if dark else 1}",)


def probe(tmp_path: Path, report: Path, *, width: int, dark: bool = False) -> dict[str, Any]:
    """Opens the report in a frame of that width (windows have a least width, frames have none) and asks it."""
    inner = html.escape(report.read_text(encoding="utf-8"), quote=True)
    frame = f'<iframe id="page" style="width:{width}px;height:900px;border:0" srcdoc="{inner}"></iframe>'
    outer = tmp_path / "outer.html"
    # The listener is there before the frame: its load event can't be missed.
    body = f'<pre id="result"></pre><div id="place"></div><template id="t">{frame}</template>'
    place = 'document.getElementById("place").append(document.getElementById("t").content.cloneNode(true));'
    outer.write_text(f'<!doctype html><meta charset="utf-8">{body}<script>{place}{PROBE}</script>', encoding="utf-8")
    dom = chromium(tmp_path, outer, "--window-size=1600,1000", "--dump-dom", *dark_flags(dark))
    found = re.search(r'<pre id="result">(.+?)</pre>', dom, re.S)
    assert found, "the page did not load"
    result: dict[str, Any] = json.loads(html.unescape(found[1]))
    assert result["width"] == width
    return result


@pytest.mark.parametrize("width", [1280, 400])
def test_numbers_answers_and_images_are_seen_and_nothing_sticks_out(tmp_path: Path, make_run: Any, width: int) -> None:
    fake = make_run()
    got = probe(tmp_path, write(fake.folder), width=width)
    matrix = ["5.0", "15.0", "40.0", "95.0", "not measured", "not measured", "10.0", "90.0", "not measured"]
    assert [text.replace("\n", " ") for text in got["cells"][:12]] == [*matrix, "0.0", "25.0", "85.0"]
    assert len(got["cells"]) == 24
    assert len(got["cards"]) == 19
    card = " ".join(got["cards"][0].split())
    assert re.match(r"What shape is in the image\? Reference (\w+) When learned ✓.* At the end ✗", card)
    assert len(got["pictures"]) == 17
    assert all(complete and natural == 64 and shown > 60 for complete, natural, shown in got["pictures"])
    assert got["overflow"] == 0
    assert got["outside"] == []
    assert all(re.fullmatch(r"rgb\(\d+, \d+, \d+\)", stroke) for stroke in got["lines"])


@pytest.mark.parametrize("width", [1280, 400])
def test_hostile_text_neither_runs_nor_widens_the_page(tmp_path: Path, make_run: Any, width: int) -> None:
    hostile = "</title></style><script>window.hacked = true</script><img src=x onerror='window.hacked = true'>"
    hostile += "w" * 300
    got = probe(tmp_path, write(make_run(hostile=hostile, dissected=True).folder), width=width)
    assert not got["ran"]
    assert got["overflow"] == 0
    assert got["outside"] == []
    assert any("<script>window.hacked" in card for card in got["cards"])


@pytest.mark.parametrize("width", [1280, 400])
def test_the_anatomy_is_seen_in_colours_that_differ(tmp_path: Path, make_run: Any, width: int) -> None:
    got = probe(tmp_path, write(make_run(dissected=True).folder), width=width)
    assert len(got["segments"]) == 9  # seven causes of one task, two of the other
    fills = [fill for fill, _ in got["segments"]]
    assert len(set(fills)) == 7
    assert fills[2] == fills[7]  # the vision side of both
    assert got["swatches"][:7] == fills[:7]  # the legend
    assert all(size > 4 for _, size in got["segments"])
    assert got["overflow"] == 0
    assert got["outside"] == []


def test_dark_mode_has_its_own_colours(tmp_path: Path, make_run: Any) -> None:
    report = write(make_run().folder)
    light, dark = (probe(tmp_path, report, width=1280, dark=dark) for dark in (False, True))

    def brightness(colour: str) -> float:
        return sum(map(int, re.findall(r"\d+", colour)[:3])) / 765

    assert brightness(light["background"]) > 0.9 > 0.2 > brightness(dark["background"])
    assert brightness(dark["ink"]) > 0.8
    best, worst = got_cells(light, "95.0"), got_cells(light, "0.0")
    assert brightness(light["fills"][best]) < brightness(light["fills"][worst])
    assert brightness(dark["fills"][best]) > brightness(dark["fills"][worst])


def got_cells(got: dict[str, Any], text: str) -> int:
    return int(got["cells"].index(text))


@pytest.mark.parametrize("dark", [False, True])
def test_the_file_itself_opens_and_is_drawn(tmp_path: Path, make_run: Any, dark: bool) -> None:
    report = write(make_run().folder)
    assert "What was forgotten" in chromium(tmp_path, report, "--dump-dom")
    shot = tmp_path / "shot.png"
    chromium(tmp_path, report, "--window-size=1280,1400", f"--screenshot={shot}", *dark_flags(dark))
    with Image.open(shot) as image:
        pixels = image.convert("RGB")
        corner = pixels.getpixel((3, 3))
        assert isinstance(corner, tuple)
        assert (max(corner) < 60) if dark else (min(corner) > 240)
        colours = pixels.getcolors(1 << 22) or []
        assert len(colours) > 200, "a heat map, lines and text were drawn"
