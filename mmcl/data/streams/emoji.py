"""Emoji: real images and words that shift over time, topics, languages and looks; the data come with three packages."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from mmcl.data.streams.emoji_glyphs import CATEGORIES, Glyph, Rendering, Style, glyphs
from mmcl.data.types import IMAGE_PLACEHOLDER, Sample, StageKind, Task, Turn
from mmcl.errors import Problem, UserError

Shift = Literal["temporal", "content", "language", "domain"]
Form = Literal["caption", "vqa", "classification", "edit", "preference"]
Part = Literal["train", "test"]

PERIODS: Mapping[str, tuple[int, int]] = {
    "2010": (2010, 2014),
    "2015": (2015, 2015),
    "2017": (2016, 2017),
    "2019": (2018, 2019),
    "2021": (2020, 2021),
    "2024": (2022, 2024),
}
"""Periods of the temporal shift: the years of the releases in each."""

WHAT: Mapping[str, str] = {
    "en": "What is this?",
    "es": "¿Qué es esto?",
    "de": "Was ist das?",
    "zh": "这是什么?",
    "fr": "Qu'est-ce que c'est ?",
    "it": "Che cos'è questo?",
    "pt": "O que é isto?",
    "ja": "これは何ですか?",
    "ko": "이것은 무엇입니까?",
    "ru": "Что это?",
    "tr": "Bu nedir?",
    "id": "Apa ini?",
    "ar": "ما هذا؟",
    "fa": "این چیست؟",
}
"""The question for a name, in every language that has names."""

CAPTIONS = "captions"


@dataclass(frozen=True, slots=True)
class _Plan:
    """One task: which emoji, asked in which language, drawn in which style, in which period."""

    name: str
    glyphs: Sequence[Glyph]
    language: str = "en"
    style: Style = "colour"
    period: str = ""


def _new_name(glyph: Glyph, seed: int) -> str:
    """A made-up word, the same on every machine."""
    rng = random.Random(f"{seed} {glyph.character} name")
    return "".join(rng.choice("bdfklmnprstvz") + rng.choice("aeiou") for _ in range(3))


def _things(candidates: Iterable[Glyph]) -> list[Glyph]:
    """Without signs, whose names do not say what is seen."""
    return [glyph for glyph in candidates if glyph.category != "symbols"]


class Emoji:
    """Pictures of emoji and what they are called (OpenMoji 17, CC BY-SA 4.0; names and releases from Unicode's data).

    Shifts, each a stream of its own:

    - `temporal`: one task per period of Emoji releases (2010, 2015 ... 2024); no emoji appears before its release. In
      the form `vqa`, text-only questions ask which year brought the newest emoji of a category: their answers change,
      and say so in their metadata (`knowledge`: `updated`, `invariant` or `new`).
    - `content`: one task per Unicode category (animals, food, travel ...).
    - `language`: the same pictures, named in English, Spanish, German, Chinese ... (14 languages).
    - `domain`: the same pictures and names, in colour, grey, as an outline, noisy, in low resolution.

    Every emoji is drawn several times, in other sizes, places, angles and shades; training and test never share a
    drawing, so that a name can be learned, and forgotten.

    Args:
        shift: what changes from task to task.
        form: `caption` asks for a description; `vqa` for name, category and yes or no; `classification` for a name
            out of the task's names, which are its `choices`; `edit` corrects names to made-up ones (for a stage
            `refine`, with rephrasings and unrelated questions in the test); `preference` prefers short answers to
            long ones (for a stage `prefer`).
        kind: stage kind that the tasks are meant for; by default `refine` and `prefer` for those two forms.
        prefix: put before the names of the tasks.
        tasks: periods, categories, languages or styles, in order; None for the usual ones.
        glyphs: emoji per task, at most.
        views: training drawings of each emoji.
        test_views: test drawings of each.
        captions: add a training task `captions` of kind `align` with so many drawings of other emoji; 0 for none.
        image_size: height and width in pixels.
        seed: decides which emoji are taken.
    """

    def __init__(
        self,
        *,
        shift: Shift = "temporal",
        form: Form = "vqa",
        tasks: list[str] | None = None,
        glyphs: int = 24,
        views: int = 6,
        test_views: int = 2,
        captions: int = 0,
        image_size: int = 64,
        kind: StageKind | None = None,
        prefix: str = "",
        seed: int = 0,
    ) -> None:
        usual: Mapping[Shift, Sequence[str]] = {
            "temporal": tuple(PERIODS),
            "content": ("animals", "food", "travel", "activities", "objects"),
            "language": ("en", "es", "de", "zh"),
            "domain": get_args(Style),
        }
        offered = {**usual, "content": tuple(CATEGORIES.values()), "language": tuple(WHAT)}[shift]
        names = list(usual[shift]) if tasks is None else list(tasks)
        bounds = {"glyphs": glyphs, "views": views, "test_views": test_views}
        problems = [
            Problem(f"stream.{key}", f"{size} is too small", "at least 1") for key, size in bounds.items() if size < 1
        ]
        if captions < 0 or image_size < 16:
            problems.append(Problem("stream", "captions or image_size is too small", "captions >= 0, image_size >= 16"))
        unknown = [name for name in names if name not in offered]
        if unknown or len(set(names)) != len(names) or not names:
            message = f"no such tasks: {', '.join(unknown)}" if unknown else "a task twice, or none"
            problems.append(Problem("stream.tasks", message, f"name each of these at most once: {', '.join(offered)}"))
        if problems:
            raise UserError(problems=problems)
        self.shift, self.form, self.names = shift, form, names
        self.glyphs, self.views, self.test_views = glyphs, views, test_views
        self.captions, self.image_size, self.seed = captions, image_size, seed
        usual_kind: Mapping[Form, StageKind] = {"edit": "refine", "preference": "prefer"}
        self.kind, self.prefix = kind or usual_kind.get(form, "instruct"), prefix

    def tasks(self) -> Sequence[Task]:
        """The tasks in order, the captions first.

        Raises:
            UserError: the data are not installed.
        """
        plans = self._plans()
        tasks = [self._task(plan, place, plans) for place, plan in enumerate(plans)]
        if not self.captions:
            return tasks
        used = {glyph.character for plan in plans for glyph in plan.glyphs}
        return [self._captions([glyph for glyph in _things(glyphs()) if glyph.character not in used]), *tasks]

    # ------------------------------------------------------------------------------------------------------ which emoji

    def _plans(self) -> list[_Plan]:
        if self.shift == "language":
            chosen = self._chosen(_things(glyphs(("en", *(name for name in self.names if name != "en")))))
            return [_Plan(name, chosen, language=name) for name in self.names]
        everything = glyphs()
        if self.shift == "domain":
            chosen = self._chosen(_things(everything))
            styles: Mapping[str, Style] = {style: style for style in get_args(Style)}
            return [_Plan(name, chosen, style=styles[name]) for name in self.names]
        if self.shift == "content":
            return [_Plan(name, self._chosen(g for g in everything if g.category == name)) for name in self.names]
        return [
            _Plan(name, self._chosen(g for g in _things(everything) if first <= g.year <= last), period=name)
            for name in self.names
            for first, last in [PERIODS[name]]
        ]

    def _chosen(self, candidates: Iterable[Glyph]) -> list[Glyph]:
        """Up to `glyphs` of them, in an order that depends on the seed alone."""
        return self._ranked(candidates)[: self.glyphs]

    def _ranked(self, candidates: Iterable[Glyph]) -> list[Glyph]:
        return sorted(candidates, key=lambda g: hashlib.sha256(f"{self.seed}/{g.character}".encode()).digest())

    # ---------------------------------------------------------------------------------------------------------- samples

    def _task(self, plan: _Plan, place: int, plans: Sequence[_Plan]) -> Task:
        train = [
            sample
            for glyph in plan.glyphs
            for number in range(self.views)
            for sample in self._asked(plan, glyph, number, "train")
        ]
        test = [
            sample
            for glyph in plan.glyphs
            for n in range(self.views, self.views + self.test_views)
            for sample in self._asked(plan, glyph, n, "test")
        ]
        if self.shift == "temporal" and self.form == "vqa":
            train += [sample for n in range(self.views) for sample in self._facts(plan, place, plans, n, "train")]
            test += self._facts(plan, place, plans, 0, "test")
        if self.form == "edit":
            test += self._bystanders(plan)
        names = dict.fromkeys(glyph.names[plan.language] for glyph in plan.glyphs)
        return Task(
            name=self.prefix + plan.name,
            train=train,
            test=test,
            metric="exact",
            kind=self.kind,
            time=plan.period,
            domain=plan.name if self.shift in ("content", "domain") else "",
            language=plan.language,
            choices=tuple(names) if self.form == "classification" else (),
        )

    def _asked(self, plan: _Plan, glyph: Glyph, number: int, part: Part) -> list[Sample]:
        """The questions about one drawing."""
        name = glyph.names[plan.language]
        questions = [(WHAT[plan.language], name, "name")]
        if self.form == "caption":
            questions = [("Describe the image.", name, "caption")]
        elif self.form == "edit":
            name = _new_name(glyph, self.seed)
            questions = [(WHAT[plan.language], name, "edit")]
            if part == "test":
                questions.append(("Name this.", name, "rephrase"))
        elif self.form == "vqa" and plan.language == "en":
            rng = random.Random(f"{self.seed} {glyph.character} {number}")
            others = [other.names["en"] for other in plan.glyphs if other is not glyph]
            asked = rng.choice(others) if others and rng.random() < 0.5 else name
            questions.append(("What kind of thing is this?", glyph.category, "category"))
            questions.append((f"Is this a picture of: {asked}?", "yes" if asked == name else "no", "yes_no"))
        image = Rendering(glyph.character, number, plan.style, self.image_size)
        key = f"{part}-{ord(glyph.character):X}-{number}"
        return [
            self._sample(
                plan,
                f"{key}-{group}",
                f"{IMAGE_PLACEHOLDER}\n{text}",
                answer,
                group,
                part,
                image=image,
                rejected=f"I believe that this could be a picture of: {name}" if self.form == "preference" else "",
            )
            for text, answer, group in questions
        ]

    def _bystanders(self, plan: _Plan) -> list[Sample]:
        """Questions about other emoji, whose answers an edit should leave as they are."""
        edited = {glyph.character for glyph in plan.glyphs}
        others = [glyph for glyph in _things(glyphs()) if glyph.character not in edited]
        asked = f"{IMAGE_PLACEHOLDER}\n{WHAT[plan.language]}"
        return [
            self._sample(
                plan,
                f"test-{ord(glyph.character):X}-locality",
                asked,
                glyph.names["en"],
                "locality",
                "test",
                image=Rendering(glyph.character, self.views, plan.style, self.image_size),
            )
            for glyph in self._ranked(others)[: 2 * len(plan.glyphs)]
        ]

    def _facts(self, plan: _Plan, place: int, plans: Sequence[_Plan], number: int, part: Part) -> list[Sample]:
        """What is the newest in each category, as far as the period knows; text only."""
        last = PERIODS[plan.period][1]
        earlier = [PERIODS[before.period][1] for before in plans[:place]]
        found = []
        for category in CATEGORIES.values():
            years = sorted({glyph.year for glyph in glyphs() if glyph.category == category and glyph.year <= last})
            if not years:
                continue
            known = [max((year for year in years if year <= until), default=None) for until in earlier]
            before = known[-1] if known else None
            change = "new" if before is None else "invariant" if before == years[-1] else "updated"
            text = f"Which year brought the newest emoji of {category}?"
            key = f"{part}-{category}-{number}"
            fact = {"knowledge": change}
            found.append(self._sample(plan, key, text, str(years[-1]), "newest", part, metadata=fact))
        return found

    def _sample(
        self,
        plan: _Plan,
        key: str,
        text: str,
        answer: str,
        group: str,
        part: Part,
        *,
        image: Rendering | None = None,
        rejected: str = "",
        metadata: Mapping[str, Any] | None = None,
    ) -> Sample:
        asked = Turn("user", text)
        return Sample(
            id=key,
            task=self.prefix + plan.name if plan.name != CAPTIONS else CAPTIONS,
            turns=(asked, Turn("assistant", answer)) if part == "train" else (asked,),
            images=(image,) if image else (),
            answers=() if part == "train" else (answer,),
            group=group,
            time=plan.period,
            language=plan.language,
            rejected=rejected if part == "train" else "",
            metadata=metadata or {},
        )

    def _captions(self, others: Sequence[Glyph]) -> Task:
        """Drawings of emoji that no task uses; some are held out, to measure the loss on them."""
        ranked = self._ranked(others)
        plan = _Plan(CAPTIONS, ranked)
        asked = f"{IMAGE_PLACEHOLDER}\nDescribe the image."

        def caption(number: int) -> Sample:
            glyph = ranked[number % len(ranked)]
            image = Rendering(glyph.character, number // len(ranked), "colour", self.image_size)
            return self._sample(plan, f"caption-{number}", asked, glyph.names["en"], "caption", "train", image=image)

        heldout = [caption(self.captions + number) for number in range(min(64, len(ranked)))]
        return Task(CAPTIONS, [caption(number) for number in range(self.captions)], kind="align", heldout=heldout)
