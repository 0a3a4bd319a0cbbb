"""Every registered method goes through a task of the tiny world."""

import inspect
from importlib.metadata import entry_points

import pytest

from mmcl.data.streams.shapes import Shapes
from mmcl.testing import check_method

CLASSES = {point.name: point for point in entry_points(group="mmcl.methods")}


def test_the_walk_finds_the_methods():
    assert len(CLASSES) >= 5


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_method_keeps_its_promises(name):
    made = CLASSES[name].load()
    needs_source = "source" in inspect.signature(made).parameters
    check_method(lambda: made(source=Shapes(train_size=8, test_size=4)) if needs_source else made())
