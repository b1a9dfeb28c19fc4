"""A checkpoint with random weights and a query for it: for measuring where nothing was downloaded.

Speed, memory and rounding do not depend on what was learned.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn

from cosmos_policy_ros.core.config import load_yaml
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.model import files
from cosmos_policy_ros.model.config import read_config
from cosmos_policy_ros.model.text import save_text
from cosmos_policy_ros.model.tokenizer import Tokenizer
from cosmos_policy_ros.model.transformer import Transformer
from cosmos_policy_ros.rig.decision import Query
from cosmos_policy_ros.rig.observation import Observation

RELEASED = "aloha_2b"
PROMPT = "fold shirt"
PROMPT_TOKENS = 6  # what the language model makes of so short a prompt, padded to 512 with zeros
SEED = 195  # the released server's
CAMERAS = ("left_wrist", "right_wrist", "primary")


def write_config(folder: Path, changes: Mapping[str, Any], reach: float = 1.0) -> Path:
    """Write a folder without weights that differs from the released one in its config only.

    Args:
        folder: exists, empty.
        changes: entries of ``config.yaml``; a mapping replaces single entries of its section.
        reach: actions and proprioception range over -reach to reach; by default chunks are in the
            network's own units.
    """
    config = load_yaml(config_folder("models") / RELEASED / files.CONFIG)
    for key, value in changes.items():
        config[key] = {**config[key], **value} if isinstance(value, Mapping) else value
    (folder / files.CONFIG).write_text(yaml.safe_dump(config))
    values = {"min": -reach, "max": reach, "mean": 0.0, "std": reach / 2, "median": 0.0}
    dims = {"actions": config["action_dims"], "proprio": config["proprio_dims"]}
    statistics = {
        f"{kind}_{name}": [value] * count
        for kind, count in dims.items()
        for name, value in values.items()
    }
    (folder / files.STATISTICS).write_text(json.dumps(statistics))
    width = config["transformer"]["text_width"]
    draw = torch.Generator().manual_seed(SEED)
    save_text(folder / files.TEXT, {PROMPT: torch.randn(PROMPT_TOKENS, width, generator=draw)})
    return folder


def write_weights(folder: Path, device: torch.device) -> int:
    """Make both networks' weights on a device and write them beside the config.

    Returns:
        The bytes written.
    """
    config = read_config(folder / files.CONFIG)
    dtype = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
    with torch.device("meta"):
        transformer, tokenizer = Transformer(config.transformer), Tokenizer(config.vae)
    draw, written = torch.Generator(device).manual_seed(SEED), 0
    networks: dict[str, nn.Module] = {files.TRANSFORMER: transformer, files.VAE: tokenizer.vae}
    for name, network in networks.items():
        tensors = {
            key: _random(key, parameter.shape, draw).to(dtype).cpu()
            for key, parameter in network.named_parameters()
        }
        if isinstance(network, Transformer):
            exponents = network.pos_embedder.exponents(config.transformer.head_dim)
            names = ("dim_spatial_range", "dim_temporal_range")
            tensors |= {
                f"pos_embedder.{key}": each.to(dtype)
                for key, each in zip(names, exponents, strict=True)
            }
        save_file(tensors, folder / name)
        written += (folder / name).stat().st_size
    return written


def _random(name: str, shape: torch.Size, draw: torch.Generator) -> Tensor:
    """Return weights that keep the size of their input, ones for a norm, zeros for a bias."""
    if name.endswith("bias"):
        return torch.zeros(shape)
    if math.prod(shape) == max(shape):
        return torch.ones(shape)
    deviation = 1 / math.sqrt(math.prod(shape[1:]))
    return torch.randn(shape, device=draw.device, generator=draw) * deviation


def random_query(index: int = 0) -> Query:
    """Return a query with noise for images; another ``index`` gives other images."""
    rng = np.random.default_rng(index)
    images = {role: rng.integers(0, 256, (480, 640, 3), dtype=np.uint8) for role in CAMERAS}
    observation = Observation(index, images, rng.uniform(-1, 1, 14), {})
    return Query("fold_shirt", PROMPT, SEED, index, observation)
