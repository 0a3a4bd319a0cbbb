"""Answers of a closed vocabulary by likelihood.

Packed: an image stands once, its questions are branches of it, and each question's choices are branches of the
question. The questions' rows run once; then the choices' tokens, many at a time, read the questions' key-value cache,
each seeing its own question and its own branch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmcl.data.types import Sample, Samples, Turn
from mmcl.model.generate import Prefill, further, prefill
from mmcl.model.language import CACHE
from mmcl.protocols import BASE, Batch, Route

if TYPE_CHECKING:
    from mmcl.model.assembly import Assembly

CHUNK_TOKENS = 256
"""Tokens of choices that run at once: each needs a row of logits over the vocabulary."""

Pair = tuple[int, int]
"""(question of the row, choice)."""


def most_likely(
    model: Assembly,
    samples: Samples,
    routes: Sequence[Route] | None,
    choices: Sequence[str],
    *,
    row_tokens: int | None = None,
    track: Callable[[list[Batch]], Iterable[Batch]] = iter,
) -> list[int]:
    """The index of the most likely choice for each sample, in order; the first of equals. See `log_likelihoods`."""
    scores = log_likelihoods(model, samples, routes, choices, row_tokens=row_tokens, track=track)
    return [int(best) for best in scores.argmax(1)]


@torch.no_grad()
def log_likelihoods(
    model: Assembly,
    samples: Samples,
    routes: Sequence[Route] | None,
    choices: Sequence[str],
    *,
    row_tokens: int | None = None,
    track: Callable[[list[Batch]], Iterable[Batch]] = iter,
) -> Tensor:
    """Log-probability of each choice as the whole answer to each sample: float32 [samples, choices] on the CPU.

    It is the sum over the answer's tokens and the end of the turn, so it is the probability that sampling would give
    exactly this answer, and what training on the answer raises. It is not divided by the length: that would prefer
    long answers whose later tokens follow from the first. With the end counted, a choice that begins another one has
    no advantage.

    Args:
        model: the assembly; it is in evaluation mode at all times.
        samples: questions; trailing assistant turns are ignored.
        routes: one per sample; default: base.
        choices: the answers to compare, at least one.
        row_tokens: length of a packed row of questions; None: the model's own.
        track: wraps the list of rows, to show progress.
    """
    # Copies: equal ids do not tell samples apart, and the same object may come twice.
    questions = [s.replace(turns=s.turns[:-1]) if s.reply else s.replace() for s in samples]
    scores = torch.zeros(len(questions), len(choices))
    if not questions:
        return scores
    if not model.packed:
        return _padded(model, questions, routes, choices, row_tokens, track)
    index = {id(question): place for place, question in enumerate(questions)}
    items = model.items(questions, routes, [[False] * len(question.turns) for question in questions])
    answers = [_answer_tokens(model, questions[0], choice) for choice in choices]
    for batch in track(model.batches(items, row_tokens)):
        places = [index[id(sample)] for sample in batch.samples]
        with model.adapters.active(batch.routes[0].adapters):
            scores[places] = _packed(model, batch, answers)
    return scores


def _answer_tokens(model: Assembly, question: Sample, choice: str) -> list[int]:
    """Tokens of the answer and of the turn's end: what the prompt has after the question, whatever that is."""
    turns = (*question.turns, Turn("assistant", choice))
    asked = model.encode(question, [False] * len(question.turns)).ids
    answered = model.encode(question.replace(turns=turns), [turn is turns[-1] for turn in turns])
    return list(answered.ids[len(asked) :])


def _packed(model: Assembly, batch: Batch, answers: Sequence[Sequence[int]]) -> Tensor:
    """[questions of the row, choices] of a one-row batch of questions."""
    device = model.device
    read = prefill(model, batch)
    first = read.logits.float().log_softmax(-1)
    scores: Tensor = first[:, torch.tensor([answer[0] for answer in answers], device=device)]
    pairs = [(q, c) for q in range(len(batch.samples)) for c in range(len(answers)) if len(answers[c]) > 1]
    for chunk in _chunks(pairs, answers):
        question, choice, sums = _continue(model, chunk, answers, read)
        scores.index_put_((question, choice), sums, accumulate=True)
        read.cache.crop(-len(sums))  # as it was after the questions: negative is how many to remove
    return scores.cpu()


def _chunks(pairs: Sequence[Pair], answers: Sequence[Sequence[int]]) -> Iterable[list[Pair]]:
    chosen: list[Pair] = []
    used = 0
    for pair in pairs:
        size = len(answers[pair[1]]) - 1
        if chosen and used + size > CHUNK_TOKENS:
            yield chosen
            chosen, used = [], 0
        chosen.append(pair)
        used += size
    if chosen:
        yield chosen


def _continue(
    model: Assembly,
    pairs: Sequence[Pair],
    answers: Sequence[Sequence[int]],
    read: Prefill,
) -> tuple[Tensor, Tensor, Tensor]:
    """Questions, choices and log-probabilities [S] of all answer tokens after the first; S tokens in one row."""
    device = model.device
    table = [
        (q, c, branch, place, answers[c][place], answers[c][place + 1])
        for branch, (q, c) in enumerate(pairs)
        for place in range(len(answers[c]) - 1)
    ]
    question, choice, branch, place, ids, targets = torch.tensor(table, device=device).T
    own = (branch[:, None] == branch[None]) & (place[:, None] >= place[None])
    visible = torch.cat([read.visible[question], own], dim=1)
    position = read.position[question] + place + 1
    out = model.language(
        inputs_embeds=model.language.get_input_embeddings()(ids)[None],
        use_cache=True,
        **{CACHE: read.cache},
        **further(model, read, visible, position, position),
    )
    return question, choice, out.logits[0].float().log_softmax(-1).gather(1, targets[:, None])[:, 0]


def _padded(
    model: Assembly,
    questions: Samples,
    routes: Sequence[Route] | None,
    choices: Sequence[str],
    row_tokens: int | None,
    track: Callable[[list[Batch]], Iterable[Batch]],
) -> Tensor:
    """One row per choice, for models that cannot take packed rows."""
    scores = torch.zeros(len(questions), len(choices))
    samples = [q.replace(turns=(*q.turns, Turn("assistant", choice))) for q in questions for choice in choices]
    index = {id(sample): place for place, sample in enumerate(samples)}
    supervise = [[False] * (len(sample.turns) - 1) + [True] for sample in samples]
    each = [routes[k // len(choices)] if routes else BASE for k in range(len(samples))]
    for batch in track(model.batches(model.items(samples, each, supervise), row_tokens)):
        logits = model.forward(batch).logits.float().log_softmax(-1)
        values = logits.gather(1, batch.targets.to(logits.device)[:, None])[:, 0].cpu()
        places = torch.tensor([index[id(sample)] for sample in batch.samples])[batch.target_sample]
        scores.view(-1).index_add_(0, places, values)
    return scores
