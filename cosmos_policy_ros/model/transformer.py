"""The diffusion transformer of Cosmos-Predict2 and Cosmos Policy, top to bottom.

Letters in the margins: B samples, T latent frames, S tokens per frame, D width, A heads, d numbers
per head, L text tokens. "b" is B, or 1 where one serves all samples. Nothing has a bias.

A timestep belongs to a frame, so shift, scale and gate are computed per frame and broadcast over
its tokens. Whatever does not change between two evaluations, the timesteps' modulation and the
text's keys and values, may be given prepared instead of raw; the arithmetic is the same. Parameters
carry the names of the released checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from cosmos_policy_ros.model.config import LATENT_CHANNELS, TransformerConfig

EPSILON = 1e-6  # of every norm
BASE_PERIOD = 10_000.0  # of the timestep's sinusoid and of the rotary position
MASK_CHANNELS = 2  # condition mask and padding mask, behind the latent's own channels

KEY_MULTIPLE = 16  # kept text positions: one shape for most prompts, and aligned for GPU kernels
KEPT_PADS = 4  # at least; as many leave an error of 1e-6 of their weight in bfloat16
ROUNDING_MARGIN = 0.97  # more than a bfloat16 logit below 8 can be rounded by

PROMPTS_KEPT = 16  # 7 MB each for the 2B network
SIZES_KEPT = 4  # of latents; a checkpoint has one
TIMESTEPS_KEPT = 64  # 1 MB each for the 2B network; the released samplers visit 21


class TimestepEmbedding(NamedTuple):
    """Embedded timesteps. A tuple, so that FSDP and checkpointing see the tensors inside."""

    activated: Tensor  # (b, T, D) SiLU of the normed sinusoid, the input of every modulation
    shared: Tensor  # (b, T, 3 D) the time MLP's output, added to every modulation


class Modulation(NamedTuple):
    """Shift, scale and gate of every layer at given timesteps, prepared."""

    blocks: Tensor  # (b, T, layers, 3, 3, D), per sub-layer of each block
    final: Tensor  # (b, T, 2, D), shift and scale before the output


Modulations: TypeAlias = tuple[tuple[Modulation, ...], ...]  # per row and frame, of one timestep


class TextKV(NamedTuple):
    """The text as the blocks' cross-attention sees it, prepared; one block's lacks ``layers``."""

    keys: Tensor  # (layers, b, A, L, d)
    values: Tensor  # (layers, b, A, L, d)
    bias: Tensor | None  # (b, 1, 1, L) added to the logits


class Transformer(nn.Module):
    """Latent frames and their timesteps in, one prediction per latent number out."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width = config.heads * config.head_dim
        self.config = config
        self.x_embedder = PatchEmbedding(config.patch, width)
        self.pos_embedder = RotaryPosition(config.head_dim, config.rope_scale)
        self.t_embedder = nn.Sequential(Sinusoid(width), TimeMlp(width))
        self.t_embedding_norm = nn.RMSNorm(width, EPSILON)
        blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.blocks = cast(Sequence[Block], blocks)
        self.final_layer = FinalLayer(config, width)

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the weights."""
        return self.t_embedding_norm.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.t_embedding_norm.weight.device

    def forward(
        self,
        latent: Tensor,
        timestep: Tensor | Modulation,
        known: Tensor,
        text: Tensor | TextKV,
        wanted: Sequence[int] | None = None,
        given: Sequence[int] | None = None,
        rotation: Tensor | None = None,
    ) -> Tensor:
        """Predict (B, 16, T, H, W) in the format of ``latent``; NaN in frames that are not wanted.

        Args:
            latent: (B, 16, T, H, W): clean in known frames, scaled noisy latent in the others.
            timestep: (b, T), 0 in known frames; or its :meth:`modulation`.
            known: (b, T) bool, which frames are conditions.
            text: (b, L, D) prompt embedding, or what :meth:`read` made of it.
            wanted: frames to predict, all by default. The last block and the output layer compute
                no others; every frame still has its say up to there.
            given: frames that take part, all by default, in rising order and the wanted ones
                among them. They keep their places in time; to the others nothing attends, which is
                not what the released networks were trained with.
            rotation: (2, T, S, 1, d / 2), of this latent's grid by :class:`RotaryPosition`.
        """
        count = latent.shape[2]
        wanted = range(count) if wanted is None else tuple(wanted)
        given = range(count) if given is None else tuple(given)
        frames = tuple(map(given.index, wanted))  # among the given ones
        moments: Sequence[Tensor | TimestepEmbedding]
        final: Tensor | TimestepEmbedding
        texts: Sequence[Tensor | TextKV]
        if isinstance(timestep, Modulation):
            moments, final = _pick(timestep.blocks, given).unbind(2), _pick(timestep.final, wanted)
        else:
            moment = self.embed(_pick(timestep, given))
            moments = [moment] * len(self.blocks)
            final = TimestepEmbedding(*[_pick(part, frames) for part in moment])
        if isinstance(text, TextKV):
            texts = [TextKV(k, v, text.bias) for k, v in zip(text.keys, text.values, strict=True)]
        else:
            texts = [text.to(self.dtype)] * len(self.blocks)
        if rotation is None:
            rotation = self.pos_embedder(self.x_embedder.grid(latent))
        rotation = _pick(rotation, given)
        x = self.x_embedder(latent.to(self.dtype), known)  # (B, T, S, D)
        x = _pick(x, given)
        last = len(self.blocks) - 1
        for i, block in enumerate(self.blocks):
            x = block(x, rotation, moments[i], texts[i], frames if i == last else None)
        prediction: Tensor = self.final_layer(x, final, latent.shape[-1]).to(latent.dtype)
        if len(wanted) == count:
            return prediction
        found = dict(zip(wanted, prediction.unbind(2), strict=True))
        nothing = torch.full_like(prediction[:, :, 0], torch.nan)
        return torch.stack([found.get(f, nothing) for f in range(count)], dim=2)

    def embed(self, timestep: Tensor) -> TimestepEmbedding:
        """Embed (b, T) timesteps. The sinusoid is made in float32 and rounded to the weights."""
        sinusoid = self.t_embedder[0](timestep).to(self.dtype)  # (b, T, D)
        activated = functional.silu(self.t_embedding_norm(sinusoid))
        return TimestepEmbedding(activated, self.t_embedder[1](sinusoid))

    def prepare(self, timestep: Tensor) -> Tensor:
        """Return (b, T) timesteps where the weights are; a :class:`CachedTransformer` does more."""
        return timestep.to(self.device)

    def modulation(self, timestep: Tensor) -> Modulation:
        """Prepare (b, T) timesteps for :meth:`forward`, valid until the weights change."""
        moment = self.embed(timestep)
        blocks = torch.stack([block.modulate(moment) for block in self.blocks], dim=2)
        return Modulation(blocks, self.final_layer.modulate(moment))

    def read(self, text: Tensor, bias: Tensor | None = None) -> TextKV:
        """Prepare a (b, L, D) prompt embedding for :meth:`forward`, valid until the weights change.

        :func:`collapse_padding` makes it shorter and as good, with a ``bias`` (b, 1, 1, L).
        """
        said = text.to(self.dtype)
        pairs = [block.cross_attn.keys_and_values(said) for block in self.blocks]
        keys, values = (torch.stack(each) for each in zip(*pairs, strict=True))
        return TextKV(keys, values, None if bias is None else bias.to(self.dtype))


class PatchEmbedding(nn.Module):
    """Tokens of 1 x p x p latent cells; known frames carry a mark.

    The weights have columns for two more channels. The condition mask is constant over a frame, so
    it adds one learned vector; the padding mask is zero in every policy and adds nothing.
    """

    def __init__(self, patch: Sequence[int], width: int) -> None:
        super().__init__()
        self.patch = tuple(patch)
        volume = (LATENT_CHANNELS + MASK_CHANNELS) * math.prod(patch)
        self.proj = nn.Sequential(nn.Identity(), nn.Linear(volume, width, bias=False))

    def grid(self, latent: Tensor) -> tuple[int, int, int]:
        """Return how many tokens lie along time, height and width."""
        frames, height, width = latent.shape[2:]
        return frames, height // self.patch[1], width // self.patch[2]

    def forward(self, latent: Tensor, known: Tensor) -> Tensor:
        """Map (B, 16, T, H, W) and (b, T) to (B, T, S, D)."""
        _, rows, columns = self.grid(latent)
        _, high, wide = self.patch
        cells = latent.reshape(*latent.shape[:3], rows, high, columns, wide)
        patches = cells.permute(0, 2, 3, 5, 1, 4, 6).flatten(4).flatten(2, 3)  # (B, T, S, 16 p p)
        weight, numbers = cast(Tensor, self.proj[1].weight), patches.shape[3]
        mark = weight[:, numbers : numbers + high * wide].sum(dim=1)  # (D,)
        marked = known[:, :, None, None].to(mark.dtype) * mark  # (b, T, 1, D)
        return functional.linear(patches, weight[:, :numbers]) + marked


class RotaryPosition(nn.Module):
    """Angles of the rotary position embedding over time, height and width.

    A head's numbers are split between the axes (44, 42 and 42 of 128); each axis' base period is
    stretched by its context extension (NTK-aware scaling). The released network was trained with
    its buffers in bfloat16, so the exponents are rounded to it here, at any precision.
    """

    dim_spatial_range: Tensor
    dim_temporal_range: Tensor

    def __init__(self, head_dim: int, scale: Sequence[float]) -> None:
        super().__init__()
        spatial, temporal = self.exponents(head_dim)
        self.register_buffer("dim_spatial_range", spatial)
        self.register_buffer("dim_temporal_range", temporal)
        dims = (2 * len(temporal), 2 * len(spatial), 2 * len(spatial))
        self.periods = tuple(
            BASE_PERIOD * s ** (n / (n - 2)) for s, n in zip(scale, dims, strict=True)
        )

    @staticmethod
    def exponents(head_dim: int) -> tuple[Tensor, Tensor]:
        """Return the exponents of the periods for a spatial axis and for time, (n / 2,) each."""
        spatial = head_dim // 6 * 2
        dims = (spatial, head_dim - 2 * spatial)
        rounded = [(torch.arange(0, n, 2) / n).bfloat16().float() for n in dims]
        return rounded[0], rounded[1]

    def forward(self, grid: tuple[int, int, int]) -> Tensor:
        """Return cosines and sines (2, T, S, 1, d / 2) float32 for a grid of (T, h, w) tokens."""
        exponents = (self.dim_temporal_range, self.dim_spatial_range, self.dim_spatial_range)
        angles = []
        for axis, (count, period, exponent) in enumerate(
            zip(grid, self.periods, exponents, strict=True)
        ):
            positions = torch.arange(count, device=exponent.device, dtype=torch.float32)
            along = torch.outer(positions, 1 / period ** exponent.float())
            shape = [1, 1, 1, along.shape[1]]
            shape[axis] = count
            angles.append(along.view(shape).expand(*grid, -1))  # (T, h, w, d of the axis / 2)
        joined = torch.cat(angles, dim=-1).flatten(1, 2).unsqueeze(2)  # (T, S, 1, d / 2)
        return torch.stack((joined.cos(), joined.sin()))


class Sinusoid(nn.Module):
    """A number as D / 2 cosines, then D / 2 sines, of periods 2 pi to 20000 pi."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pairs = width // 2

    def forward(self, timestep: Tensor) -> Tensor:
        """Map (b, T) to (b, T, D) float32."""
        steps = torch.arange(self.pairs, device=timestep.device, dtype=torch.float32)
        frequency = torch.exp(-math.log(BASE_PERIOD) / self.pairs * steps)
        angles = timestep.float().unsqueeze(-1) * frequency
        return torch.cat((angles.cos(), angles.sin()), dim=-1)


class TimeMlp(nn.Module):
    """Makes the part of the modulation that all layers share."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width, width, bias=False)
        self.linear_2 = nn.Linear(width, 3 * width, bias=False)

    def forward(self, sinusoid: Tensor) -> Tensor:
        """Map (b, T, D) to (b, T, 3 D)."""
        shared: Tensor = self.linear_2(functional.silu(self.linear_1(sinusoid)))
        return shared


class Block(nn.Module):
    """Self-attention over all frames, cross-attention to the text, MLP; each modulated, each gated.

    x <- x + gate * f(norm(x) * (1 + scale) + shift)
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width, rank = config.heads * config.head_dim, config.adaln_rank
        self.self_attn = Attention(width, width, config.heads)
        self.cross_attn = Attention(width, config.text_width, config.heads)
        self.mlp = Mlp(width, int(width * config.mlp_ratio))
        self.adaln_modulation_self_attn = _low_rank(width, rank, 3 * width)
        self.adaln_modulation_cross_attn = _low_rank(width, rank, 3 * width)
        self.adaln_modulation_mlp = _low_rank(width, rank, 3 * width)

    def modulate(self, moment: TimestepEmbedding) -> Tensor:
        """Return (b, T, 3, 3, D): of each sub-layer its shift, scale and gate."""
        layers = (
            self.adaln_modulation_self_attn,
            self.adaln_modulation_cross_attn,
            self.adaln_modulation_mlp,
        )
        own = torch.stack([layer(moment.activated) for layer in layers], dim=2)  # (b, T, 3, 3 D)
        return (own + moment.shared.unsqueeze(2)).view(*own.shape[:3], 3, -1)

    def forward(
        self,
        x: Tensor,
        rotation: Tensor,
        moment: TimestepEmbedding | Tensor,
        text: Tensor | TextKV,
        wanted: Sequence[int] | None = None,
    ) -> Tensor:
        """Map (B, T, S, D) to the same, or to (B, F, S, D) for the F ``wanted`` frames only."""
        modulation = moment if isinstance(moment, Tensor) else self.modulate(moment)
        if isinstance(text, Tensor):
            text = TextKV(*self.cross_attn.keys_and_values(text), bias=None)
        seen = _shifted_and_scaled(x, modulation[:, :, 0])
        keys, values = self.self_attn.keys_and_values(seen.flatten(1, 2), rotation.flatten(1, 2))
        x, seen = _pick(x, wanted), _pick(seen, wanted)
        rotation, modulation = _pick(rotation, wanted), _pick(modulation, wanted)
        gates = modulation[:, :, :, 2].unsqueeze(3)  # (b, F, 3, 1, D)
        rotation = rotation.flatten(1, 2)  # (2, F S, 1, d / 2)
        x = x + gates[:, :, 0] * self.self_attn(seen, keys, values, rotation=rotation)
        seen = _shifted_and_scaled(x, modulation[:, :, 1])
        x = x + gates[:, :, 1] * self.cross_attn(seen, *text)
        seen = _shifted_and_scaled(x, modulation[:, :, 2])
        change: Tensor = gates[:, :, 2] * self.mlp(seen)
        return x + change


class Attention(nn.Module):
    """Multi-head attention with normed queries and keys."""

    def __init__(self, width: int, source_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(source_width, width, bias=False)
        self.v_proj = nn.Linear(source_width, width, bias=False)
        self.q_norm = nn.RMSNorm(width // heads, EPSILON)
        self.k_norm = nn.RMSNorm(width // heads, EPSILON)
        self.output_proj = nn.Linear(width, width, bias=False)

    def keys_and_values(
        self, source: Tensor, rotation: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return keys and values (b, A, L, d) of (b, L, D') sources."""
        keys = self.k_norm(self.k_proj(source).unflatten(2, (self.heads, -1)))  # (b, L, A, d)
        values = self.v_proj(source).unflatten(2, (self.heads, -1))
        return _rotated(keys, rotation).transpose(1, 2), values.transpose(1, 2)

    def forward(
        self,
        x: Tensor,
        keys: Tensor,
        values: Tensor,
        bias: Tensor | None = None,
        rotation: Tensor | None = None,
    ) -> Tensor:
        """Let (B, F, S, D) tokens, rotated by (2, F S, 1, d / 2), attend to keys and values."""
        shape = x.shape
        queries = self.q_norm(self.q_proj(x.flatten(1, 2)).unflatten(2, (self.heads, -1)))
        answer = functional.scaled_dot_product_attention(
            _rotated(queries, rotation).transpose(1, 2),  # (B, A, F S, d)
            keys.expand(shape[0], -1, -1, -1),
            values.expand(shape[0], -1, -1, -1),
            attn_mask=bias,
        )
        merged: Tensor = self.output_proj(answer.transpose(1, 2).flatten(2))  # (B, F S, D)
        return merged.view(shape)


class Mlp(nn.Module):
    """Two layers around an exact GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.layer1 = nn.Linear(width, hidden, bias=False)
        self.layer2 = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D) to (..., D)."""
        y: Tensor = self.layer2(functional.gelu(self.layer1(x)))
        return y


class FinalLayer(nn.Module):
    """Tokens back to latent cells. Here the channel runs fastest, unlike in the embedding."""

    def __init__(self, config: TransformerConfig, width: int) -> None:
        super().__init__()
        self.patch = tuple(config.patch)
        self.linear = nn.Linear(width, math.prod(self.patch) * LATENT_CHANNELS, bias=False)
        self.adaln_modulation = _low_rank(width, config.adaln_rank, 2 * width)

    def modulate(self, moment: TimestepEmbedding) -> Tensor:
        """Return (b, T, 2, D): shift and scale."""
        own: Tensor = self.adaln_modulation(moment.activated)  # (b, T, 2 D)
        return (own + moment.shared[..., : own.shape[2]]).view(*own.shape[:2], 2, -1)

    def forward(self, x: Tensor, moment: TimestepEmbedding | Tensor, latent_width: int) -> Tensor:
        """Map (B, F, S, D) to (B, 16, F, H, W)."""
        modulation = moment if isinstance(moment, Tensor) else self.modulate(moment)
        cells = self.linear(_shifted_and_scaled(x, modulation))  # (B, F, S, p p 16)
        _, high, wide = self.patch
        cells = cells.unflatten(3, (high, wide, LATENT_CHANNELS))
        cells = cells.unflatten(2, (-1, latent_width // wide))  # (B, F, h, w, p, p, 16)
        whole: Tensor = cells.permute(0, 6, 1, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)
        return whole


def _low_rank(width: int, rank: int, out: int) -> nn.Sequential:
    # The checkpoints count a SiLU as layer 0; it is the same for all and taken in ``embed``.
    return nn.Sequential(
        nn.Identity(), nn.Linear(width, rank, bias=False), nn.Linear(rank, out, bias=False)
    )


def _shifted_and_scaled(x: Tensor, modulation: Tensor) -> Tensor:
    """Norm (B, F, S, D) tokens and modulate them by (b, F, 2 or 3, D): shift, scale, ..."""
    shift, scale = modulation[:, :, 0].unsqueeze(2), modulation[:, :, 1].unsqueeze(2)
    return functional.layer_norm(x, x.shape[-1:], eps=EPSILON) * (1 + scale) + shift


def _rotated(x: Tensor, rotation: Tensor | None) -> Tensor:
    """Rotate (b, N, A, d): each number of the first half of d with its partner in the second."""
    if rotation is None:
        return x
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def _pick(x: Tensor, frames: Sequence[int] | None) -> Tensor:
    """Keep some of the frames along dimension 1; without an index tensor to be sent to a device."""
    if frames is None or len(frames) == x.shape[1]:
        return x
    return torch.stack([x[:, f] for f in frames], dim=1)


class CachedTransformer:
    """A transformer for inference: what does not change between evaluations is computed once.

    A prompt's keys and values serve all evaluations and queries; a token's rotation depends on the
    size of the latent only; a timestep's modulation on nothing but the weights, and a sampler
    visits few timesteps. The mathematics is the same. Not re-entrant.
    """

    def __init__(self, network: Transformer) -> None:
        self.network = network
        # The caches hold the network, not this object: no cycle keeps a dropped one in memory.
        self._rotation = lru_cache(SIZES_KEPT)(network.pos_embedder)
        # A timestep is computed alone, so that its modulation never depends on others.
        self._modulation = lru_cache(TIMESTEPS_KEPT)(
            lambda timestep, device: network.modulation(torch.tensor([[timestep]], device=device))
        )
        self._texts: dict[str, TextKV] = {}

    @torch.no_grad()
    def read(self, prompt: str, embed: Callable[[str], Tensor]) -> TextKV:
        """Return a prompt's keys and values; ``embed`` makes its (L, D) embedding when new."""
        text = self._texts.pop(prompt, None)
        if text is None:
            embedding, bias = collapse_padding(embed(prompt).unsqueeze(0))
            where = self.network.device
            text = self.network.read(embedding.to(where), None if bias is None else bias.to(where))
            if len(self._texts) == PROMPTS_KEPT:
                del self._texts[next(iter(self._texts))]  # the longest unused
        self._texts[prompt] = text
        return text

    @torch.no_grad()
    def prepare(self, timestep: Tensor) -> Modulations:
        """Return the modulations of (b, T) timesteps, which are read: give them on the CPU.

        From another device that would wait until all that was asked of it before is done.
        """
        rows = timestep.tolist()
        if all(row == rows[0] for row in rows):
            rows = rows[:1]
        return tuple(tuple(self._modulation(t, self.network.device) for t in row) for row in rows)

    @torch.no_grad()
    def __call__(
        self,
        latent: Tensor,
        timestep: Modulations,
        known: Tensor,
        text: Tensor | TextKV,
        wanted: Sequence[int] | None = None,
        given: Sequence[int] | None = None,
    ) -> Tensor:
        """Predict like :meth:`Transformer.forward`, with text from :meth:`read`.

        Samples may differ in their timesteps, given by :meth:`prepare`.
        """
        # Put together only now: a batch's would take 11 MB a sample and evaluation.
        when = Modulation(
            torch.cat([torch.cat([m.blocks for m in row], dim=1) for row in timestep]),
            torch.cat([torch.cat([m.final for m in row], dim=1) for row in timestep]),
        )
        rotation = self._rotation(self.network.x_embedder.grid(latent))
        prediction: Tensor = self.network(latent, when, known, text, wanted, given, rotation)
        return prediction


def collapse_padding(text: Tensor) -> tuple[Tensor, Tensor | None]:
    """Drop most of the zeros that pad (B, L, D) prompt embeddings.

    They all have the same key and value, zero, because nothing has a bias: a few of them with a
    bias on their logits weigh as much as all.

    Returns:
        (B, n, D) embeddings and (B, 1, 1, n) biases of their logits, with which attention gives
        the same; or the text itself and None, where there is too little to drop.
    """
    tokens = text.shape[1]
    positions = torch.arange(1, tokens + 1, device=text.device)
    used = (text.any(dim=2) * positions).amax(dim=1).tolist()  # per sample, the last token's place
    kept = math.ceil((max(used) + KEPT_PADS) / KEY_MULTIPLE) * KEY_MULTIPLE
    if kept >= tokens:
        return text, None
    bias = torch.zeros(len(text), kept, dtype=text.dtype)
    for row, count in zip(bias, used, strict=True):
        # One key with bias ln(pads) would do, were it not for its rounding: in bfloat16 it costs
        # one per cent. So each takes a little less than what is left, and the last one all of that.
        left = float(tokens - count)
        for i in range(count, kept):
            margin = ROUNDING_MARGIN if i < kept - 1 else 1.0
            row[i] = math.log(left * margin) if left > 0 else -math.inf
            left -= math.exp(row[i].item())
    return text[:, :kept], bias.to(text.device)[:, None, None, :]
