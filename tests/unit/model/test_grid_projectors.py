"""`pixel_shuffle` and `pool`: what they do to a square grid of tokens."""

from types import SimpleNamespace

import pytest
import torch
from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector
from transformers.models.internvl.modeling_internvl import InternVLModel

from mmcl.errors import UserError
from mmcl.model.projectors.pixel_shuffle import PixelShuffle, shuffle
from mmcl.model.projectors.pool import Pool


def grid(side, width=1):
    """Token k of the grid is k, in each of its channels plus 100 per channel."""
    return torch.arange(side * side)[None, :, None] + 100.0 * torch.arange(width)


def refused(make, *args):
    with pytest.raises(UserError) as caught:
        make(*args)
    (problem,) = caught.value.problems
    return problem


# ------------------------------------------------------------------------------------------------------- pixel_shuffle


def test_neighbours_of_a_block_become_one_token():
    # 0  1 |  2  3
    # 4  5 |  6  7
    # -----+------
    # 8  9 | 10 11
    # 12 13| 14 15
    blocks = [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    assert shuffle(grid(4), 2)[0].tolist() == blocks
    assert shuffle(grid(4, width=2), 2)[0, 1].tolist() == [2, 102, 3, 103, 6, 106, 7, 107]
    assert shuffle(grid(6), 3)[0, 2].tolist() == [18, 19, 20, 24, 25, 26, 30, 31, 32]
    assert torch.equal(shuffle(grid(4), 1), grid(4))
    assert shuffle(grid(4), 4)[0].tolist() == [list(range(16))]


@pytest.mark.parametrize("factor", [2, 3, 6])
def test_the_order_is_that_of_idefics3(factor):
    features = torch.randn(3, 36, 5)
    assert torch.equal(shuffle(features, factor), Idefics3Connector.pixel_shuffle(None, features, factor))


@pytest.mark.parametrize("factor", [2, 4])
def test_the_order_is_that_of_internvl(factor):
    features = torch.randn(3, 64, 5)
    theirs = InternVLModel.pixel_shuffle(None, features.view(3, 8, 8, 5), scale_factor=1 / factor)
    assert torch.equal(shuffle(features, factor), theirs.flatten(1, 2))


def test_with_one_map_it_is_the_connector_of_idefics3():
    config = SimpleNamespace(
        scale_factor=2, vision_config=SimpleNamespace(hidden_size=12), text_config=SimpleNamespace(hidden_size=20)
    )
    theirs = Idefics3Connector(config)
    ours = PixelShuffle(in_width=12, out_width=20, depth=1, norm=False)
    with torch.no_grad():
        ours.mlp.layers[0].weight.copy_(theirs.modality_projection.proj.weight)
        ours.mlp.layers[0].bias.zero_()
    features = torch.randn(2, 16, 12)
    torch.testing.assert_close(ours(features), theirs(features))


def test_tokens_of_a_shuffle():
    projector = PixelShuffle(in_width=3, out_width=5)
    assert [projector.tokens(tokens) for tokens in (4, 16, 196, 576, 1024)] == [1, 4, 49, 144, 256]
    assert PixelShuffle(in_width=3, out_width=5, factor=3).tokens(729) == 81
    assert projector(torch.randn(2, 36, 3)).shape == (2, 9, 5)
    assert [layer.weight.shape for layer in projector.mlp.layers[::2]] == [(5, 12), (5, 5)]


def test_grids_that_cannot_be_shuffled():
    projector = PixelShuffle(in_width=3, out_width=5)
    for make in (lambda: projector.tokens(729), lambda: projector(torch.zeros(1, 729, 3))):
        problem = refused(make)
        assert problem.where == "model.projector.factor"
        assert "2 does not divide the side of the encoder's grid of 27 x 27 tokens" in problem.message
        assert "26 or 28 patches a side" in problem.hint and problem.hint.endswith("divides 27: 1, 3, 9, 27")
    problem = refused(projector.tokens, 257)
    assert (problem.where, problem.message) == ("model.projector", "the encoder's 257 tokens form no square grid")
    assert problem.hint.startswith("16 x 16 = 256 or 18 x 18 = 324 would: leave out the encoder's class")
    assert refused(projector.tokens, 3).hint.startswith("2 x 2 = 4 would")


def test_options_of_a_shuffle():
    with pytest.raises(UserError) as caught:
        PixelShuffle(in_width=3, out_width=5, factor=0, depth=0, hidden=0)
    names = ["factor", "depth", "hidden"]
    assert [problem.where for problem in caught.value.problems] == [f"model.projector.{name}" for name in names]


# ---------------------------------------------------------------------------------------------------------------- pool


def pooled(features, to):
    projector = Pool(in_width=features.shape[2], out_width=1, grid=to, depth=1, norm=False)
    with torch.no_grad():
        projector.mlp.layers[0].weight.fill_(1.0)
        projector.mlp.layers[0].bias.zero_()
        return projector(features)[0, :, 0].tolist()


def test_means_of_cells():
    assert pooled(grid(4), 2) == [2.5, 4.5, 10.5, 12.5]
    assert pooled(grid(4, width=2), 2) == [105, 109, 121, 125]  # the sum of both channels
    assert pooled(grid(4), 1) == [7.5]
    assert pooled(grid(4), 4) == list(range(16))
    # Cells of 3 tokens in 2: rows and columns 0..1 and 1..2.
    assert pooled(grid(3), 2) == [2.0, 3.0, 5.0, 6.0]


def test_tokens_of_a_pool():
    projector = Pool(in_width=3, out_width=5)
    assert [projector.tokens(tokens) for tokens in (144, 196, 576, 729)] == [144] * 4
    assert projector(torch.randn(2, 196, 3)).shape == (2, 144, 5)


def test_grids_that_cannot_be_pooled():
    projector = Pool(in_width=3, out_width=5, grid=5)
    problem = refused(projector.tokens, 16)
    assert problem.where == "model.projector.grid"
    assert problem.message == "the encoder's grid of 4 x 4 tokens is smaller than 5 x 5"
    assert "at most 4" in problem.hint and "5 patches a side" in problem.hint
    assert refused(projector.tokens, 50).hint.startswith("7 x 7 = 49 or 8 x 8 = 64 would")
    assert refused(projector.tokens, 17).hint.startswith("5 x 5 = 25 would")
    assert refused(projector.tokens, 8).hint.startswith("5 x 5 = 25 would")
    with pytest.raises(UserError, match="no square grid"):
        projector(torch.zeros(1, 50, 3))


def test_options_of_a_pool():
    with pytest.raises(UserError) as caught:
        Pool(in_width=3, out_width=5, grid=0, hidden=-1)
    assert [problem.where for problem in caught.value.problems] == ["model.projector.grid", "model.projector.hidden"]
