"""The split of a loss, the answer sets, and the drift, on cases worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mmcl.data.types import Sample, Task, Turn
from mmcl.evaluation.anatomy import PARTS, Lost, no_guess, split
from mmcl.evaluation.confusion import NONE, AnswerSets, confusion, plain
from mmcl.evaluation.drift import cka, cosine

NOTHING = Lost(
    before=1.0,
    after=0.0,
    oracle=0.0,
    lenient=0.0,
    ranked=None,
    guessed=None,
    vision=0.0,
    language=0.0,
    both=1.0,
    blind=False,
    foreign=False,
)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"oracle": 1.0, "lenient": 1.0, "vision": 1.0, "language": 1.0}, "routing"),
        ({"lenient": 1.0, "vision": 1.0, "language": 1.0}, "format"),
        ({"ranked": 1.0, "guessed": 0.0, "vision": 1.0}, "format"),
        ({"vision": 1.0, "language": 1.0, "blind": True}, "vision"),
        ({"language": 1.0, "blind": True}, "prior"),
        ({"language": 1.0, "foreign": True}, "prior"),
        ({"foreign": True}, "prior"),
        ({"language": 1.0}, "language"),
        ({}, "together"),
        ({"both": 0.0}, "rest"),
        ({"both": 0.0, "blind": True, "foreign": True}, "rest"),
    ],
)
def test_a_question_is_counted_for_the_first_repair_that_returns_it(changes: dict[str, float], part: str) -> None:
    found = split([replace(NOTHING, **changes)])  # type: ignore[arg-type]
    assert found.largest == (part,)
    assert found.loss == 1.0
    assert {**found.parts, "rest": found.rest}[part] == 1.0
    assert sum(found.parts.values()) + found.rest == 1.0


def test_halves_of_a_question() -> None:
    """Half returns over the own route, the rest with the vision side; more than was lost does not count."""
    row = replace(NOTHING, before=0.9, after=0.3, oracle=0.6, vision=1.0)
    found = split([row])
    assert found.parts == pytest.approx(dict.fromkeys(PARTS, 0.0) | {"routing": 0.3, "vision": 0.3})
    assert found.rest == pytest.approx(0.0)


def test_a_repair_that_makes_it_worse_takes_nothing_away() -> None:
    row = replace(NOTHING, before=1.0, after=0.5, oracle=0.0, vision=0.75, both=0.75)
    found = split([row])
    assert found.parts["vision"] == 0.25
    assert found.rest == 0.25


def test_ranking_less_guessing() -> None:
    """Four return by ranking, one of them with another image too: three quarters of what returns is no guess."""
    rows = [replace(NOTHING, ranked=1.0, guessed=float(k == 0)) for k in range(4)]
    assert no_guess(rows) == 0.75
    found = split(rows)
    assert found.parts["format"] == 3.0
    assert found.parts["together"] == 1.0


def test_ranking_blindly_returns_nothing() -> None:
    rows = [replace(NOTHING, ranked=float(k % 3 == 0), guessed=float(k % 3 == 1)) for k in range(9)]
    assert no_guess(rows) == 0.0
    assert split(rows).parts["format"] == 0.0
    assert no_guess([NOTHING]) == 0.0  # nothing was ranked


def test_nothing_lost() -> None:
    found = split([])
    assert (found.loss, found.rest, set(found.parts.values())) == (0.0, 0.0, {0})
    assert found.share("vision") == 0.0
    assert split([NOTHING, replace(NOTHING, vision=1.0)]).share("vision") == 0.5


def task(name: str, references: str, replies: str, choices: str = "") -> Task:
    train = [Sample(str(k), name, (Turn("user", "?"), Turn("assistant", r))) for k, r in enumerate(replies.split())]
    test = [Sample(str(k), name, (Turn("user", "?"),), answers=(r,)) for k, r in enumerate(references.split())]
    return Task(name, train, test, choices=tuple(choices.split()))


def test_whose_answer_it_is() -> None:
    sets = AnswerSets([task("colour", "Red", "blue"), task("count", "2", "3", "4"), task("mixed", "red 9", "3")])
    assert sets.owner(" RED. ", "colour") == "colour"  # its own, though a later task has it too
    assert sets.owner("red", "count") == "mixed"  # of the others the one learned last
    assert sets.owner("blue", "count") == "colour"
    assert sets.owner("4", "mixed") == "count"  # a choice
    assert sets.owner("redish", "count") == NONE
    assert sets.owner("red", "unknown") == "mixed"
    assert sets.foreign("9", "colour")
    assert not sets.foreign("3", "count")
    assert not sets.foreign("nothing", "colour")
    assert confusion(sets, {"colour": ["red", "9", "9", "?"], "mixed": ["3"]}) == [[1, 0, 2, 1], [0] * 4, [0, 0, 1, 0]]


def test_plain() -> None:
    assert plain("  The\tCAFE\u0301 . ") == "the caf\u00e9"


def test_cka_of_the_same_geometry() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(30, 12, generator=generator)
    turn = torch.linalg.qr(torch.randn(12, 12, generator=generator))[0]
    assert cka(vectors, 3 * vectors @ turn + 5) == pytest.approx(1)
    assert cosine(vectors, vectors) == pytest.approx(1)
    assert cosine(vectors, -vectors) == pytest.approx(-1)
    assert abs(cosine(vectors, vectors @ turn) or 1) < 0.5


def test_cka_of_independent_vectors_is_about_zero_however_wide_they_are() -> None:
    """The biased estimator gives 0.6 and more here."""
    generator = torch.Generator().manual_seed(0)
    values = [
        cka(torch.randn(20, 200, generator=generator), torch.randn(20, 200, generator=generator)) for _ in range(40)
    ]
    assert abs(sum(value for value in values if value is not None) / len(values)) < 0.03


def test_cka_by_hand() -> None:
    """Of four numbers each: HSIC_1 written out with sums over different indices."""
    x, y = torch.tensor([[1.0], [2.0], [4.0], [0.0]]), torch.tensor([[2.0], [1.0], [5.0], [3.0]])

    def hsic(one: torch.Tensor, other: torch.Tensor) -> float:
        k, m = one @ one.T, other @ other.T
        n, total = 4, 0.0
        places = range(n)
        for i in places:
            for j in places:
                for q in places:
                    for r in places:
                        if len({i, j, q, r}) == n:
                            total += float(k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]))
        return total / 24  # (n)_4 = 4 * 3 * 2 * 1

    a, b = x - x.mean(), y - y.mean()
    expected = hsic(a, b) / (hsic(a, a) * hsic(b, b)) ** 0.5
    assert cka(x, y) == pytest.approx(expected)


def test_too_few_to_compare() -> None:
    assert cka(torch.randn(3, 5), torch.randn(3, 5)) is None
    assert cka(torch.ones(6, 5), torch.randn(6, 5)) is None
    assert cosine(torch.empty(0, 5), torch.empty(0, 5)) is None
