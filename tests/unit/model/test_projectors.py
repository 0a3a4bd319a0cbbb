from functools import partial

import pytest
import torch
from torch import nn

from mmcl.errors import UserError
from mmcl.model.projectors.linear import Linear
from mmcl.model.projectors.mlp import MLP
from mmcl.model.projectors.pixel_shuffle import PixelShuffle
from mmcl.model.projectors.pool import Pool


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


def test_mlp_names_each_option_that_is_out_of_range():
    with pytest.raises(UserError) as caught:
        MLP(in_width=3, out_width=5, depth=0, hidden=0)
    assert [problem.where for problem in caught.value.problems] == ["model.projector.depth", "model.projector.hidden"]


@pytest.mark.parametrize(
    "build", [Linear, MLP, PixelShuffle, partial(Pool, grid=1)], ids=["linear", "mlp", "pixel_shuffle", "pool"]
)
def test_the_scale_of_the_encoder_does_not_matter(build):
    features = torch.randn(20, 4, 8) * torch.logspace(-2, 2, 8) + torch.linspace(-50, 50, 8)
    tokens = []
    for scale in (1, 100):
        torch.manual_seed(0)
        projector = build(in_width=8, out_width=5)
        projector.calibrate(scale * features, 0.1)
        tokens.append(projector(scale * features).detach())
    torch.testing.assert_close(tokens[0], tokens[1], rtol=1e-3, atol=1e-4)
    assert float(tokens[0].std()) == pytest.approx(0.1, rel=1e-3)
    plain = build(in_width=8, out_width=5, norm=False)
    assert (plain(100 * features) - plain(features)).abs().max() > 1


def test_a_projector_is_calibrated_once():
    projector = MLP(in_width=8, out_width=5)
    projector.calibrate(torch.randn(20, 4, 8), 0.1)
    before = {name: tensor.clone() for name, tensor in projector.state_dict().items()}
    assert before["norm.measured"]
    projector.calibrate(3 + torch.randn(20, 4, 8), 1.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in projector.state_dict().items())


def test_a_constant_channel_stays_finite():
    projector = MLP(in_width=8, out_width=5)
    features = torch.randn(20, 4, 8)
    features[..., 0] = 7.0
    projector.calibrate(features, 0.1)
    assert projector(features).isfinite().all()
    assert projector(features + 1e-3).abs().max() < 10
