"""Questions asked again with one thing put back at a time: the evidence for `mmcl.evaluation.anatomy`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from mmcl.anatomy.images import blank, disordered, foreign, partners
from mmcl.anatomy.states import Vectors, image_states, text_states
from mmcl.data.types import Samples, Task
from mmcl.evaluation.anatomy import Lost
from mmcl.evaluation.choices import Choices
from mmcl.evaluation.confusion import AnswerSets
from mmcl.evaluation.evaluate import ask, prediction
from mmcl.model.parts import PARTS, part_of
from mmcl.protocols import Batch, Metric, Route
from mmcl.recipe.spec import EvaluateSpec

if TYPE_CHECKING:
    from mmcl.model.assembly import Assembly
    from mmcl.progress import Progress
    from mmcl.training.methods import Methods

VISION = ("encoder", "encoder.lora", "projector", "experts")
"""The parts of the vision side; the others are the language side."""


@dataclass(frozen=True, slots=True)
class Asker:
    """Asks a model questions of one task, and scores the answers.

    Attributes:
        metric: of the task.
        lenient: scores an answer in whatever format.
        spec: how to ask.
        choices: the answers to rank where the run itself asks so; else None.
        progress: shows what goes on.
        label: what is asked, for the progress bar.
    """

    metric: Metric
    lenient: Metric
    spec: EvaluateSpec
    choices: Choices | None
    progress: Progress
    label: str

    def answers(
        self, model: Assembly, samples: Samples, routes: Sequence[Route], what: str, among: Choices | None = None
    ) -> list[str]:
        """The answer to each question, ranked among the given answers or as the run asks."""

        def track(rows: list[Batch]) -> Iterable[Batch]:
            return self.progress.track(rows, label=f"{self.label}, {what}", total=len(rows), unit="row")

        return ask(model, samples, routes, self.spec, among or self.choices, track)

    def rows(self, samples: Samples, texts: Sequence[str], *, lenient: bool = False) -> tuple[float, ...]:
        """The score of each answer."""
        metric = self.lenient if lenient else self.metric
        return metric([prediction(s, text, "", {}) for s, text in zip(samples, texts, strict=True)]).rows

    def corpus(self, samples: Samples, texts: Sequence[str]) -> float:
        """The score of all answers."""
        return self.metric([prediction(s, text, "", {}) for s, text in zip(samples, texts, strict=True)]).corpus


@dataclass(frozen=True, slots=True)
class Look:
    """A task's questions at one stage, with other images.

    Attributes:
        images: score of the questions with images, with each kind of image: `own`, `blank`, `foreign`, `disordered`;
            empty for a task without images.
        unmoved: places of the questions whose answer stays the same with a blank and with a foreign image.
        image_states: see `image_states`.
        text_states: see `text_states`.
    """

    images: Mapping[str, float]
    unmoved: frozenset[int]
    image_states: Vectors
    text_states: Vectors


def look(
    model: Assembly,
    asker: Asker,
    samples: Samples,
    routes: Sequence[Route],
    texts: Sequence[str],
    others: Samples,
) -> Look:
    """Ask the questions with other images, each over its own route, and take the states of images and texts.

    Args:
        model: at a stage; its encoder is frozen.
        asker: of the task.
        samples: of one task.
        routes: that the samples take with their own images.
        texts: the answers with their own images.
        others: samples of other tasks, for foreign images; of the same task if there is no other.
    """
    places = [k for k, sample in enumerate(samples) if sample.images]
    scores: dict[str, float] = {}
    unmoved: frozenset[int] = frozenset()
    if places:
        shown, along = [samples[k] for k in places], [routes[k] for k in places]
        changed = {"blank": blank(shown), "foreign": foreign(shown, others), "disordered": disordered(model, shown)}
        own = [texts[k] for k in places]
        found = {kind: asker.answers(model, each, along, f"{kind} images") for kind, each in changed.items()}
        scores = {kind: asker.corpus(shown, answers) for kind, answers in {"own": own, **found}.items()}
        triples = zip(places, own, found["blank"], found["foreign"], strict=True)
        unmoved = frozenset(k for k, *answers in triples if len(set(answers)) == 1)
    return Look(scores, unmoved, image_states(model, samples, routes), text_states(model, samples, routes))


@dataclass(frozen=True, slots=True)
class Evidence:
    """What came of asking again.

    Attributes:
        lost: of each lost question, in order.
        repaired: of each lost question, the answer with the repair of each part of a loss.
        transplants: score of all questions with each part put back alone, over their own routes; `own route`, where
            some took others, is the score without any.
    """

    lost: list[Lost]
    repaired: list[dict[str, str]]
    transplants: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Asked:
    """The questions of a task that both stages were asked.

    Attributes:
        task: the task.
        samples: the questions.
        before: score of each at the stage that learned the task.
        after: score of each at the later stage.
        texts: the answers at the later stage.
    """

    task: Task
    samples: Samples
    before: Sequence[float]
    after: Sequence[float]
    texts: Sequence[str]

    @property
    def lost(self) -> list[int]:
        """Places of the questions that were answered better before."""
        return [k for k, (was, now) in enumerate(zip(self.before, self.after, strict=True)) if now < was]


def gather(
    model: Assembly,
    methods: Methods,
    asker: Asker,
    asked: Asked,
    *,
    taken: Sequence[Route],
    learned: Mapping[str, Tensor],
    look: Look,
    choices: Choices | None,
    sets: AnswerSets,
) -> Evidence:
    """Ask lost questions again, each time with one repair. The model is as it was afterwards.

    Args:
        model: at the later stage; its encoder is frozen.
        methods: of that stage.
        asker: of the task.
        asked: the questions.
        taken: the route that each question takes.
        learned: the tensors of that stage that differ at the stage that learned the task, as they were then.
        look: the questions with other images, at the later stage.
        choices: the task's answers; None where it has no closed set, or where the run ranks them anyway.
        sets: the answers of each task.
    """
    samples, places = asked.samples, asked.lost
    own = methods.assign(model, samples)
    moved = [k for k in range(len(samples)) if taken[k] != own[k]]
    again = asker.answers(model, [samples[k] for k in moved], [own[k] for k in moved], "own route")
    texts = list(asked.texts)
    for k, text in zip(moved, again, strict=True):
        texts[k] = text

    def scored(answers: Sequence[str]) -> list[float]:
        """Scores of the lost questions with these answers to them; metrics may look at all rows at once."""
        every = list(texts)
        for k, text in zip(places, answers, strict=True):
            every[k] = text
        rows = asker.rows(samples, every)
        return [rows[k] for k in places]

    def of_lost(every: Sequence[str]) -> list[str]:
        return [every[k] for k in places]

    lost, routes = [samples[k] for k in places], [own[k] for k in places]
    swap = _Swap(model, asker, samples, own, texts, learned)
    answers = {
        "routing": of_lost(texts),
        "vision": of_lost(swap.answers([part for part in swap.parts if part in VISION])),
        "language": of_lost(swap.answers([part for part in swap.parts if part not in VISION])),
        "together": of_lost(swap.answers(swap.parts)),
    }
    if choices is not None:
        answers["ranked"] = asker.answers(model, lost, routes, "ranking", choices)
        partner = partners(lost, asked.task.test)
        answers["guessed"] = asker.answers(model, partner, routes, "ranking without the image", choices)
    scores = {repair: scored(found) for repair, found in answers.items()}
    readable = asker.rows(lost, answers["routing"], lenient=True)
    evidence, repaired = [], []
    for at, k in enumerate(places):
        evidence.append(
            Lost(
                before=asked.before[k],
                after=asked.after[k],
                oracle=scores["routing"][at] if k in moved else asked.after[k],
                lenient=asked.before[k] if readable[at] else asked.after[k],
                ranked=scores["ranked"][at] if choices else None,
                guessed=scores["guessed"][at] if choices else None,
                vision=scores["vision"][at],
                language=scores["language"][at],
                both=scores["together"][at],
                blind=k in look.unmoved,
                foreign=sets.foreign(asked.texts[k], asked.task.name),
            )
        )
        each = {repair: found[at] for repair, found in answers.items() if repair != "guessed"}
        best = "language" if scores["language"][at] >= scores["together"][at] else "together"
        each |= {"prior": each[best], "format": each["routing"] if readable[at] else each.pop("ranked", "")}
        repaired.append(each)
    scores_alone = {"own route": asker.corpus(samples, texts)} if moved else {}
    return Evidence(evidence, repaired, {**scores_alone, **swap.alone()})


class _Swap:
    """Parts of an earlier stage in a later model, one set at a time.

    Args:
        model: at the later stage.
        asker: asks.
        samples: all questions.
        routes: of each.
        texts: their answers with no part put back.
        learned: see `gather`.
    """

    def __init__(
        self,
        model: Assembly,
        asker: Asker,
        samples: Samples,
        routes: Sequence[Route],
        texts: list[str],
        learned: Mapping[str, Tensor],
    ) -> None:
        self.model, self.asker, self.samples, self.routes = model, asker, samples, routes
        self.learned = learned
        self.parts = [part for part in PARTS if any(part_of(name) == part for name in learned)]
        self._found: dict[tuple[str, ...], list[str]] = {(): texts}

    def answers(self, parts: Sequence[str]) -> list[str]:
        """The answers to all questions with these parts put back; asked once."""
        key = tuple(parts)
        if key not in self._found:
            back = {name: tensor for name, tensor in self.learned.items() if part_of(name) in key}
            now = {name: tensor.clone() for name, tensor in self.model.state().items()}
            try:
                self.model.load_state({**now, **back})
                self._found[key] = self.asker.answers(self.model, self.samples, self.routes, " and ".join(key))
            finally:
                self.model.load_state(now)
        return self._found[key]

    def alone(self) -> dict[str, float]:
        """The score of all questions with each part that differs put back alone."""
        return {part: self.asker.corpus(self.samples, self.answers([part])) for part in self.parts}
