import pytest
import torch

from mmcl.errors import UserError
from mmcl.methods.projector_experts import ProjectorExperts
from mmcl.model.projectors.identity import Identity
from mmcl.recipe.spec import PluginSpec
from mmcl.testing import tiny_assembly, tiny_tasks

WIDE = PluginSpec("tiny", {"width": 64})


def test_it_changes_nothing():
    features = torch.randn(2, 4, 8)
    projector = Identity(in_width=8, out_width=8)
    assert torch.equal(projector(features), features)
    assert projector.tokens(7) == 7
    assert not projector.state_dict()


def test_other_widths_are_refused_with_the_way_out():
    with pytest.raises(UserError, match="have width 16 and the language model takes 64") as caught:
        tiny_assembly(projector="identity", train=("language.lora",))
    (problem,) = caught.value.problems
    assert problem.where == "model.projector"
    assert "`linear` or `mlp`" in problem.hint


def test_training_it_is_refused_with_the_way_out():
    with pytest.raises(UserError, match="`projector` names no parameter of the model") as caught:
        tiny_assembly(encoder=WIDE, projector="identity")
    (problem,) = caught.value.problems
    assert problem.where == "model.train"
    assert "the model's part `projector` has no parameters: leave it out" in problem.hint


def test_a_model_with_it_is_stored_and_answers():
    model = tiny_assembly(encoder=WIDE, projector="identity", train=("language.lora",))
    task = tiny_tasks()[0]
    model.calibrate(task.train)
    assert set(model.snapshot()) == set(model.state())
    assert all(".lora_" in name for name in model.state())
    again = tiny_assembly(encoder=WIDE, projector="identity", train=("language.lora",))
    again.load_state(model.state())
    assert again.generate(task.test) == model.generate(task.test)


@pytest.mark.parametrize("unit", ["copy", "lora"])
def test_experts_on_it_are_residual(unit):
    model = tiny_assembly(encoder=WIDE, projector="identity", train=("language.lora",))
    with pytest.raises(UserError, match=r"projector_experts\.unit") as caught:
        ProjectorExperts(unit=unit).setup(model)
    assert caught.value.problems[0].hint == "use `residual`"
    ProjectorExperts(unit="residual").setup(model)
