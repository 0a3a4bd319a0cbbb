"""A querying transformer: learned queries that read the image, and the question beside it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmcl.model.projectors.checks import check_ranges
from mmcl.model.projectors.resampler import positions
from mmcl.model.projectors.standardise import Standardise, calibrate
from mmcl.protocols import Text


class QFormer(nn.Module):
    """Learned queries that see the question and each other by self-attention, and the image by cross-attention.

    Formula, with LN a LayerNorm of its own at each place: z = the queries [Q, E], the same for each image; t = LN(in_t(
    embeddings)) + p [S, E], p the places in the text; x = LN(in(features)) + p [T, E], p the places in the image. Then
    `depth` times: (z, t) <- (z, t) + SelfAttention(LN(z, t)); in every `cross_every`-th layer, from the first on,
    z <- z + CrossAttention(q = LN(z), k = v = x); z <- z + MLP(LN(z)), t <- t + MLP_t(LN(t)). Tokens = out(LN(z))
    [I, Q, D]. Without a text, the queries see each other only.

    Source: BLIP-2 (arXiv 2301.12597), section 3.1: shared self-attention, cross-attention in every second block, 32
    queries; the question as text input is InstructBLIP's (arXiv 2305.06500), section 2.3, with MLPs of its own as in
    its code. Ours: the norm comes first, as random weights need; 6 layers of width 512 instead of BERT-base's 12 of
    768; the text enters by the language model's own embeddings, so that any language can be asked; positions in the
    image; the normalisation of the input.

    Args:
        in_width: width of the encoder's tokens.
        out_width: width of the language model.
        queries: Q, tokens that leave.
        depth: number of layers.
        heads: of the attention; they must divide `width`.
        width: E, of the layers.
        cross_every: the image is read in every so many layers.
        text: whether the question is read; then no two questions share an image's tokens in a row.
        norm: standardise the encoder's channels; see `Standardise`.

    Raises:
        UserError: an option is out of its range; all such problems at once.
    """

    def __init__(
        self,
        *,
        in_width: int,
        out_width: int,
        queries: int = 32,
        depth: int = 6,
        heads: int = 8,
        width: int = 512,
        cross_every: int = 2,
        text: bool = True,
        norm: bool = True,
    ) -> None:
        super().__init__()
        check_ranges(
            ("queries", queries, queries >= 1, "at least 1"),
            ("depth", depth, depth >= 1, "at least 1"),
            ("width", width, width >= 1, "at least 1"),
            ("heads", heads, heads >= 1 and width % max(heads, 1) == 0, f"a divisor of the width {width}"),
            ("cross_every", cross_every, cross_every >= 1, "at least 1"),
        )
        self.reads_text = text
        self.norm = Standardise(in_width) if norm else nn.Identity()
        self.enter = nn.Linear(in_width, width)
        self.enter_norm = nn.LayerNorm(width)
        if text:
            self.enter_text = nn.Linear(out_width, width)
            self.text_norm = nn.LayerNorm(width)
        self.queries = nn.Parameter(torch.empty(queries, width).normal_(std=0.02))  # as in BERT
        self.layers = nn.ModuleList(
            # The text that leaves the last layer is read by nobody.
            _Layer(width, heads, cross=index % cross_every == 0, text=text and index + 1 < depth)
            for index in range(depth)
        )
        self.last_norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, out_width)

    def tokens(self, tokens_in: int) -> int:
        """As many as there are queries."""
        return len(self.queries)

    def calibrate(self, features: Tensor, spread: float) -> None:
        """Before training, on features [I, T, in_width] of the first images: see `standardise.calibrate`."""
        calibrate(self, self.norm, self.leave, features, spread)

    def forward(self, features: Tensor, text: Text | None = None) -> Tensor:
        """Features [I, T, in_width], and the text of each image -> tokens [I, queries, out_width]."""
        image = _placed(self.enter_norm(self.enter(self.norm(features))), grid=True)
        state = self.queries.to(image.dtype).expand(len(image), -1, -1)
        seen = None
        if text is not None and self.reads_text:
            read = _placed(self.text_norm(self.enter_text(text.embeddings.to(image.dtype))), grid=False)
            state = torch.cat([state, read], 1)
            ours = text.present.new_ones(len(image), len(self.queries))
            seen = torch.cat([ours, text.present], 1)[:, None, None]  # [I, 1, 1, Q + S]
        for layer in self.layers:
            state = layer(state, image, seen, len(self.queries))
        projected: Tensor = self.leave(self.last_norm(state[:, : len(self.queries)]))
        return projected


class _Layer(nn.Module):
    """Self-attention of queries and text, cross-attention of the queries to the image, MLPs; each is residual."""

    def __init__(self, width: int, heads: int, *, cross: bool, text: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = _Attention(width, heads)
        if cross:
            self.cross_norm = nn.LayerNorm(width)
            self.cross = _Attention(width, heads)
        self.mlp = _mlp(width)
        if text:
            self.text_mlp = _mlp(width)
        self.reads_image, self.passes_text = cross, text

    def forward(self, state: Tensor, image: Tensor, seen: Tensor | None, queries: int) -> Tensor:
        """Queries and text [I, Q + S, E], image [I, T, E], what is there of the former -> queries and text."""
        normed = self.norm(state)
        state = state + self.attention(normed, normed, seen)
        asking, text = state[:, :queries], state[:, queries:]
        if self.reads_image:
            asking = asking + self.cross(self.cross_norm(asking), image, None)
        asking = asking + self.mlp(asking)
        if self.passes_text and text.shape[1]:
            text = text + self.text_mlp(text)
        return torch.cat([asking, text], 1)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))
        for linear in (self.query, self.key):  # scores of about unit spread, so that queries differ in what they read
            nn.init.normal_(linear.weight, std=1 / math.sqrt(width))
            nn.init.zeros_(linear.bias)

    def forward(self, asking: Tensor, read: Tensor, seen: Tensor | None) -> Tensor:
        """[I, N, E] reads [I, M, E], of which `seen` (bool, [I, 1, 1, M]) says what is there -> [I, N, E]."""
        query, key, value = (
            of(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for of, tokens in ((self.query, asking), (self.key, read), (self.value, read))
        )
        found = functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        output: Tensor = self.output(found.transpose(1, 2).flatten(2))
        return output


def _mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


def _placed(tokens: Tensor, *, grid: bool) -> Tensor:
    """[I, T, E] with sines and cosines of each token's place added."""
    return tokens + positions(tokens.shape[1], tokens.shape[2], tokens.device, grid=grid).to(tokens.dtype)
