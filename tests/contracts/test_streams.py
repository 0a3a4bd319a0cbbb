"""Every registered stream keeps its promises; those that are made of files or of other streams have their own tests."""

from importlib.metadata import entry_points

import pytest

from mmcl.testing import check_stream

CLASSES = {point.name: point for point in entry_points(group="mmcl.streams")}
BUILDABLE = sorted(set(CLASSES) - {"benchmark", "files", "join", "split"})


def test_the_walk_finds_the_streams():
    assert len(BUILDABLE) >= 2


@pytest.mark.parametrize("name", BUILDABLE)
def test_stream_keeps_its_promises(name):
    check_stream(CLASSES[name].load()())
