import numpy as np
import pytest
import torch
from PIL import Image

from mmcl.encoders.pooling import pool_levels
from mmcl.encoders.preprocess import Preprocess

HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def striped():
    """4 high, 8 wide: left half red, right half blue."""
    image = Image.new("RGB", (8, 4), (255, 0, 0))
    image.paste((0, 0, 255), (4, 0, 8, 4))
    return image


def test_values_without_resizing():
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3) * 20
    tensor = Preprocess(size=2, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))(Image.fromarray(pixels))
    assert tensor.dtype == torch.float32
    assert tensor.is_contiguous()
    for channel, (mean, std) in enumerate(((0.1, 0.5), (0.2, 0.25), (0.3, 2.0))):
        expected = (torch.from_numpy(pixels[:, :, channel].astype(np.float32)) / 255 - mean) / std
        torch.testing.assert_close(tensor[channel], expected)


def test_squash_keeps_everything():
    tensor = Preprocess(size=4, interpolation="nearest", **HALF)(striped())
    assert tensor[0].tolist() == [[1, 1, -1, -1]] * 4
    assert tensor[2].tolist() == [[-1, -1, 1, 1]] * 4


def test_pad_centres_on_the_mean_colour():
    tensor = Preprocess(size=8, interpolation="nearest", fit="pad", **HALF)(striped())
    assert tensor[:, :2].abs().max() < 0.01 and tensor[:, 6:].abs().max() < 0.01
    assert tensor[0, 2:6].tolist() == [[1, 1, 1, 1, -1, -1, -1, -1]] * 4


def test_crop_takes_the_middle():
    tensor = Preprocess(size=2, interpolation="nearest", fit="crop", **HALF)(striped())
    assert tensor[0].tolist() == [[1, -1]] * 2
    narrow = Preprocess(size=2, interpolation="nearest", fit="crop", crop=0.5, **HALF)
    image = Image.new("RGB", (8, 8), (0, 0, 0))
    image.paste((255, 255, 255), (2, 2, 6, 6))
    assert narrow(image).min() == 1


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_any_mode_of_image(mode):
    assert Preprocess(size=4, **HALF)(striped().convert(mode)).shape == (3, 4, 4)


def test_one_map_is_left_as_it_is():
    level = torch.randn(2, 3, 4, 4)
    tokens = pool_levels([level], 4)
    assert tokens.shape == (2, 16, 3)
    assert torch.equal(tokens[1, 6], level[1, :, 1, 2])
    torch.testing.assert_close(pool_levels([level], 2)[0, 1], level[0, :, :2, 2:].mean((1, 2)))


def test_no_level_drowns_the_others():
    small, large = torch.rand(2, 3, 8, 8), 1000 * torch.rand(2, 5, 2, 2)
    tokens = pool_levels([small, large], 4)
    assert tokens.shape == (2, 16, 8)
    assert 0.8 < tokens[..., :3].square().mean().sqrt() / tokens[..., 3:].square().mean().sqrt() < 1.25


def test_an_empty_map_gives_no_nan():
    assert pool_levels([torch.zeros(1, 2, 4, 4), torch.ones(1, 2, 4, 4)], 2).isfinite().all()
