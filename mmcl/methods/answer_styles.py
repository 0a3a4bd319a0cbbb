"""Answer-style diversification: the same knowledge asked for in several forms, so that no stage fixes the form."""

from __future__ import annotations

import random
from typing import Literal, get_args

from mmcl.data.types import Sample, Samples, Task, Turn
from mmcl.errors import Problem, UserError
from mmcl.protocols import Method, Model

Style = Literal["yes_no", "multiple_choice"]
LETTERS = "ABCDEFGH"
STYLE = "style"
"""Metadata key of a converted sample: its style."""


class AnswerStyles(Method):
    """Ask a share of the samples in another form (answer-style diversification of SEFE, 2505.02486).

    A question with a short answer becomes one to be answered by yes or no (for half of them, a wrong answer is
    proposed), or by the letter of one of several choices. Wrong answers come from the sample's group, if it has others,
    else from the task. What can't be converted stays: several turns, long answers, no other answer.

    Args:
        share: of the samples that can be converted, in [0, 1].
        styles: to convert into, in equal parts.
        choices: of a multiple-choice question, from 2 to 8; fewer where the task has fewer answers.
        longest: most words of an answer that is converted.
    """

    needs_boundaries = False

    def __init__(
        self,
        *,
        share: float = 0.2,
        styles: list[Style] | None = None,
        choices: int = 4,
        longest: int = 5,
    ) -> None:
        chosen = list(get_args(Style)) if styles is None else list(styles)
        wrong = [
            ("share", not 0 <= share <= 1, "a share in [0, 1]"),
            ("styles", not chosen, f"name at least one of {', '.join(get_args(Style))}"),
            ("choices", not 2 <= choices <= len(LETTERS), "from 2 to 8"),
            ("longest", longest < 1, "at least 1"),
        ]
        problems = [Problem(f"answer_styles.{name}", "is out of range", hint) for name, bad, hint in wrong if bad]
        if problems:
            raise UserError(problems=problems)
        self.share = share
        self.styles = chosen
        self.choices = choices
        self.longest = longest

    def training_samples(self, model: Model, task: Task, samples: Samples, rng: random.Random) -> Samples:
        """The samples, a share of them converted; others in each epoch."""
        able = [place for place, sample in enumerate(samples) if self._able(sample)]
        pools: dict[tuple[str, str], list[str]] = {}
        for place in able:
            sample = samples[place]
            for key in ((sample.task, sample.group), (sample.task, "")):
                pools.setdefault(key, []).append(sample.reply.strip())
        pools = {key: sorted(set(answers)) for key, answers in pools.items()}
        able = [place for place in able if len(pools[samples[place].task, ""]) > 1]
        result = list(samples)
        for number, place in enumerate(rng.sample(able, round(self.share * len(able)))):
            sample = result[place]
            pool = pools[sample.task, sample.group]
            others = [answer for answer in (pool if len(pool) > 1 else pools[sample.task, ""])]
            others = [answer for answer in others if answer.casefold() != sample.reply.strip().casefold()]
            if others:
                result[place] = self._convert(sample, self.styles[number % len(self.styles)], others, rng)
        return result

    def _able(self, sample: Sample) -> bool:
        roles = [turn.role for turn in sample.turns if turn.role != "system"]
        words = sample.reply.split()
        return roles == ["user", "assistant"] and 0 < len(words) <= self.longest and not sample.rejected

    def _convert(self, sample: Sample, style: Style, others: list[str], rng: random.Random) -> Sample:
        *before, asked, reply = sample.turns
        answer = reply.text.strip()
        if style == "yes_no":
            right = rng.random() < 0.5
            said = answer if right else rng.choice(others)
            text = f"{asked.text}\nIs the answer {said}? Answer yes or no."
            new = "yes" if right else "no"
        else:
            options = [answer, *rng.sample(others, min(self.choices - 1, len(others)))]
            rng.shuffle(options)
            lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
            text = "\n".join([asked.text, *lines, "Answer with the option's letter from the given choices directly."])
            new = LETTERS[options.index(answer)]
        turns = (*before, Turn("user", text), Turn("assistant", new))
        return sample.replace(turns=turns, metadata={**sample.metadata, STYLE: style})
