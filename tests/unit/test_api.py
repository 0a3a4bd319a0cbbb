"""The Python API, with an encoder object that nobody registered."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from mmcl.api import run
from mmcl.errors import UserError
from mmcl.protocols import EncoderInfo
from mmcl.testing import TinyImage


def small(image):
    data = torch.frombuffer(bytearray(image.resize((4, 4)).tobytes()), dtype=torch.uint8)
    return data.reshape(4, 4, 3).permute(2, 0, 1).float() / 255


class MyEncoder(nn.Module):
    """Four colours."""

    info = EncoderInfo(tokens=4, width=12, image_size=4, source="mine")

    def transform(self):
        return small

    def forward(self, pixels):
        return pixels.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).reshape(len(pixels), 4, 12)


MODEL = {"projector": "mlp", "language": {"weights": "tiny:llama", "lora": {"rank": 2}}}
STREAM = {"name": "shapes", "tasks": ["colour", "position"], "train_size": 16, "test_size": 4}


def test_a_run_with_an_encoder_object(tmp_path: Path) -> None:
    result = run(
        model={"encoder": MyEncoder(), **MODEL},
        stream=STREAM,
        methods=[{"name": "replay", "rows": 8}, "projector_experts"],
        out=tmp_path / "run",
        progress=False,
    )
    assert result.matrix().tasks == ("colour", "position")
    assert result.matrix().values[1][0] is not None
    assert result.metrics()["FM"] is not None
    assert "MyEncoder (an object given in Python)" in result.report().read_text()
    picture = tmp_path / "red.png"
    picture.write_bytes(TinyImage("red", "top left").read())
    rows = result.ask("What colour is this?", image=picture, stage="all")
    assert [row["stage"] for row in rows] == ["start", "colour", "position"]


def test_an_encoder_object_without_promises(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Conv2d has no `info`"):
        run(model={"encoder": nn.Conv2d(3, 4, 1), **MODEL}, stream=STREAM, out=tmp_path / "run", progress=False)


def test_all_mistakes_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        run(model={"encoder": "tinny", **MODEL}, stream={"name": "shapes", "lenght": 3}, methods=["replya"])
    assert len(caught.value.problems) == 3
    assert all("Did you mean" in problem.hint for problem in caught.value.problems)
