import pytest
import torch
from torch import nn

from mmcl.errors import UserError
from mmcl.model.projectors.linear import Linear
from mmcl.model.projectors.mlp import MLP


def kinds(projector):
    return [type(layer).__name__ for layer in projector.layers]


def widths(projector):
    return [(layer.in_features, layer.out_features) for layer in projector.layers if isinstance(layer, nn.Linear)]


def test_linear_is_one_map():
    projector = Linear(in_width=3, out_width=5, norm=False)
    features = torch.randn(2, 4, 3)
    torch.testing.assert_close(projector(features), features @ projector.map.weight.T + projector.map.bias)
    assert projector.tokens(7) == 7


def test_mlp_is_that_of_llava_1_5_by_default():
    projector = MLP(in_width=3, out_width=5)
    assert kinds(projector) == ["Linear", "GELU", "Linear"]
    assert widths(projector) == [(3, 5), (5, 5)]
    assert projector.layers[1].approximate == "none"
    assert projector.tokens(7) == 7


def test_mlp_depth_and_hidden_width():
    assert widths(MLP(in_width=3, out_width=5, depth=1)) == [(3, 5)]
    assert widths(MLP(in_width=3, out_width=5, depth=3, hidden=7)) == [(3, 7), (7, 7), (7, 5)]


@pytest.mark.parametrize("options", [{"depth": 0}, {"hidden": 0}])
def test_mlp_refuses(options):
    with pytest.raises(UserError, match="must be positive"):
        MLP(in_width=3, out_width=5, **options)


@pytest.mark.parametrize("build", [Linear, MLP])
def test_the_scale_of_the_encoder_does_not_matter(build):
    projector = build(in_width=8, out_width=5)
    features = torch.randn(2, 4, 8)
    torch.testing.assert_close(projector(100 * features), projector(features), rtol=1e-3, atol=1e-4)
    plain = build(in_width=8, out_width=5, norm=False)
    assert (plain(100 * features) - plain(features)).abs().max() > 1
