from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmcl import files
from mmcl.errors import UserError
from mmcl.evaluation.matrix import Matrix, read_references

ROWS = [[0.5, None], [0.1 + 0.2, 1.0]]
MATRIX = Matrix(["shape", "colour, all"], ["shape", "colour, all"], ROWS, [None, 0.25])


def problems_of(path: Path, text: str) -> dict[str, str]:
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        Matrix.read(path)
    return {problem.where.removeprefix(f"{path}"): problem.message for problem in caught.value.problems}


def test_csv_as_documented(tmp_path: Path) -> None:
    MATRIX.write_csv(tmp_path / "matrix.csv")
    assert (tmp_path / "matrix.csv").read_text() == (
        'stage,shape,"colour, all"\nzero-shot,,0.25\nshape,0.5,\n"colour, all",0.30000000000000004,1.0\n'
    )
    assert Matrix.read(tmp_path / "matrix.csv") == MATRIX


def test_json_as_documented(tmp_path: Path) -> None:
    MATRIX.write_json(tmp_path / "matrix.json")
    assert json.loads((tmp_path / "matrix.json").read_text()) == {
        "tasks": ["shape", "colour, all"],
        "stages": ["shape", "colour, all"],
        "matrix": [[0.5, None], [0.30000000000000004, 1.0]],
        "row0": [None, 0.25],
    }
    assert Matrix.read(tmp_path / "matrix.json") == MATRIX


NAME = st.text(min_size=1, max_size=6).filter(
    lambda text: text == text.strip() and text.isprintable() and text.casefold() != "zero-shot"
)


@given(st.lists(NAME, min_size=1, max_size=4, unique=True), st.lists(NAME, max_size=4), st.data())
def test_files_keep_every_bit(
    tmp_path_factory: pytest.TempPathFactory, tasks: list[str], stages: list[str], data: st.DataObject
) -> None:
    cell = st.none() | st.floats(allow_nan=False, allow_infinity=False)
    row = st.lists(cell, min_size=len(tasks), max_size=len(tasks))
    matrix = Matrix(tasks, stages, [data.draw(row) for _ in stages], data.draw(st.none() | row))
    folder = tmp_path_factory.mktemp("matrix")
    matrix.write_csv(folder / "m.csv")
    matrix.write_json(folder / "m.json")
    assert Matrix.read(folder / "m.csv") == Matrix.read(folder / "m.json") == matrix


def test_what_spreadsheets_write(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_bytes("\ufeffStage, a ,b\r\nZero-Shot,0,.5\r\n\r\nx, 1e-1 ,\r\n".encode())
    assert Matrix.read(path) == Matrix(["a", "b"], ["x"], [[0.1, None]], [0.0, 0.5])


def test_all_mistakes_at_once_with_their_rows(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    found = problems_of(path, "stage,a,b\nx,0.5\ny,good,0.5\n\nz,nan,1_0\nzero-shot,0,0\n,0,0\nw,0,0,0\n")
    assert found == {
        ":2": "2 columns where the header has 3",
        ":3": "'good' (task 'a') is not a number",
        ":5": "'1_0' (task 'b') is not a number",  # the last of two on that row
        ":6": "only the first row can be zero-shot",
        ":7": "the stage has no name",
        ":8": "4 columns where the header has 3",
    }


@pytest.mark.parametrize(
    ("text", "where", "message"),
    [
        ("", ":1", "the file is empty"),
        ("\n \n", ":1", "the file is empty"),
        ("task,a\nx,1\n", ":1", "the header begins with 'task'"),
        ("stage\nx\n", ":1", "the header names no task"),
        ("stage,a,a\nx,1,1\n", ":1", "task 'a' stands in two columns"),
        ("stage,a,\nx,1,1\n", ":1", "a task has no name"),
        ("stage;a;b\nx;0,5;1\n", ":1", "the header names no task"),
        ('stage,a\n"x,1\n', ":2", "is not CSV: unexpected end of data"),
        ("stage,a\nx,50%\n", ":2", "'50%' (task 'a') is not a number"),
        ("stage,a\nx,inf\n", ":2", "'inf' (task 'a') is not a number"),
    ],
)
def test_bad_csv(tmp_path: Path, text: str, where: str, message: str) -> None:
    found = problems_of(tmp_path / "m.csv", text)
    assert message in found.values()
    assert where in found


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        '{"tasks": ["a"], "stages": ["a"]}',
        '{"tasks": "a", "stages": ["a"], "matrix": [[1]]}',
        '{"tasks": ["a"], "stages": ["a"], "matrix": [["1"]]}',
        '{"tasks": ["a"], "stages": ["a"], "matrix": [[true]]}',
        '{"tasks": ["a"], "stages": ["a"], "matrix": [[1, 2]]}',
        '{"tasks": ["a"], "stages": ["a"], "matrix": []}',
        '{"tasks": ["a"], "stages": ["a"], "matrix": [[NaN]]}',
        '{"tasks": ["a"], "stages": ["a"], "matrix": [[1]], "row0": 3}',
        '{"tasks": ["a", "a"], "stages": [], "matrix": []}',
        '{"tasks": ["a"], "stages": ["zero-shot"], "matrix": [[1]]}',
        '{"tasks": ',
    ],
)
def test_bad_json(tmp_path: Path, text: str) -> None:
    assert len(problems_of(tmp_path / "m.json", text)) == 1


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="can't be read: No such file"):
        Matrix.read(tmp_path / "none.csv")
    with pytest.raises(UserError, match="can't be read: Is a directory"):
        Matrix.read(tmp_path)
    (tmp_path / "latin.csv").write_bytes("stage,größe\n".encode("latin-1"))
    with pytest.raises(UserError, match="is not UTF-8 text"):
        Matrix.read(tmp_path / "latin.csv")


def test_a_crash_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "matrix.csv"
    MATRIX.write_csv(path)
    before = path.read_bytes()

    def crash(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(files.os, "fsync", crash)
    with pytest.raises(OSError, match="disk full"):
        Matrix(["a"], ["a"], [[0.5]]).write_csv(path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["matrix.csv"]


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "matrix.csv"
    MATRIX.write_csv(path)
    before = path.read_bytes()
    with path.open("rb") as reader:
        Matrix(["a"], ["a"], [[0.5]]).write_csv(path)
        assert reader.read() == before  # renamed over, not written into


def test_wrong_parts_are_refused() -> None:
    with pytest.raises(ValueError, match="a row of 1 cells for 2 tasks"):
        Matrix(["a", "b"], ["a"], [[0.5]])
    with pytest.raises(ValueError, match="1 rows for 2 stages"):
        Matrix(["a"], ["a", "b"], [[0.5]])
    with pytest.raises(ValueError, match="give that row as row0"):
        Matrix(["a"], ["Zero-Shot"], [[0.5]])
    with pytest.raises(ValueError, match="finite"):
        Matrix(["a"], ["a"], [[float("nan")]])
    with pytest.raises(ValueError, match="a row of 2 cells"):
        Matrix(["a"], ["a"], [[0.5]], [0.5, 0.5])


# ---------------------------------------------------------------------------------------------------------- references


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("stage,a,b\nrandom,0.1,0.2\n", {"a": 0.1, "b": 0.2}),
        ("stage,b,a\nzero-shot,0.2,0.1\n", {"a": 0.1, "b": 0.2}),
        ("stage,a,b\nzero-shot,0.1,0.2\na,1,1\nb,1,1\n", {"a": 0.1, "b": 0.2}),
        ("stage,a,b\na,0.8,0.1\nb,0.2,0.9\n", {"a": 0.8, "b": 0.9}),
        ("stage,a\nx,0.1\n", {"a": 0.1}),
        ("stage,a,b\nx,0.1,\n", {"a": 0.1}),
        ("Task,Score\nb,0.2\na,0.1\n", {"a": 0.1, "b": 0.2}),
    ],
)
def test_references(tmp_path: Path, text: str, expected: dict[str, float]) -> None:
    (tmp_path / "b.csv").write_text(text)
    assert read_references(tmp_path / "b.csv", ["a", "b"]) == expected


@pytest.mark.parametrize(
    ("text", "where", "message", "hint"),
    [
        ("stage,shape,colr\nx,0.1,0.2\n", ":1", "unknown task 'colr'", "did you mean 'color'?"),
        ("task,score\nshape,0.1\nzzz,0.2\n", ":3", "unknown task 'zzz'", "the matrix has: shape, color"),
        ("task,score\nshape,x\n", ":2", "'x' (task 'shape') is not a number", "write a number"),
        ("task,score\nshape,1\nshape,1\n", ":3", "task 'shape' has a row already", ""),
        ("task,score\nshape\n", ":2", "1 columns where the header has 2", ""),
        ("stage,shape\nx,1\ny,1\n", "", "has 2 rows; which one holds the reference scores?", "keep one row"),
        ("", ":1", "the file is empty", ""),
    ],
)
def test_bad_references(tmp_path: Path, text: str, where: str, message: str, hint: str) -> None:
    path = tmp_path / "b.csv"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_references(path, ["shape", "color"])
    (problem,) = caught.value.problems
    assert (problem.where, problem.message) == (f"{path}{where}", message)
    assert problem.hint.startswith(hint)
