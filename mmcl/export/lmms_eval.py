"""Any run as a model of lmms-eval (https://github.com/EvolvingLMMs-Lab/lmms-eval), found there under the name `mmcl`:

python -m lmms_eval --model mmcl --model_args run=runs/quickstart,stage=last --tasks pope --batch_size 1
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms

from mmcl.errors import UserError
from mmcl.export.answering import Answering, Question
from mmcl.progress import Progress

MAX_NEW_TOKENS = 256
"""Where a task does not say."""


class Mmcl(lmms):  # type: ignore[misc]
    """A stage of a run.

    Args:
        run: folder of the run.
        stage: name or label of a finished stage, or `last`.
        variant: the recipe's variant; default: the first.
        batch_size: has no effect: rows are packed, as many tokens as the recipe's `evaluate.row_tokens` says.
        max_batch_size: has no effect.
        device: has no effect: `accelerate` chooses.

    Raises:
        UserError: there is no such run, stage or variant.
    """

    is_simple = True

    def __init__(
        self,
        run: str,
        stage: str = "last",
        variant: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__()
        self.answering = Answering(Path(run), stage=str(stage), variant=variant, progress=Progress())
        self.accelerator = self.answering.accelerator
        self._rank = self.accelerator.process_index
        self._world_size = self.accelerator.num_processes

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Greedy answers, whatever temperature a task asks for."""
        answers = [""] * len(requests)
        groups: dict[tuple[int, tuple[str, ...]], list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(_how(request.args[1]), []).append(place)
        for (longest, until), places in groups.items():
            questions = [self._question(requests[k].args) for k in places]
            for k, text in zip(
                places, self.answering.generate(questions, max_new_tokens=longest, until=until), strict=True
            ):
                answers[k] = text
        return answers

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Log-probability of a continuation as the whole answer, and whether it is the greedy answer."""
        questions, texts = [], []
        for request in requests:
            _, target, _, doc_id, task, split = request.args
            texts.append(target if isinstance(target, str) else target(self.task_dict[task][split][doc_id]))
            questions.append(self._question(request.args))
        return self.answering.log_likelihoods(questions, texts)

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not there.

        Raises:
            UserError: always.
        """
        hint = "choose tasks whose output_type is generate_until, loglikelihood or multiple_choice"
        raise UserError("tasks of several rounds cannot be asked", where="lmms-eval", hint=hint)

    def _question(self, arguments: Sequence[Any]) -> Question:
        context, _, visual, doc_id, task, split = arguments
        shown: Callable[[Any], Sequence[Any] | None] | None = visual
        images = (shown(self.task_dict[task][split][doc_id]) if shown else None) or ()
        return Question(str(context), tuple(images))


def _how(options: Mapping[str, Any]) -> tuple[int, tuple[str, ...]]:
    until = options.get("until") or ()
    return int(options.get("max_new_tokens") or MAX_NEW_TOKENS), (until,) if isinstance(until, str) else tuple(until)
