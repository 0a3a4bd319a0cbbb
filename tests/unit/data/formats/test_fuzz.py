"""Whatever is in a file, a reader gives samples or a UserError that names the place."""

from __future__ import annotations

import copy
import json
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmcl.errors import UserError

FORMATS = {point.name: point for point in entry_points(group="mmcl.formats")}
SETTINGS = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(["\ud800", "../../etc/passwd", "/etc/passwd", "\0", "a" * 5000, "<image>", "", "http://x/y.png"]),
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to everything inside a JSON value."""
    found = [path]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += places(inner, (*path, key))
    return found


def mutated(value: Any, path: tuple[Any, ...], new: Any, how: str) -> Any:
    """A copy with one place replaced, taken away or doubled."""
    if not path:
        return new
    result = copy.deepcopy(value)
    parent = result
    for key in path[:-1]:
        parent = parent[key]
    if how == "delete":
        del parent[path[-1]]
    elif how == "double" and isinstance(parent, list):
        parent.append(copy.deepcopy(parent[path[-1]]))
    else:
        parent[path[-1]] = new
    return result


def check(name: str, path: Path, images: Path) -> None:
    for split in ("train", "test"):
        reader = FORMATS[name].load()(split=split)
        try:
            samples = reader.read(path, task="t", images=images)
        except UserError as error:
            assert error.problems
            assert all(problem.where and problem.message for problem in error.problems)
            assert reader.validate(path, task="t", images=images) == list(error.problems)
        else:
            for sample in samples:
                assert sample.id
                assert all(turn.text for turn in sample.turns)
                assert all(Path(image.where).resolve().is_relative_to(images.resolve()) for image in sample.images)


JSON_FORMATS = sorted(set(FORMATS) - {"hf_dataset", "imagefolder"})


@pytest.mark.parametrize("name", JSON_FORMATS)
@SETTINGS
@given(data=st.data())
def test_any_change_of_a_valid_file(miniature: Any, tmp_path: Path, name: str, data: st.DataObject) -> None:
    write, images = miniature.LAYOUTS[name]
    path = write(tmp_path)
    files = [path, *(other for other in sorted(tmp_path.rglob("*.json")) if other != path)]
    changed = data.draw(st.sampled_from(files))
    value = json.loads(changed.read_text())
    place = data.draw(st.sampled_from(places(value)))
    how = data.draw(st.sampled_from(["replace", "delete", "double"]))
    changed.write_text(json.dumps(mutated(value, place, data.draw(VALUES), how)), encoding="utf-8")
    check(name, path, tmp_path / images)


@pytest.mark.parametrize("name", JSON_FORMATS)
@SETTINGS
@given(content=st.binary(max_size=200) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_bytes(miniature: Any, tmp_path: Path, name: str, content: bytes) -> None:
    write, images = miniature.LAYOUTS[name]
    path = write(tmp_path)
    path.write_bytes(content)
    check(name, path, tmp_path / images)


@SETTINGS
@given(content=st.binary(max_size=200))
def test_any_table(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "set.parquet"
    path.write_bytes(content)
    with pytest.raises(UserError):
        FORMATS["hf_dataset"].load()().read(path, task="t", images=None)
