from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmcl.errors import UserError
from mmcl.memory.quota import cell_of, divide_bytes, divide_rows, parse_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2MB", 2_000_000),
        ("2 mb", 2_000_000),
        ("1.5KB", 1500),
        ("1GiB", 2**30),
        ("64KiB", 65536),
        ("12B", 12),
        ("7", 7),
        (9, 9),
    ],
)
def test_parse_bytes(text: str | int, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "MB", "2 apples", "-3MB", "0", 0, "0.2B", "1e6"])
def test_parse_bytes_refuses(text: str | int) -> None:
    with pytest.raises(UserError, match="not a number of bytes") as error:
        parse_bytes(text, where="replay.budget")
    assert error.value.problems[0].where == "replay.budget"
    assert "2MB" in error.value.problems[0].hint


def test_cells() -> None:
    row = {"task": "t", "modality": "text", "group": "colour"}
    assert cell_of("task", **row) == ("t",)
    assert cell_of("task+modality", **row) == ("t", "text")
    assert cell_of("task+modality+group", **row) == ("t", "text", "colour")
    assert cell_of("proportional", **row) == ("t", "text", "colour")


@pytest.mark.parametrize(
    ("budget", "demand", "quotas"),
    [
        (10, [100, 100, 100], [4, 3, 3]),
        (10, [100, 2, 100], [4, 2, 4]),  # what the second cell does not need is handed on
        (10, [1, 2, 3], [1, 2, 3]),
        (10, [100, 0, 0], [10, 0, 0]),
        (2, [5, 5, 5], [1, 1, 0]),
        (9, [1, 3, 20, 20], [1, 3, 3, 2]),
        (5, [], []),
    ],
)
def test_equal_rows(budget: int, demand: list[int], quotas: list[int]) -> None:
    assert divide_rows(budget, demand, [1] * len(demand)) == quotas


def test_proportional_rows() -> None:
    assert divide_rows(10, [900, 100], [900, 100]) == [9, 1]
    assert divide_rows(10, [85, 15], [85, 15]) == [9, 1]  # 8.5 and 1.5: a tie goes to the earlier cell
    assert divide_rows(7, [60, 30, 10], [60, 30, 10]) == [4, 2, 1]  # 4.2, 2.1, 0.7


@given(st.integers(0, 200), st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), min_size=1, max_size=8))
def test_rows_are_exact(budget: int, cells: list[tuple[int, int]]) -> None:
    demand, weights = [rows for rows, _ in cells], [weight for _, weight in cells]
    quotas = divide_rows(budget, demand, weights)
    assert sum(quotas) == min(budget, sum(demand))
    assert all(0 <= quota <= rows for quota, rows in zip(quotas, demand, strict=True))


@given(st.integers(0, 200), st.lists(st.integers(0, 60), min_size=1, max_size=8))
def test_unfilled_cells_differ_by_at_most_one_row(budget: int, demand: list[int]) -> None:
    quotas = divide_rows(budget, demand, [1] * len(demand))
    unfilled = [quota for quota, rows in zip(quotas, demand, strict=True) if quota < rows]
    assert not unfilled or (max(unfilled) - min(unfilled) <= 1 and max(quotas) <= min(unfilled) + 1)


Row = tuple[int, dict[str, int]]


def total(kept: list[list[Row]]) -> int:
    images = {key: size for cell in kept for _, of_row in cell for key, size in of_row.items()}
    return sum(own for cell in kept for own, _ in cell) + sum(images.values())


def keep(budget: int, cells: list[list[Row]], weights: list[int] | None = None) -> list[list[Row]]:
    return divide_bytes(budget, cells, weights or [1] * len(cells), lambda row: row)


def counts(kept: list[list[Row]]) -> list[int]:
    return [len(cell) for cell in kept]


IMAGES = {"a": 50, "b": 90, "c": 200, "d": 10}
rows = st.tuples(st.integers(1, 40), st.sets(st.sampled_from(sorted(IMAGES)), max_size=2)).map(
    lambda row: (row[0], {key: IMAGES[key] for key in sorted(row[1])})
)


@settings(max_examples=200)
@given(st.integers(1, 1500), st.lists(st.lists(rows, max_size=8), min_size=1, max_size=5))
def test_bytes_fit_and_nothing_more_fits(budget: int, cells: list[list[Row]]) -> None:
    kept = keep(budget, cells)
    assert total(kept) <= budget
    small = [[row for row in cell if total([[row]]) <= budget // len(cells)] for cell in cells]
    for cell, (ours, theirs) in enumerate(zip(kept, small, strict=True)):
        ours_small = [row for row in ours if row in theirs]
        assert ours_small == theirs[: len(ours_small)]  # the best ranked, none skipped
        if len(ours_small) < len(theirs):  # no cell could take one row more
            more = [*kept[:cell], [*ours, theirs[len(ours_small)]], *kept[cell + 1 :]]
            assert total(more) > budget
    assert any(kept) == any(total([[row]]) <= budget for cell in cells for row in cell)


def test_bytes_are_shared_equally_between_heavy_and_light_rows() -> None:
    heavy: list[Row] = [(1000, {}) for _ in range(50)]
    light: list[Row] = [(10, {}) for _ in range(5000)]
    assert counts(keep(20_000, [heavy, light])) == [10, 1000]


def test_bytes_weights() -> None:
    cell: list[Row] = [(10, {}) for _ in range(100)]
    assert counts(keep(400, [cell, cell], [3, 1])) == [30, 10]


def test_unused_bytes_are_handed_on() -> None:
    few: list[Row] = [(10, {}) for _ in range(3)]
    many: list[Row] = [(10, {}) for _ in range(100)]
    assert counts(keep(300, [few, many, many])) == [3, 14, 13]


def test_an_image_that_two_cells_share_counts_once() -> None:
    one: list[Row] = [(5, {"a": 100})]
    assert counts(keep(110, [one, one])) == [1, 1]
    assert counts(keep(109, [one, one])) == [1, 0]


def test_huge_rows_do_not_block_a_cell() -> None:
    """A best ranked row that no share holds gives way; it comes in when room is left, the smallest first."""
    assert keep(100, [[(500, {}), (60, {}), (50, {})]]) == [[(60, {})]]
    cell: list[Row] = [(70, {}), (60, {}), (10, {}), (10, {})]
    other: list[Row] = [(10, {})]
    assert keep(100, [cell, other]) == [[(10, {}), (10, {}), (60, {})], [(10, {})]]


def test_only_rows_that_may_fit_are_sized() -> None:
    asked = []

    def size(row: int) -> Row:
        asked.append(row)
        return 100, {}

    divide_bytes(1000, [list(range(10_000))], [1], size)
    assert len(asked) <= 22
