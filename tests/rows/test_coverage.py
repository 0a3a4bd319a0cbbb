"""The table of what is covered is true: every row is in it, and every row has a test of its number."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = [*range(1, 46), *range(82, 91)]


@pytest.fixture(scope="module")
def table() -> dict[int, list[str]]:
    found = {}
    for line in (ROOT / "docs" / "coverage.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0].isdigit():
            found[int(cells[0])] = cells
    return found


def test_every_row_is_in_the_table_with_a_test_that_exists(table: dict[int, list[str]]) -> None:
    assert list(table) == ROWS
    names = {
        int(number)
        for path in Path(__file__).parent.glob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
        for number in re.findall(r"row_(\d+)", name)
    }
    assert names == set(ROWS)
    for row, cells in table.items():
        assert len(cells) == 5
        assert cells[3] == f"test_row_{row:02d}"


def test_files_that_the_table_names_exist(table: dict[int, list[str]]) -> None:
    named = {name for cells in table.values() for name in re.findall(r"`(recipes/\w+\.yaml)`", cells[2])}
    assert named
    assert all((ROOT / name).is_file() for name in named)
