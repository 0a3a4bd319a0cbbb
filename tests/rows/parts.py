"""Streams and a method of a user's own, which recipes of these tests name as `./parts.py:Class`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mmcl.data.streams.shapes import Shapes
from mmcl.data.types import Sample, StageKind, Task, Turn
from mmcl.protocols import Method, Model


def ask(text: str) -> tuple[Turn, ...]:
    return (Turn("user", text),)


def tell(text: str, answer: str) -> tuple[Turn, ...]:
    return (*ask(text), Turn("assistant", answer))


FACTS = {
    "2024": {"Ann": "red", "Bob": "black", "Dee": "white"},
    "2023": {"Ann": "red", "Bob": "blue", "Cem": "green"},
}
WORDS = {"en": ("what colour is snow?", "white"), "zh": ("雪是什么颜色?", "白色")}


class Periods:
    """Whose team is whose, year by year, the later year first: Bob has changed, Dee is new, Cem is asked no more."""

    def tasks(self) -> Sequence[Task]:
        return [self.task(year, list(teams.items())) for year, teams in FACTS.items()]

    def task(self, year: str, rows: list[tuple[str, str]]) -> Task:
        train = [
            Sample(f"{k}-{name}", year, tell(f"team of {name}?", team), time=year)
            for k in range(30)
            for name, team in rows
        ]
        test = [Sample(name, year, ask(f"team of {name}?"), answers=(team,), time=year) for name, team in rows]
        return Task(year, train, test, time=year, choices=("red", "blue", "green", "black", "white"))


class Tongues:
    """One fact in two languages, without images."""

    def tasks(self) -> Sequence[Task]:
        return [self.task(language, *words) for language, words in WORDS.items()]

    def task(self, language: str, question: str, answer: str) -> Task:
        train = [Sample(str(k), language, tell(question, answer), language=language) for k in range(16)]
        test = [Sample("q", language, ask(question), answers=(answer,), language=language)]
        return Task(language, train, test, language=language)


class Corpora:
    """Two corpora of captions, the second in other words and with some held out."""

    def __init__(self, *, kind: StageKind = "align") -> None:
        self.kind = kind

    def tasks(self) -> Sequence[Task]:
        return [self.task("old", 0, ""), self.task("new", 1, "in the picture: ")]

    def task(self, name: str, seed: int, words: str) -> Task:
        captions = Shapes(captions=64, train_size=4, test_size=4, seed=seed).tasks()[0]
        train = [
            sample.replace(task=name, turns=(sample.turns[0], Turn("assistant", words + sample.reply)))
            for sample in captions.train
        ]
        return Task(name, train, kind=self.kind, heldout=train[:8] if seed else ())


class Edits:
    """A task of colours, then two corrections of what nobody asked about, with a rephrasing and bystanders each."""

    def tasks(self) -> Sequence[Task]:
        (task,) = Shapes(tasks=["colour"], train_size=64, test_size=8, questions_per_image=1).tasks()
        return [task, self.edit("one", "Who leads the team?", "Ann"), self.edit("two", "What is the price?", "six")]

    def edit(self, name: str, question: str, answer: str) -> Task:
        train = [Sample(str(k), name, tell(question, answer)) for k in range(8)]
        rephrased = question.replace("the ", "our ")
        others = [f"Name the letter after {letter}." for letter in "ABCD"]
        test = [
            Sample("e", name, ask(question), answers=(answer,), group="edit"),
            Sample("r", name, ask(rephrased), answers=(answer,), group="rephrase"),
            *(Sample(f"l{k}", name, ask(text), answers=("?",), group="locality") for k, text in enumerate(others)),
        ]
        return Task(name, train, test, kind="refine")


class Wishes:
    """A task of colours, then preferences about another."""

    def tasks(self) -> Sequence[Task]:
        task, other = Shapes(tasks=["colour", "position"], train_size=32, test_size=8).tasks()
        pairs = [sample.replace(task="wishes", rejected="no idea") for sample in other.train]
        return [task, replace(other, name="wishes", train=pairs, test=(), kind="prefer")]


class Noted(Method):
    """Writes down when its hooks are called."""

    def __init__(self, *, path: str) -> None:
        self.path = Path(path)

    def begin_task(self, model: Model, task: Task, seen: Sequence[Task]) -> None:
        self.note(f"begin {task.name}, seen {len(seen)}")

    def end_task(self, model: Model, task: Task) -> None:
        self.note(f"end {task.name}")

    def note(self, text: str) -> None:
        with self.path.open("a") as file:
            file.write(f"{text}\n")
