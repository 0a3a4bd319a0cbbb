"""Every registered projector keeps its promises, alone and as an expert per task."""

import random
import re
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import Accelerator

from mmcl.methods.projector_experts import ProjectorExperts
from mmcl.progress import Progress
from mmcl.protocols import Route
from mmcl.recipe import registry
from mmcl.recipe.spec import PluginSpec, TrainSpec, plugin_spec
from mmcl.testing import check_projector, tiny_assembly, tiny_tasks
from mmcl.training.loop import train_task
from mmcl.training.methods import Methods
from mmcl.training.objectives.answers import Answers

CLASSES = {point.name: point for point in entry_points(group="mmcl.projectors")}
OPTIONS = {
    "identity": [{"in_width": 20}],
    "linear": [{}, {"norm": False}],
    "mlp": [{}, {"depth": 1}, {"depth": 3, "hidden": 7, "norm": False}],
    "pixel_shuffle": [{}, {"factor": 1, "depth": 1}, {"depth": 3, "hidden": 7, "norm": False}],
    "pool": [{"grid": 2}, {"grid": 1, "depth": 1}, {"grid": 2, "depth": 3, "hidden": 7, "norm": False}],
    "qformer": [
        {"width": 16, "heads": 4, "queries": 3},
        {"width": 15, "heads": 3, "depth": 1, "text": False, "norm": False},
    ],
    "resampler": [{"heads": 4}, {"queries": 5, "depth": 1, "heads": 3, "width": 15, "norm": False}],
}
CASES = [(name, options) for name in sorted(CLASSES) for options in OPTIONS.get(name, [{}])]

SMALL = {
    "pool": {"grid": 2},
    "qformer": {"queries": 3, "depth": 2, "heads": 4, "width": 16},
    "resampler": {"queries": 3, "depth": 2, "heads": 4},
}
KEEPS_TOKENS = ("identity", "linear", "mlp")
EXPERTS = [
    *[(name, unit) for name in sorted(CLASSES) if name != "identity" for unit in ("copy", "lora")],
    *[(name, "residual") for name in KEEPS_TOKENS],
]
# Of the table in the documentation: ViT-B/16 at 224 pixels, SmolLM2-135M.
TOKENS, WIDTH, LANGUAGE = 196, 768, 576


def test_the_walk_finds_the_projectors():
    assert len(CLASSES) >= 6
    assert set(OPTIONS) <= set(CLASSES)
    assert len(CASES) >= 14


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_projector_keeps_its_promises(name, options):
    check_projector(CLASSES[name].load(), **options)


def build(name, unit):
    """A tiny model with experts of this unit on this projector; its encoder is as wide as its language model."""
    model = tiny_assembly(
        encoder=PluginSpec("tiny", {"tokens": 16, "width": 64}),
        projector=PluginSpec(name, SMALL.get(name, {})),
        train=("language.lora",),
    )
    method = ProjectorExperts(unit=unit, rank=2, router="oracle", freeze_shared=True)
    method.setup(model)
    return model, method


def tensors(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def learn(model, method, task):
    """Take the method through a task; returns the names of what was to train, and the values before."""
    model.calibrate(task.train)
    method.begin_task(model, task, ())
    before, trainable = tensors(model), set(model.trainable())
    train_task(
        model,
        Methods({"projector_experts": method}),
        task,
        TrainSpec(learning_rate=1e-2, epochs=3, batch_size=4),
        Answers(),
        accelerator=Accelerator(),
        rng=random.Random(0),
        progress=Progress.silent(),
        label="test",
    )
    method.end_task(model, task)
    return trainable, before


@pytest.mark.parametrize(("name", "unit"), EXPERTS)
def test_projector_works_as_an_expert_per_task(name, unit):
    tasks = tiny_tasks()
    model, method = build(name, unit)
    for task in tasks:
        trainable, before = learn(model, method, task)
        assert trainable and all(each.startswith(f"experts.{task.name}.") for each in trainable)
        moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
        assert moved == trainable
    features = torch.stack(model.image_features([sample.images[0] for sample in tasks[0].test]))
    routes = [Route(), *(Route(((task.name, 1.0),)) for task in tasks)]
    outputs = [model.project(features, route) for route in routes]
    assert not any(torch.equal(outputs[k], outputs[k - 1]) for k in range(3))
    again, fresh = build(name, unit)
    fresh.load_state_dict(again, method.state_dict())
    again.load_state(model.state())
    for route, output in zip(routes, outputs, strict=True):
        assert torch.equal(again.project(features, route), output)


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_a_calibrated_projector_gives_the_spread_of_the_embeddings(name):
    model, _ = build(name, "residual" if name in KEEPS_TOKENS else "copy")
    samples = tiny_tasks()[0].train
    model.calibrate(samples)
    features = torch.stack(model.image_features([sample.images[0] for sample in samples]))
    if name == "identity":
        assert torch.equal(model.project(features, Route()), features)
    else:
        spread = float(model.language.get_input_embeddings().weight.std())
        unique = torch.stack(list({str(row.tolist()): row for row in features}.values()))
        assert float(model.project(unique, Route()).std()) == pytest.approx(spread, rel=1e-3)


def test_the_table_of_the_documentation():
    text = (Path(__file__).parents[2] / "docs" / "projectors.md").read_text("utf-8")
    rows = re.findall(r"^\| `(.+?)` \| `(\{name: .+?\})` \| ([\d,]+) \| ([\d,]+) \|", text, re.MULTILINE)
    assert {name for name, *_ in rows} == set(CLASSES)
    for name, line, tokens, parameters in rows:
        spec = plugin_spec(yaml.safe_load(line))
        assert spec.name == name
        assert not registry.check("projectors", spec, Path())
        width = LANGUAGE if name == "identity" else WIDTH
        projector = registry.build("projectors", spec, Path(), in_width=width, out_width=LANGUAGE)
        assert projector.tokens(TOKENS) == int(tokens.replace(",", ""))
        assert sum(each.numel() for each in projector.parameters()) == int(parameters.replace(",", ""))
