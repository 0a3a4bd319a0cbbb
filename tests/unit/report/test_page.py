"""The HTML page: its contents, that it is well-formed and self-contained, and that no text breaks out."""

from __future__ import annotations

import base64
import io
import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmcl.report import write
from mmcl.report.gallery import diverse, forgotten, thumbnail
from mmcl.report.run import Answer, read_run

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Elements with their attributes and their text; complains about tags that do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[list[str]] = []
        self.open: list[int] = []
        self.feed(html)
        self.close()
        assert not self.open, "unclosed elements"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"attribute twice in {tag} {attrs}"
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        self.texts.append([])
        if tag not in VOID:
            self.open.append(len(self.elements) - 1)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.elements[self.open.pop()][0] == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        for index in self.open:
            self.texts[index].append(data)

    def all(self, tag: str, cls: str = "") -> list[tuple[dict[str, str], str]]:
        """(attributes, text) of the elements with that tag and class."""
        return [
            (attrs, " ".join("".join(text).replace("\u2212", "-").split()))
            for (name, attrs), text in zip(self.elements, self.texts, strict=True)
            if name == tag and (not cls or cls in attrs.get("class", "").split())
        ]

    def text(self) -> str:
        return " ".join("".join(self.texts[0]).split())


def page(folder: Path) -> Page:
    path = write(folder)
    assert path == folder / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def test_the_page_is_well_formed_and_self_contained(fake_run: Any) -> None:
    got = page(fake_run.folder)
    assert len(got.elements) > 500
    tags = {tag for tag, _ in got.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form"}
    for tag, attrs in got.elements:
        assert not [name for name in attrs if name.startswith("on")], (tag, attrs)
        assert attrs.get("src", "data:").startswith("data:image/png;base64,") or "src" not in attrs
        files = "download" in attrs and attrs["href"].startswith("data:text/csv;charset=utf-8;base64,")
        assert files or re.fullmatch(r"#[a-z-]+", attrs.get("href", "#x"))
    ((_, css),) = got.all("style")
    assert "url(" not in css
    assert "@import" not in css
    assert not [name for name in fake_run.folder.iterdir() if name.name.startswith(".")], "no temporary file is left"


def test_ids_are_unique_and_referred_to_ones_exist(fake_run: Any) -> None:
    got = page(fake_run.folder)
    ids = [attrs["id"] for _, attrs in got.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    wanted = [attrs["href"][1:] for _, attrs in got.elements if "href" in attrs and "download" not in attrs]
    wanted += [attrs["aria-labelledby"] for _, attrs in got.elements if "aria-labelledby" in attrs]
    assert len(wanted) > 10
    assert set(wanted) <= set(ids)


@pytest.mark.parametrize("alone", [False, True])
def test_headings_skip_no_level_and_graphics_have_a_text(make_run: Any, alone: bool) -> None:
    got = page(make_run(alone=alone, dissected=True).folder)
    levels = [int(tag[1]) for tag, _ in got.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    if not alone:
        assert all(later - earlier <= 1 for earlier, later in itertools.pairwise(levels)), levels
    charts = got.all("svg", "chart")
    assert len(charts) >= 4
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs, _ in charts)
    assert all(attrs["alt"] for attrs, _ in got.all("img"))
    assert all(attrs["tabindex"] == "0" and attrs["aria-label"] for attrs, _ in got.all("div", "scroll"))


def test_hostile_text_is_shown_as_text(fake_run: Any) -> None:
    got = page(fake_run.folder)
    shown = fake_run.hostile.replace("\x1b", "\ufffd")
    titles = [attrs.get("title", "") for attrs, _ in got.all("td", "heat")]
    assert any(shown in title for title in titles), "the task's name, in a tooltip"
    assert any(f"What shape is in the image?{shown}" in text for _, text in got.all("p", "question"))
    assert any(f"no {shown}" in text for _, text in got.all("div", "after"))
    assert "\x1b" not in (fake_run.folder / "report.html").read_text()


def test_the_heat_map_holds_the_matrix_row_0_on_top(make_run: Any) -> None:
    fake = make_run()
    got = page(fake.folder)
    cells = [text for _, text in got.all("td", "heat")]
    zero = ["5.0", "15.0", "40.0"]
    for name, offset in (("finetune", 0), ("experts", 12)):
        wanted = ["not measured" if cell is None else f"{cell * 100:.1f}" for row in fake.matrix[name] for cell in row]
        assert cells[offset : offset + 12] == zero + wanted
    learned = [text for attrs, text in got.all("td", "heat") if "learned" in attrs["class"]]
    assert learned[:6] == ["95.0", "90.0", "85.0", "95.0", "85.0", "80.0"]
    assert [text for _, text in got.all("td", "fell")] == ["-95.0", "-65.0", "-10.0", "-5.0"]


def test_the_summary_and_the_oracle_are_said_in_plain_language(make_run: Any) -> None:
    got = page(make_run().folder)
    plain, oracle = (text for _, text in got.all("article", "variant"))
    assert "After 3 tasks, average accuracy is 36.7 %. On average 80.0 points were forgotten" in plain
    assert "most on “shape” (95.0 % → 0.0 %)" in plain
    assert "No method read the task id at test time" in plain
    assert "Oracle: projector_experts read the task id at test time" in oracle
    facts = dict(zip((t for _, t in got.all("dt")), (t for _, t in got.all("dd")), strict=True))
    assert facts["Language model"] == "smollm2-135m-instruct"
    assert facts["Projector"] == "mlp (depth 2)"
    assert facts["LoRA"] == "rank 16"
    assert facts["Seed"] == "3"
    assert facts["torch"] == "2.14.1"
    assert facts["Methods, experts"] == "replay, projector_experts (oracle)"
    assert "Differs from the recipe in train.epochs = 2." in oracle


def test_metrics_stand_with_definitions_and_the_best_is_marked(make_run: Any) -> None:
    got = page(make_run().folder)
    best = [text for _, text in got.all("td", "best")]
    assert best[:3] == ["90.0 % (best)", "81.7 % (best)", "7.5 pts (best)"]  # of the comparison
    assert best[3] == "-45.0 (-50.0 to -40.0)"  # of the differences
    assert best[4:] == [f"{text} (best)" for text in ("81.7 %", "90.0 %", "-7.5 pts", "7.5 pts", "81.7 %")]
    names = [text for _, text in got.all("th") if text in ("ACC", "OP", "MFT", "BWT", "FM", "MTIL_last")]
    means, tested = ["ACC", "BWT", "FM"], ["ACC"]
    assert names == [*means, *tested, "ACC", "OP", "MFT", "BWT", "FM", "MTIL_last"]
    cells = [text for attrs, text in got.all("td", "series")]
    assert cells == ["95.0 → 50.0 → 36.7", "95.0 → 87.5 → 81.7", "shape 95.0, color 65.0", "shape 10.0, color 5.0"]
    assert "Note: made up." in got.text()
    definitions = [text for _, text in got.all("td", "definition")]
    assert "denominator T-1: 1/(T-1) sum_i<T (R[T,i] - R[i,i])" in definitions
    assert "share of answers equal to the reference (follows easy-VQA)" in definitions
    assert "Not computed: FWT (tasks were not scored before they were learned)." in got.text()


def test_variants_are_compared(make_run: Any) -> None:
    got = page(make_run().folder)
    columns = [text for _, text in got.all("th")]
    assert columns[columns.index("Variant") :][:7] == [
        "Variant",
        "Average accuracy",
        "Learned (MFT)",
        "Forgetting (FM)",
        "Visual tokens per image",
        "Encoder parameters",
        "Trained and kept",
    ]
    cells = [text for _, text in got.all("td", "number")]
    assert cells[:7] == ["36.7 %", "90.0 % (best)", "80.0 pts", "16", "3.37 M", "139 M", "19.6 MB"]
    labels = [attrs.get("aria-label", "") for attrs, _ in got.all("svg")]
    (chart,) = (label for label in labels if "against forgetting" in label)
    told = "finetune: 36.7 % accuracy, forgetting (FM) 80.0 pts; experts: 81.7 % accuracy, forgetting (FM) 7.5 pts"
    assert told in chart.replace("\N{NO-BREAK SPACE}", " ")
    assert "Comparison" not in page(make_run(alone=True).folder).text()


def test_the_gallery_shows_both_answers_for_rows_that_fell(make_run: Any) -> None:
    fake = make_run()
    got = page(fake.folder)
    groups = [text for _, text in got.all("summary")]
    assert groups == [
        "Other definitions in use (2)",
        "shape 19 of 20 answers got worse between 01-shape and 03-yes-no, 8 shown",
        "color 13 of 20 answers got worse between 02-color and 03-yes-no, 8 shown",
        "shape 2 of 20 answers got worse between 01-shape and 03-yes-no",
        "color 1 of 20 answers got worse between 02-color and 03-yes-no",
    ]
    cards = [text for _, text in got.all("li", "card")]
    assert len(cards) == 8 + 8 + 2 + 1
    before, after = (got.all("div", side) for side in ("before", "after"))
    assert len(before) == len(after) == len(cards)
    assert all(text.startswith("When learned✓right") for _, text in before)
    assert all(text.startswith("At the end✗wrong") for _, text in after)
    assert {text.split("wrong ")[1] for _, text in after[:8]} == {"yes", "no", "no answer"}
    images = [attrs["src"] for attrs, _ in got.all("img")]
    assert len(images) == len(cards) - 2, "one thumbnail is missing, one question has no image"
    assert not any("0018" in text for _, text in got.all("li", "card")[:16]), "what can be shown comes first"
    assert [text for _, text in got.all("span", "placeholder")] == ["test/images/0018.png"]


def test_routing_is_shown_only_where_experts_were_taken(make_run: Any) -> None:
    got = page(make_run().folder)
    assert len(got.all("table", "confusion")) == 1
    assert "Routing accuracy 90.0 % after 03-yes-no, with the task id given (oracle)" in got.text().replace(
        "\u00a0", " "
    )
    alone = page(make_run(alone=True).folder)
    assert not alone.all("table", "confusion")
    assert "Routing" not in [text for _, text in alone.all("h2")]
    assert "#routing" not in [attrs["href"] for attrs, _ in alone.all("a")]


def test_costs_have_human_units_and_all_digits_in_the_tooltip(make_run: Any) -> None:
    got = page(make_run().folder)
    cells = {text: attrs.get("title") for attrs, text in got.all("td", "number")}
    assert cells["4.88 M"] == "4,884,480"
    assert cells["10 min 12 s"] == "611.500"
    assert cells["7.20 MB"] == "7,200,000"
    assert cells["22 min 43 s"] == "1,363"


def test_two_writes_give_the_same_page(make_run: Any) -> None:
    fake = make_run()
    assert write(fake.folder).read_bytes() == write(fake.folder).read_bytes()


def test_a_run_folder_may_lack_what_is_not_a_result(make_run: Any) -> None:
    fake = make_run(alone=True)
    for name in ("recipe.yaml", "environment.json", "metrics.json"):
        (fake.folder / name).unlink()
    got = page(fake.folder)
    assert "Metrics appear when the first stage is scored" in got.text()
    assert "After 3 tasks, average accuracy is 36.7 %." in got.text()


def answer(text: str, score: float, *, reference: str = "r", image: str = "i") -> Answer:
    return Answer("id", "q", text, score, (reference,), "base", "", ((image, ""),))


def test_the_choice_is_diverse_and_takes_the_larger_fall_first() -> None:
    pairs = [(answer("good", 1.0), answer("yes", 0.0, image=str(i))) for i in range(5)]
    pairs += [(answer("good", 1.0), answer("red", 0.5)), (answer("good", 1.0), answer("blue", 0.2))]
    chosen = [new.text for _, new in diverse(pairs, 4)]
    assert chosen[0] == "yes"
    assert sorted(chosen) == ["blue", "red", "yes", "yes"]
    assert len(diverse(pairs, 100)) == len(pairs)


def test_rows_are_matched_by_their_id_not_by_their_place(make_run: Any) -> None:
    fake = make_run()
    path = fake.stage("finetune", "03-yes-no") / "predictions" / "1-task.jsonl"
    path.write_text("\n".join(reversed(path.read_text().splitlines())))
    groups = forgotten(read_run(fake.folder).variants[0], fake.folder)
    assert [group.fell for group in groups] == [19, 13]
    assert all(item.before.id == item.after.id for group in groups for item in group.shown)


def test_thumbnails_are_small_pngs_and_a_digest_is_no_path(tmp_path: Path) -> None:
    folder = tmp_path / "gallery"
    folder.mkdir()
    Image.new("RGB", (900, 300), "red").save(folder / ("a" * 64 + ".png"))
    uri = thumbnail(folder, "a" * 64)
    assert uri is not None
    with Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))) as image:
        assert (image.format, image.size) == ("PNG", (128, 43))
    Image.new("RGB", (9, 9)).save(tmp_path / "abcdef12.png")
    assert thumbnail(folder, "../abcdef12") is None
    (folder / ("b" * 64 + ".png")).write_bytes((folder / ("a" * 64 + ".png")).read_bytes()[:60])
    assert thumbnail(folder, "b" * 64) is None
    assert thumbnail(folder, "") is None


def test_images_may_be_names_with_or_without_digests_beside_them(make_run: Any) -> None:
    fake = make_run(alone=True)
    path = fake.stage("default", "03-yes-no") / "predictions" / "0-task.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        if images := row["metadata"]["images"]:
            row["metadata"] |= {"images": [images[0]["name"], "a.png"], "digests": [images[0]["digest"]]}
    path.write_text("\n".join(map(json.dumps, rows)))
    got = page(fake.folder)
    assert len(got.all("img")) == 7 + 8, "of the first task, one question has no image"
    assert [text for _, text in got.all("span", "placeholder")].count("a.png") == 7
