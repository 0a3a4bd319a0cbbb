"""Every registered projector keeps its promises."""

from importlib.metadata import entry_points

import pytest

from mmcl.testing import check_projector

CLASSES = {point.name: point for point in entry_points(group="mmcl.projectors")}
OPTIONS = {
    "linear": [{}, {"norm": False}],
    "mlp": [{}, {"depth": 1}, {"depth": 3, "hidden": 7, "norm": False}],
}
CASES = [(name, options) for name in sorted(CLASSES) for options in OPTIONS.get(name, [{}])]


def test_the_walk_finds_the_projectors():
    assert len(CLASSES) >= 2
    assert set(OPTIONS) <= set(CLASSES)
    assert len(CASES) >= 5


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_projector_keeps_its_promises(name, options):
    check_projector(CLASSES[name].load(), **options)
