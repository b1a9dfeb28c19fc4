"""Checkpoint folders without weights and a query for them, shared by the model's benchmarks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from cosmos_policy_ros.core.config import load_yaml
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.model import files
from cosmos_policy_ros.model.text import save_text
from cosmos_policy_ros.rig.decision import Query
from cosmos_policy_ros.rig.observation import Observation

RELEASED = "aloha_2b"
PROMPT = "fold shirt"
PROMPT_TOKENS = 6  # what the language model makes of so short a prompt, padded to 512 with zeros
SEED = 195  # the released server's


def write_checkpoint(folder: Path, changes: Mapping[str, Any]) -> Path:
    """Write a folder without weights that differs from the released one in its config only.

    Actions and proprioception range over [-1, 1], so that chunks are in the network's own units.

    Args:
        folder: exists, empty.
        changes: entries of ``config.yaml``; a mapping replaces single entries of its section.
    """
    config = load_yaml(config_folder("models") / RELEASED / files.CONFIG)
    for key, value in changes.items():
        config[key] = {**config[key], **value} if isinstance(value, Mapping) else value
    (folder / files.CONFIG).write_text(yaml.safe_dump(config))
    values = {"min": -1.0, "max": 1.0, "mean": 0.0, "std": 0.5, "median": 0.0}
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


def make_query(index: int = 0) -> Query:
    """Return a query with noise for images; another ``index`` gives other images."""
    rng = np.random.default_rng(index)
    roles = ("left_wrist", "right_wrist", "primary")
    images = {role: rng.integers(0, 256, (480, 640, 3), dtype=np.uint8) for role in roles}
    observation = Observation(0, images, rng.uniform(-1, 1, 14), {})
    return Query("fold_shirt", PROMPT, SEED, index, observation)


def describe_machine() -> str:
    """Return what the figures depend on besides the code."""
    cpu = Path("/proc/cpuinfo").read_text().split("model name", 1)[1].split(":")[1].splitlines()[0]
    flags = torch.backends.cpu.get_cpu_capability()
    load = Path("/proc/loadavg").read_text().split()[0]
    return (
        f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {cpu.strip()}, {flags}, "
        f"load {load}"
    )
