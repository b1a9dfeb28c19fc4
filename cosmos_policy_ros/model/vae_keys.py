"""The video autoencoder's tensors under the names of the Wan release and of diffusers.

Ours are diffusers' names, since the class is. The release numbers the layers of a stage in one flat
list where diffusers nests them. No tensor is transposed, split or permuted between the two.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

from torch import Tensor, nn

from cosmos_policy_ros.model.strict import check_tensors

V = TypeVar("V")

RELEASED_MARK = "encoder.middle."  # only the release's files have such tensors

# Ours -> the release's, in this order: what the layers of a residual block are called, then where
# the layer is. A downsampler's and an upsampler's own parts keep their names.
RULES = (
    (r"\.norm1\.", ".residual.0."),
    (r"\.conv1\.", ".residual.2."),
    (r"\.norm2\.", ".residual.3."),
    (r"\.conv2\.", ".residual.6."),
    (r"\.conv_shortcut\.", ".shortcut."),
    (r"^quant_conv\.", "conv1."),
    (r"^post_quant_conv\.", "conv2."),
    (r"\.conv_in\.", ".conv1."),
    (r"\.norm_out\.", ".head.0."),
    (r"\.conv_out\.", ".head.2."),
    (r"\.mid_block\.resnets\.0\.", ".middle.0."),
    (r"\.mid_block\.attentions\.0\.", ".middle.1."),
    (r"\.mid_block\.resnets\.1\.", ".middle.2."),
    (r"\.down_blocks\.", ".downsamples."),
)
UPSAMPLING = re.compile(r"\.up_blocks\.(\d+)\.(resnets|upsamplers)\.(\d+)\.")


def released_name(name: str, blocks: int) -> str:
    """Return the release's name of one of our tensors.

    Args:
        name: ours.
        blocks: residual blocks per stage of the encoder; the decoder has one more.
    """
    for pattern, replacement in RULES:
        name = re.sub(pattern, replacement, name)

    def flatten(match: re.Match[str]) -> str:
        stage, layer = int(match[1]), int(match[3])
        within = layer if match[2] == "resnets" else blocks + 1
        return f".upsamples.{stage * (blocks + 2) + within}."

    return UPSAMPLING.sub(flatten, name)


def released_names(tensors: Mapping[str, V], blocks: int) -> dict[str, V]:
    """Rename our tensors as the release does."""
    return {released_name(name, blocks): tensor for name, tensor in tensors.items()}


def our_names(tensors: Mapping[str, V], ours: Iterable[str], blocks: int) -> dict[str, V]:
    """Rename the release's tensors to ours; unknown names stay, and so do names already ours.

    Args:
        tensors: under either kind of name.
        ours: every name of the network.
        blocks: as for :func:`released_name`.
    """
    if not any(name.startswith(RELEASED_MARK) for name in tensors):
        return dict(tensors)
    back = {released_name(name, blocks): name for name in ours}
    return {back.get(name, name): tensor for name, tensor in tensors.items()}


def load_weights(vae: nn.Module, tensors: Mapping[str, Tensor], blocks: int, source: str) -> None:
    """Give the autoencoder its tensors; they are taken over as they are, without a copy.

    Args:
        vae: diffusers' autoencoder; may lie on the meta device.
        tensors: under the release's names or ours.
        blocks: as for :func:`released_name`.
        source: what the message calls them, a file's path.

    Raises:
        CheckpointError: as :func:`check_tensors` tells it.
    """
    expected = vae.state_dict()
    found = our_names(tensors, expected, blocks)
    check_tensors(expected, found, source)
    vae.load_state_dict(found, assign=True)
