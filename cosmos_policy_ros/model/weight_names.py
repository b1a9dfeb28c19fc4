"""The networks' tensors under the names that each kind of file uses, loaded strictly.

The transformer's names are those of NVIDIA's checkpoints without ``net.``; diffusers renamed every
one. The autoencoder's are diffusers', as its class is; the Wan release numbers the layers of a
stage in one flat list where diffusers nests them. No tensor is transposed, split or permuted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from cosmos_policy_ros.core.errors import CheckpointError
from cosmos_policy_ros.model.tokenizer import Tokenizer
from cosmos_policy_ros.model.transformer import RotaryPosition, Transformer

RELEASED_PREFIX = "net."
# Counters of the trainer, scratch of TransformerEngine, and the integers 0 ... 127 as a tensor.
BOOKKEEPING = re.compile(r"accum_\w+|(.*\.)?_extra_state|pos_embedder\.seq")
NAMES_SHOWN = 3  # of a file that has nothing in common with the network

# Parts of our names and what diffusers, or the Wan release, has in their place; in this order.
DIFFUSERS_TRANSFORMER = {
    "x_embedder.proj.1.": "patch_embed.proj.",
    "t_embedder.1.": "time_embed.t_embedder.",
    "t_embedding_norm.": "time_embed.norm.",
    "final_layer.linear.": "proj_out.",
    "final_layer.adaln_modulation.": "norm_out.linear_",
    "blocks.": "transformer_blocks.",
    "adaln_modulation_self_attn.": "norm1.linear_",
    "adaln_modulation_cross_attn.": "norm2.linear_",
    "adaln_modulation_mlp.": "norm3.linear_",
    "mlp.layer1.": "ff.net.0.proj.",
    "mlp.layer2.": "ff.net.2.",
    ".self_attn.": ".attn1.",
    ".cross_attn.": ".attn2.",
    ".q_proj.": ".to_q.",
    ".k_proj.": ".to_k.",
    ".v_proj.": ".to_v.",
    ".output_proj.": ".to_out.0.",
    ".q_norm.": ".norm_q.",
    ".k_norm.": ".norm_k.",
}
RELEASED_AUTOENCODER = {
    ".norm1.": ".residual.0.",
    ".conv1.": ".residual.2.",
    ".norm2.": ".residual.3.",
    ".conv2.": ".residual.6.",
    ".conv_shortcut.": ".shortcut.",
    "post_quant_conv.": "conv2.",
    "quant_conv.": "conv1.",
    ".conv_in.": ".conv1.",
    ".norm_out.": ".head.0.",
    ".conv_out.": ".head.2.",
    ".mid_block.resnets.0.": ".middle.0.",
    ".mid_block.attentions.0.": ".middle.1.",
    ".mid_block.resnets.1.": ".middle.2.",
    ".down_blocks.": ".downsamples.",
}
UPSAMPLING = re.compile(r"\.up_blocks\.(\d+)\.(resnets|upsamplers)\.(\d+)\.")


def load_transformer(network: Transformer, tensors: Mapping[str, Tensor], source: str) -> None:
    """Give the network a file's tensors, without a copy.

    Buffers of the rotary position that the file lacks (diffusers') get their released values.

    Args:
        network: may lie on the meta device.
        tensors: under NVIDIA's, our own or diffusers' names; bookkeeping entries are ignored.
        source: the file, for messages.
    """
    expected = network.state_dict()
    if any(name.startswith("patch_embed.") for name in tensors):
        ours = {diffusers_name(name): name for name in expected}
        found = {ours.get(name, name): tensor for name, tensor in tensors.items()}
    else:
        renamed = {name.removeprefix(RELEASED_PREFIX): t for name, t in tensors.items()}
        found = {name: t for name, t in renamed.items() if not BOOKKEEPING.fullmatch(name)}
    spatial, temporal = RotaryPosition.exponents(network.config.head_dim)
    computed = {
        "pos_embedder.dim_spatial_range": spatial,
        "pos_embedder.dim_temporal_range": temporal,
    }
    needed = {name: t for name, t in expected.items() if name in found or name not in computed}
    check_tensors(needed, found, source)
    network.load_state_dict(computed | found, assign=True)


def load_autoencoder(tokenizer: Tokenizer, tensors: Mapping[str, Tensor], source: str) -> None:
    """Give the autoencoder a file's tensors, under the release's names or ours, without a copy."""
    expected = tokenizer.vae.state_dict()
    ours = {name: name for name in expected}
    if any(name.startswith("encoder.middle.") for name in tensors):
        blocks = tokenizer.vae.config.num_res_blocks
        ours = {released_name(name, blocks): name for name in expected}
    found = {ours.get(name, name): tensor for name, tensor in tensors.items()}
    check_tensors(expected, found, source)
    tokenizer.vae.load_state_dict(found, assign=True)


def diffusers_name(name: str) -> str:
    """Return diffusers' name of one of the transformer's tensors."""
    for ours, theirs in DIFFUSERS_TRANSFORMER.items():
        name = name.replace(ours, theirs)
    return name


def released_name(name: str, blocks: int) -> str:
    """Return the Wan release's name of one of the autoencoder's tensors.

    The encoder has ``blocks`` residual blocks per stage, the decoder one more and an upsampler.
    """
    for ours, theirs in RELEASED_AUTOENCODER.items():
        name = name.replace(ours, theirs)

    def flatten(match: re.Match[str]) -> str:
        stage, layer = int(match[1]), int(match[3])
        within = layer if match[2] == "resnets" else blocks + 1
        return f".upsamples.{stage * (blocks + 2) + within}."

    return UPSAMPLING.sub(flatten, name)


def check_tensors(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], source: str) -> None:
    """Compare a file's names and shapes with a network's.

    Raises:
        CheckpointError: names every tensor that is missing, unknown or of a wrong shape; of a file
            that is something else altogether, a few of those it has.
    """
    shared = sorted(expected.keys() & found.keys())
    if not shared:
        names = sorted(found)
        rest = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
        raise CheckpointError(
            f"{source} is something else: it has none of the {len(expected)} tensors that the "
            f"checkpoint's config asks for; it has {', '.join(names[:NAMES_SHOWN]) or 'none'}{rest}"
        )
    kinds = {
        "missing": summarise(expected.keys() - found.keys()),
        "unknown": summarise(found.keys() - expected.keys()),
        "wrong shape": [
            f"{name} is {tuple(found[name].shape)}, expected {tuple(expected[name].shape)}"
            for name in shared
            if found[name].shape != expected[name].shape
        ],
    }
    problems = [f"{kind}: {', '.join(names)}" for kind, names in kinds.items() if names]
    if problems:
        raise CheckpointError(
            f"{source} does not fit the sizes in the checkpoint's config; {'; '.join(problems)}"
        )


def summarise(names: Iterable[str]) -> list[str]:
    """Fold names that differ in the block's number: ``blocks.{0-2,5}.mlp.layer1.weight``."""
    blocks: dict[tuple[str, str], list[int]] = {}
    folded = []
    for name in names:
        match = re.fullmatch(r"(.*?blocks\.)(\d+)(\..*)", name)
        if match:
            blocks.setdefault((match[1], match[3]), []).append(int(match[2]))
        else:
            folded.append(name)
    for (head, tail), numbers in blocks.items():
        runs: list[list[int]] = []
        for number in sorted(numbers):
            if runs and number == runs[-1][-1] + 1:
                runs[-1].append(number)
            else:
                runs.append([number])
        listed = ",".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else f"{r[0]}" for r in runs)
        folded.append(f"{head}{'{' + listed + '}' if len(numbers) > 1 else listed}{tail}")
    return sorted(folded)
