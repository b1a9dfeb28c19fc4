"""A checkpoint in the form NVIDIA publishes, small: same files, names and bookkeeping."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import shutil
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cosmos_policy_ros.core.config import parse_config
from cosmos_policy_ros.model.config import CheckpointConfig
from cosmos_policy_ros.model.tokenizer import Tokenizer
from cosmos_policy_ros.model.transformer import Transformer
from cosmos_policy_ros.model.weight_names import released_name

CONFIG = """
layout: aloha
image_size: 64
chunk_steps: 50
action_dims: 14
proprio_dims: 14
dt: 0.04
denoising_steps: 2
preconditioning: rectified_flow
numerics: released
precision: bfloat16
text_tokens: 32
transformer: {layers: 2, heads: 2, head_dim: 32, mlp_ratio: 2.0, adaln_rank: 8, text_width: 16,
  patch: [1, 2, 2], max_size: [16, 8, 8], rope_scale: [1.0, 3.0, 3.0]}
vae: {base_width: 4, multipliers: [1, 2, 2, 2], blocks: 2, halve_time: [false, true, true],
  patch: 1, latent_mean: [M], latent_std: [S]}
""".replace("M", ", ".join(["0.1"] * 16)).replace("S", ", ".join(["2.0"] * 16))
PROMPTS = {"fold shirt": 3, "put candy in bag": 5}
WEIGHTS = "Cosmos-Policy-ALOHA-Predict2-2B.pt"


def config_at(folder: Path) -> Path:
    """Write the config that describes the small checkpoint."""
    path = folder / "small.yaml"
    path.write_text(CONFIG)
    return path


@lru_cache
def networks() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the tensors of ``.pt`` and ``tokenizer.pth``, bookkeeping included; shared."""
    sizes = parse_config(CheckpointConfig, CONFIG, "small.yaml")
    with torch.random.fork_rng():
        torch.manual_seed(11)
        transformer, vae = Transformer(sizes.transformer), Tokenizer(sizes.vae).vae
    net = {f"net.{k}": v.bfloat16() for k, v in transformer.state_dict().items()}
    net["net.pos_embedder.seq"] = torch.arange(128.0).bfloat16()
    for name in ("video_sample_counter", "image_sample_counter", "iteration", "train_in_hours"):
        net[f"net.accum_{name}"] = torch.tensor(7.0)
    return net, {released_name(name, 2): tensor for name, tensor in vae.state_dict().items()}


def with_extra_state(net: dict[str, Tensor]) -> dict[str, object]:
    """Add what TransformerEngine leaves: bytes in a stream, bytes in a tensor, nothing."""
    return {
        **net,
        "net.blocks.0.self_attn.q_proj._extra_state": io.BytesIO(b"engine"),
        "net.blocks.0.self_attn.k_proj._extra_state": torch.zeros(5, dtype=torch.uint8),
        "net.t_embedding_norm._extra_state": None,
    }


def prompts() -> dict[str, Tensor]:
    """Return (1, 32, 16) bfloat16 per prompt, zero behind its tokens."""
    draw = torch.Generator().manual_seed(4)
    table = {}
    for prompt, tokens in PROMPTS.items():
        table[prompt] = torch.zeros(1, 32, 16, dtype=torch.bfloat16)
        table[prompt][0, :tokens] = torch.randn(tokens, 16, generator=draw).bfloat16()
    return table


def publish(folder: Path, statistics: Path) -> Path:
    """Write the folder as a download has it, with the autoencoder copied beside."""
    folder.mkdir()
    config_at(folder.parent)
    net, vae = networks()
    torch.save(with_extra_state(net), folder / WEIGHTS)
    torch.save(vae, folder / "tokenizer.pth")
    shutil.copy(statistics, folder / "aloha_dataset_statistics.json")
    (folder / "aloha_t5_embeddings.pkl").write_bytes(pickle.dumps(prompts()))
    (folder / "config.json").write_text(json.dumps({"model_type": "cosmos-policy"}))
    return folder


def stand_in_embeddings(prompts: Iterable[str], tokens: int, width: int) -> dict[str, Tensor]:
    """Return a fixed (tokens, width) float32 embedding per prompt, without a language model.

    For small checkpoints that know a handful of prompts: standard normal numbers seeded by the
    prompt's sha256, so that a prompt has the same embedding wherever and whenever it is made.
    """
    table = {}
    for prompt in prompts:
        seed = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:4], "little")
        numbers = np.random.RandomState(seed).standard_normal((tokens, width))
        table[prompt] = torch.from_numpy(numbers.astype(np.float32))
    return table
