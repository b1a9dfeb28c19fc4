"""Pins that a prompt is looked up exactly, padded with exact zeros, and that a near miss helps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.published_checkpoint import stand_in_embeddings
from safetensors.torch import save_file

from cosmos_policy_ros.core.errors import CheckpointError
from cosmos_policy_ros.model.text import load_text, save_text

SHIPPED = (
    "fold shirt",
    "put candies in bowl",
    "put candy in bag",
    "put purple eggplant on plate",
    "put brown chicken wing on plate",
    "transfer the red cube",
    "insert the peg into the socket",
    "hand over a cube",
    "hand over the red cube",
    "hand over the blue cube",
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
    with pytest.raises(CheckpointError, match="known: fold shirt, hand over a cube, hand over"):
        table.embedding("make coffee")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "holds no prompt"),
        ({"fold shirt": torch.zeros(512, 64)}, r"'fold shirt' has shape \(512, 64\).*\(2, 64\)"),
        ({"fold shirt": torch.zeros(2, 65)}, r"'fold shirt' has shape \(2, 65\)"),
        ({"fold shirt": torch.full((2, 64), torch.inf)}, "'fold shirt' is not finite"),
        ({"fold shirt": torch.zeros(1, 64)}, "'fold shirt' is nothing but zeros"),
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padding_is_left_out_of_the_file_and_comes_back(tmp_path: Path, dtype: torch.dtype) -> None:
    full = torch.zeros(512, 64, dtype=dtype)
    full[:5] = torch.randn(5, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    full[2] = 0  # a zero inside is no padding
    path = tmp_path / "text.safetensors"
    save_text(path, {"fold shirt": full})
    assert path.stat().st_size < 5 * 64 * full.element_size() + 200
    table = load_text(path, 512, 64)
    assert table.embeddings["fold shirt"].shape == (5, 64)
    found = table.embedding("fold shirt")
    assert found.dtype == dtype and torch.equal(found, full)


def test_failed_write_leaves_the_old_table(tmp_path: Path) -> None:
    path = tmp_path / "text.safetensors"
    save_text(path, {"a": torch.ones(1, 4)})
    before = path.read_bytes()
    (tmp_path / ".text.safetensors.partial").mkdir()
    with pytest.raises(CheckpointError, match=r"text\.safetensors: cannot be written"):
        save_text(path, {"b": torch.ones(1, 4)})
    assert path.read_bytes() == before
