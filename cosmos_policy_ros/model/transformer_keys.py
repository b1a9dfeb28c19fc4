"""The transformer's tensors under the names that three kinds of files use, loaded strictly.

Our names are those of the released checkpoints without their ``net.`` prefix; diffusers renamed
every one. No tensor is transposed, split or permuted between them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

from torch import Tensor

from cosmos_policy_ros.model.strict import check_tensors
from cosmos_policy_ros.model.transformer import RotaryPosition, Transformer

V = TypeVar("V")

OFFICIAL_PREFIX = "net."
DIFFUSERS_MARK = "patch_embed."  # only diffusers' files have such a tensor

# Counters of the trainer, scratch of TransformerEngine, and the integers 0 ... 127 as a tensor.
BOOKKEEPING = re.compile(r"accum_\w+|(.*\.)?_extra_state|pos_embedder\.seq")

# Ours -> diffusers'; the parts of a name that do not change are left out.
DIFFUSERS = (
    ("x_embedder.proj.1.", "patch_embed.proj."),
    ("t_embedder.1.", "time_embed.t_embedder."),
    ("t_embedding_norm.", "time_embed.norm."),
    ("final_layer.linear.", "proj_out."),
    ("final_layer.adaln_modulation.1.", "norm_out.linear_1."),
    ("final_layer.adaln_modulation.2.", "norm_out.linear_2."),
)
DIFFUSERS_BLOCK = (
    ("adaln_modulation_self_attn.1.", "norm1.linear_1."),
    ("adaln_modulation_self_attn.2.", "norm1.linear_2."),
    ("adaln_modulation_cross_attn.1.", "norm2.linear_1."),
    ("adaln_modulation_cross_attn.2.", "norm2.linear_2."),
    ("adaln_modulation_mlp.1.", "norm3.linear_1."),
    ("adaln_modulation_mlp.2.", "norm3.linear_2."),
    ("mlp.layer1.", "ff.net.0.proj."),
    ("mlp.layer2.", "ff.net.2."),
    *(
        (f"{ours}.{part}.", f"{theirs}.{renamed}.")
        for ours, theirs in (("self_attn", "attn1"), ("cross_attn", "attn2"))
        for part, renamed in (
            ("q_proj", "to_q"),
            ("k_proj", "to_k"),
            ("v_proj", "to_v"),
            ("output_proj", "to_out.0"),
            ("q_norm", "norm_q"),
            ("k_norm", "norm_k"),
        )
    ),
)
OURS_BLOCK = re.compile(r"blocks\.(\d+)\.(.*)")
THEIRS_BLOCK = re.compile(r"transformer_blocks\.(\d+)\.(.*)")


def load_weights(network: Transformer, tensors: Mapping[str, Tensor], source: str) -> None:
    """Give the network its tensors; they are taken over as they are, without a copy.

    Buffers of the rotary position that the file lacks (diffusers') get their released values.

    Args:
        network: may lie on the meta device.
        tensors: under official, our own or diffusers' names; bookkeeping entries are ignored.
        source: what the message calls them, a file's path.

    Raises:
        CheckpointError: as :func:`check_tensors` tells it.
    """
    found = our_names(tensors)
    spatial, temporal = RotaryPosition.exponents(network.config.head_dim)
    computed = {
        "pos_embedder.dim_spatial_range": spatial,
        "pos_embedder.dim_temporal_range": temporal,
    }
    of_network = network.state_dict()
    expected = {n: t for n, t in of_network.items() if n in found or n not in computed}
    check_tensors(expected, found, source)
    network.load_state_dict(computed | found, assign=True)


def our_names(tensors: Mapping[str, V]) -> dict[str, V]:
    """Rename official or diffusers' tensors to ours and drop bookkeeping; unknown names stay."""
    if any(name.startswith(DIFFUSERS_MARK) for name in tensors):
        return {_from_diffusers(name): tensor for name, tensor in tensors.items()}
    renamed = {name.removeprefix(OFFICIAL_PREFIX): tensor for name, tensor in tensors.items()}
    return {name: t for name, t in renamed.items() if not BOOKKEEPING.fullmatch(name)}


def diffusers_names(tensors: Mapping[str, V]) -> dict[str, V]:
    """Rename our tensors for diffusers' class, which computes the rotary position's buffers."""
    return {
        _to_diffusers(name): tensor
        for name, tensor in tensors.items()
        if not name.startswith("pos_embedder.")
    }


def _to_diffusers(name: str) -> str:
    block = OURS_BLOCK.fullmatch(name)
    if block:
        return f"transformer_blocks.{block[1]}.{_replace_head(block[2], DIFFUSERS_BLOCK)}"
    return _replace_head(name, DIFFUSERS)


def _from_diffusers(name: str) -> str:
    block = THEIRS_BLOCK.fullmatch(name)
    if block:
        back = tuple((theirs, ours) for ours, theirs in DIFFUSERS_BLOCK)
        return f"blocks.{block[1]}.{_replace_head(block[2], back)}"
    return _replace_head(name, tuple((theirs, ours) for ours, theirs in DIFFUSERS))


def _replace_head(name: str, table: Iterable[tuple[str, str]]) -> str:
    for old, new in table:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name
