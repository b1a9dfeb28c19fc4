"""Pins that a prompt is looked up exactly, and that a near miss says what was meant."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cosmos_policy_ros.errors import CheckpointError
from cosmos_policy_ros.model.text import load_text, stand_in_embeddings

SHIPPED = (
    "fold shirt",
    "put candies in bowl",
    "put candy in bag",
    "put purple eggplant on plate",
    "put brown chicken wing on plate",
    "transfer the red cube",
    "insert the peg into the socket",
)


def test_shipped_file_is_what_the_code_makes(tiny_path: Path) -> None:
    table = load_text(tiny_path / "text.safetensors", 2, 64)
    made = stand_in_embeddings(SHIPPED, 2, 64)
    assert set(table.embeddings) == set(made)
    for prompt, embedding in made.items():
        assert torch.equal(table.embedding(prompt), embedding)


def test_stand_ins_differ_between_prompts() -> None:
    one, other = stand_in_embeddings(["a", "b"], 2, 64).values()
    assert not torch.equal(one, other)


def test_near_miss_is_answered_with_the_prompt_that_exists(tiny_path: Path) -> None:
    table = load_text(tiny_path / "text.safetensors", 2, 64)
    with pytest.raises(CheckpointError, match="'put candy in bags'; did you mean 'put candy in b"):
        table.embedding("put candy in bags")
    with pytest.raises(CheckpointError, match="known: fold shirt, insert the peg"):
        table.embedding("make coffee")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "holds no prompt"),
        ({"fold shirt": torch.zeros(512, 64)}, r"'fold shirt' has shape \(512, 64\).*\(2, 64\)"),
        ({"fold shirt": torch.full((2, 64), torch.inf)}, "'fold shirt' is not finite"),
    ],
)
def test_wrong_content_is_named(
    tmp_path: Path, tensors: dict[str, torch.Tensor], message: str
) -> None:
    save_file(tensors, tmp_path / "text.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_text(tmp_path / "text.safetensors", 2, 64)


def test_not_safetensors(tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(CheckpointError, match=r"text\.safetensors: cannot be read as safetensors"):
        load_text(tmp_path / "text.safetensors", 2, 64)
