"""Every registered method goes through a task of the tiny world."""

from importlib.metadata import entry_points

import pytest

from mmcl.testing import check_method

CLASSES = {point.name: point for point in entry_points(group="mmcl.methods")}


def test_the_walk_finds_the_methods():
    assert len(CLASSES) >= 5


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_method_keeps_its_promises(name):
    check_method(CLASSES[name].load())
