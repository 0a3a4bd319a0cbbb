"""Every registered metric keeps its promises, in both modes."""

from importlib.metadata import entry_points

import pytest

from mmcl.protocols import Prediction
from mmcl.testing import check_metric

RIGHT = {
    "pope": ("yes", "no", "yes"),
    "scienceqa": ("A", "B", "C"),
    "refcoco": ("[0.1, 0.1, 0.5, 0.5]", "[0, 0, 1, 0.5]"),
}
CLASSES = {point.name: point for point in entry_points(group="mmcl.metrics")}


def test_the_walk_finds_the_metrics():
    assert len(CLASSES) >= 3


@pytest.mark.parametrize("mode", ["strict", "paper"])
@pytest.mark.parametrize("name", sorted(CLASSES))
def test_metric_keeps_its_promises(name, mode):
    rows = [Prediction(str(place), "t", "q", text, (text,)) for place, text in enumerate(RIGHT.get(name, ()))]
    check_metric(CLASSES[name].load()(mode=mode), rows or None)
