"""Geometry of the charts, colours of the heat map, numbers as printed."""

from __future__ import annotations

import itertools
import re
from importlib.resources import files

import pytest

from mmcl.report import units
from mmcl.report.charts import Series, colour, line_chart, nice_ticks, shape, spread_labels
from mmcl.report.heat import DARK, LIGHT, contrast, shade


def show(value: float) -> str:
    return f"{value:.1f}"


def test_values_lie_where_the_axes_say() -> None:
    chart = line_chart("t", [Series("a", 0, (0.0, 0.5, 1.0))], ["1", "2", "3"], top=1.0, show=show)
    (line,) = chart.lines
    assert [point.y for point in line.points] == [chart.bottom, (chart.bottom + chart.top) / 2, chart.top]
    assert [point.x for point in line.points] == [x for x, _ in chart.x_ticks]
    assert chart.x_ticks[0][0] == chart.left
    assert chart.x_ticks[-1][0] == chart.right
    assert line.points[1].title == "a, 2: 0.5"
    assert chart.description == "a: 0.0 after 1, 0.5 after 2, 1.0 after 3"


def test_a_line_is_dashed_until_its_task_is_learned_and_broken_where_nothing_was_measured() -> None:
    series = Series("a", 0, (0.0, 0.1, None, 0.9, 0.5), start=3)
    (line,) = line_chart("t", [series], list("01234"), top=1.0, show=show).lines
    assert re.findall("[ML]", line.dashed) == ["M", "L", "M"]
    assert re.findall("[ML]", line.solid) == ["M", "L"]
    assert [point.hollow for point in line.points] == [True, True, False, False]


@pytest.mark.parametrize("low", [0.0, 0.4, 0.89])
def test_direct_labels_never_overlap_and_stay_on_the_chart(low: float) -> None:
    series = [Series(str(i), i, (1.0, low + 0.01 * i)) for i in range(12)]
    chart = line_chart("t", series, ["1", "2"], top=1.0, show=show)
    places = sorted(line.label[1] for line in chart.lines if line.label)
    assert len(places) == 12
    assert min(b - a for a, b in itertools.pairwise(places)) >= 15
    assert places[0] >= chart.top
    assert places[-1] <= chart.bottom


def test_without_room_there_are_no_direct_labels() -> None:
    series = [Series(str(i), i, (1.0, 0.5)) for i in range(30)]
    assert all(line.label is None for line in line_chart("t", series, ["1", "2"], top=1.0, show=show).lines)
    assert spread_labels([1.0, 1.0, 1.0], 10, 0, 15) is None


def test_long_stage_names_become_their_numbers() -> None:
    stages = ["zero-shot", *(f"{i:02d}-a-long-name" for i in range(1, 9))]
    chart = line_chart("t", [Series("a", 0, (0.5,) * 9)], stages, top=1.0, show=show)
    assert [label for _, label in chart.x_ticks] == list("012345678")


def test_every_label_of_the_chart_fits_its_width() -> None:
    stages = ["zero-shot", "01-shape", "02-a-long-one", "03-yes-no"]
    for direct in (True, False):
        chart = line_chart("t", [Series("projector_experts", 0, (0.5,) * 4)], stages, show=units.size, direct=direct)
        assert all(len(label) * 6.6 <= chart.left - 8 for _, label in chart.y_ticks)
        assert all(x + len(label) * 3.3 <= chart.width for x, label in chart.x_ticks)
        assert all(line.label[0] + len(line.label[3]) * 6.6 <= chart.width for line in chart.lines if line.label)


@pytest.mark.parametrize("top", [1e-4, 0.07, 1.0, 3, 611.5, 139_000_000, 1e12])
def test_ticks_are_few_and_round_and_reach_the_top(top: float) -> None:
    ticks = nice_ticks(top)
    assert ticks[0] == 0
    assert ticks[-1] >= top * 0.9999
    assert 3 <= len(ticks) <= 6
    assert ticks[-2] < top


def test_no_values_make_an_empty_chart() -> None:
    chart = line_chart("t", [Series("a", 0, (None, None))], ["1", "2"], show=show)
    assert chart.lines[0].points == ()
    assert chart.description == "a: not measured"
    assert nice_ticks(0.0) == [0.0, 1.0]


def test_colour_and_marker_together_tell_32_series_apart() -> None:
    assert len({(colour(slot), shape(slot)) for slot in range(32)}) == 32


@pytest.mark.parametrize("anchors", [LIGHT, DARK])
def test_numbers_can_be_read_on_every_shade(anchors: tuple[str, ...]) -> None:
    shades = [shade(step / 200, anchors) for step in range(201)]
    assert min(contrast(one.ink, one.fill) for one in shades) >= 4.5
    light = [contrast(one.fill, "#000000") for one in shades]
    assert light == sorted(light, reverse=anchors is LIGHT), "more is always darker (light page) or lighter (dark)"


def test_contrast_is_that_of_the_wcag() -> None:
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


def test_text_and_lines_have_contrast_in_both_schemes() -> None:
    css = files("mmcl.report").joinpath("style.css").read_text()
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", css, re.S)[:2]
    )
    assert light["page"] != dark["page"]
    for scheme in (light, dark):
        for name in ("ink", "soft", "accent", "good", "bad"):
            for ground in ("page", "panel"):
                assert contrast(scheme[name], scheme[ground]) >= 4.5, (name, ground)
        for slot in range(8):
            assert contrast(scheme[f"c{slot}"], scheme["page"]) >= 3, slot


@pytest.mark.parametrize(
    ("got", "wanted"),
    [
        (units.percent(0.3123), "31.2 %"),
        (units.percent(None), "\u2013"),
        (units.percent(-0.0001), "0.0 %"),
        (units.points(-0.62), "\u221262.0"),
        (units.points(0.031), "+3.1"),
        (units.points(0.0), "0.0"),
        (units.duration(0), "0 s"),
        (units.duration(4.21), "4.2 s"),
        (units.duration(59.7), "1 min"),
        (units.duration(185), "3 min 05 s"),
        (units.duration(3599.8), "1 h"),
        (units.duration(7620), "2 h 07 min"),
        (units.count(950), "950"),
        (units.count(999.7), "1.00 k"),
        (units.count(12_345), "12.3 k"),
        (units.count(139_000_000), "139 M"),
        (units.size(19_600_000), "19.6 MB"),
        (units.size(0), "0 B"),
        (units.size(9_999_000), "10.0 MB"),
        (units.exact(1234567), "1,234,567"),
        (units.metric("BWT", -0.8), "\u221280.0 pts"),
        (units.metric("FM_chaudhry", 0.8), "80.0 pts"),
        (units.metric("OP", [0.95, None, 0.4]), "95.0 → \u2013 → 40.0"),
        (units.metric("first_minus_last_per_task", {"a": 0.5, "b": -0.1}), "a 50.0, b \u221210.0"),
        (units.metric("DR_BWT_plus", 0.5), "+50.0 pts"),
        (units.metric("DR_FWT", 0.5), "50.0 %"),
        (
            units.metric("climb_forgetting_percent", {"02": {"a": 12.5}, "03": {"a": 1, "b": None}}),
            "02: a 12.5; 03: a 1.0, b \u2013",
        ),
        (units.metric("ACC", None), "\u2013"),
        (units.flat({"name": "mlp", "depth": 2, "bias": True, "extra": None}), "mlp (depth 2, bias yes)"),
        (units.flat(["projector", "language.lora"]), "projector, language.lora"),
        (units.plain("a\n b\x1b[1m\u202e"), "a b\ufffd[1m\ufffd"),
        (units.plain("x" * 9, 5), "xxxx…"),
        (units.plain("👩‍🚀 سلام"), "👩‍🚀 سلام"),
        (units.lines("Which?\nA. a\n\nB. b"), "Which?\nA. a\nB. b"),
    ],
)
def test_numbers_and_texts_as_printed(got: str, wanted: str) -> None:
    assert got.replace("\u00a0", " ") == wanted


def test_the_best_is_the_lowest_for_forgetting_and_the_highest_otherwise() -> None:
    assert units.better("FM", {"a": 0.8, "b": 0.1, "c": None}) == {"b"}
    assert units.better("intransigence", {"a": 0.8, "b": 0.1}) == {"b"}
    assert units.better("BWT", {"a": -0.8, "b": -0.1, "c": -0.1}) == {"b", "c"}
    assert units.better("ACC", {"a": 0.50001, "b": 0.50002}) == frozenset(), "printed alike, none is better"
    assert units.better("OP", {"a": [0.1], "b": [0.2]}) == frozenset()
