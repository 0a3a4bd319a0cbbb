import math

import pytest
import torch

from mmcl.errors import UserError
from mmcl.model.projectors.resampler import Resampler, positions


def make(**options):
    torch.manual_seed(0)
    return Resampler(**{"in_width": 6, "out_width": 8, "queries": 3, "depth": 2, "heads": 2, **options})


@pytest.mark.parametrize("tokens", [1, 2, 3, 16, 50, 257])
def test_any_number_of_tokens_becomes_as_many_as_there_are_queries(tokens):
    projector = make()
    assert projector.tokens(tokens) == 3
    assert projector(torch.randn(2, tokens, 6)).shape == (2, 3, 8)


def test_defaults_are_those_of_idefics2():
    projector = Resampler(in_width=6, out_width=32)
    assert (projector.tokens(9), len(projector.layers), projector.layers[0].heads) == (64, 3, 16)
    assert projector.enter.out_features == projector.leave.in_features == 32
    assert Resampler(in_width=6, out_width=32, width=16).enter.out_features == 16


def test_positions_of_a_grid_are_its_rows_and_columns():
    found = positions(4, 6)
    for token, (row, column) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        wanted = [math.sin(row), math.sin(column), math.cos(row), math.cos(column)]
        wanted += [math.sin(row / 10000), math.sin(column / 10000)]
        torch.testing.assert_close(found[token], torch.tensor(wanted))
    assert len(positions(576, 32).unique(dim=0)) == 576


def test_positions_of_what_is_no_grid_are_its_indices():
    wanted = torch.tensor([[math.sin(k), math.cos(k), math.sin(k / 100), math.cos(k / 100)] for k in range(3)])
    found = positions(3, 6)
    torch.testing.assert_close(found[:, :4], wanted)
    assert positions(257, 5).shape == (257, 5)


def test_a_layer_is_its_formula():
    layer = make().layers[0]
    latents, context, where = torch.randn(1, 3, 8), torch.randn(1, 5, 8), torch.randn(5, 8)
    z, x = layer.query_norm(latents)[0], layer.context_norm(context)[0]
    keys, values = torch.cat([x + where, z]), torch.cat([x, z])
    heads = []
    for rows in (slice(0, 4), slice(4, 8)):
        q, k, v = (
            tokens @ linear.weight[rows].T
            for tokens, linear in ((z, layer.query), (keys, layer.key), (values, layer.value))
        )
        heads.append((q @ k.T / 2).softmax(-1) @ v)
    moved = latents[0] + torch.cat(heads, 1) @ layer.output.weight.T
    moved = moved + layer.mlp(layer.mlp_norm(moved))
    torch.testing.assert_close(layer(latents, context, where)[0], moved)


def test_it_sees_where_a_token_is():
    projector, features = make(), torch.randn(1, 16, 6)
    turned = features.view(1, 4, 4, 6).transpose(1, 2).reshape(1, 16, 6)
    assert not torch.allclose(projector(features), projector(turned), atol=1e-3)


def test_queries_read_different_things():
    tokens = make(out_width=64, queries=8, heads=4, depth=3)(torch.randn(20, 16, 6))
    between_queries = tokens.std(1).mean()
    between_images = tokens.std(0).mean()
    assert between_queries > 0.1 * tokens.std()
    assert between_images > 0.1 * tokens.std()


def test_the_scale_of_the_encoder_does_not_matter():
    features = torch.randn(20, 4, 6) * torch.logspace(-2, 2, 6) + torch.linspace(-50, 50, 6)
    tokens = []
    for scale in (1, 100):
        projector = make()
        projector.calibrate(scale * features, 0.1)
        tokens.append(projector(scale * features).detach())
    torch.testing.assert_close(tokens[0], tokens[1], rtol=1e-3, atol=1e-4)
    assert float(tokens[0].std()) == pytest.approx(0.1, rel=1e-3)


def test_options_out_of_range():
    with pytest.raises(UserError) as caught:
        make(queries=0, depth=0, heads=0, width=0)
    names = ["queries", "depth", "heads", "width"]
    assert [problem.where for problem in caught.value.problems] == [f"model.projector.{name}" for name in names]
    with pytest.raises(UserError, match="a divisor of the width 20: 1, 2, 4, 5, 10, 20") as caught:
        Resampler(in_width=6, out_width=20)
    assert [problem.where for problem in caught.value.problems] == ["model.projector.heads"]
