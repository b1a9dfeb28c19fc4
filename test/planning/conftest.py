"""A second checkpoint, for the world model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from helpers.search import TINY
from safetensors.torch import save_file

from cosmos_policy_ros.model import files
from cosmos_policy_ros.model.checkpoint import load_checkpoint


@pytest.fixture(scope="session")
def planning_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder like the smallest checkpoint's, with other weights of the transformer."""
    folder = tmp_path_factory.mktemp("world_model")
    for name in files.REQUIRED:
        shutil.copy(TINY / name, folder)
    checkpoint = load_checkpoint(TINY)
    with torch.no_grad():
        checkpoint.transformer.final_layer.linear.weight.mul_(-0.5)
    save_file(checkpoint.transformer.state_dict(), folder / files.TRANSFORMER)
    save_file(checkpoint.tokenizer.vae.state_dict(), folder / files.VAE)
    return folder
