"""The contract of projectors that read text; part of `mmcl.testing.check_projector`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mmcl.protocols import Text


class Asked(nn.Module):
    """A projector that is always asked the same: what it promises of features can be checked as of any other.

    Args:
        projector: reads text.
        width: of the language model.
    """

    def __init__(self, projector: nn.Module, width: int) -> None:
        super().__init__()
        self.projector = projector
        self.width = width

    def __getattr__(self, name: str) -> Any:
        """What else a projector has."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "projector":
                raise
            return getattr(self.projector, name)

    def forward(self, features: Tensor) -> Tensor:
        """As the projector's, beside five tokens of text."""
        output: Tensor = self.projector(features, _text(len(features), self.width, features))
        return output


def text_problems(projector: nn.Module, features: Tensor, width: int) -> list[str]:
    """The promises about text that a projector breaks, on features of at least two images."""
    text = _text(len(features), width, features)
    other = replace(text, embeddings=text.embeddings.clone().index_fill_(0, torch.tensor([1]), 0.5))
    longer = Text(
        torch.cat([text.embeddings, torch.full_like(text.embeddings, 9.0)], 1),
        torch.cat([text.present, torch.zeros_like(text.present)], 1),
    )
    projector.eval()
    with torch.no_grad():
        said, changed, padded, silent = (projector(features, each) for each in (text, other, longer, None))
    problems = []
    if torch.equal(said[1], changed[1]):
        problems.append("`reads_text` is true, but another text gives the same tokens")
    if not torch.allclose(said[0], changed[0], atol=1e-5):
        problems.append("the text of one image reaches the tokens of another")
    if not torch.allclose(said, padded, atol=1e-5):
        problems.append("what stands where `present` is false reaches the tokens")
    if silent.shape != said.shape:
        problems.append(f"without a text, `forward` gives {tuple(silent.shape)} instead of {tuple(said.shape)}")
    return problems


def _text(images: int, width: int, like: Tensor) -> Text:
    embeddings = torch.randn(5, width, generator=torch.Generator().manual_seed(1)).expand(images, -1, -1)
    return Text(embeddings.to(like.device), torch.ones(images, 5, dtype=torch.bool, device=like.device))
