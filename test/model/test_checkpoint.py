"""Pins that a wrong checkpoint is refused in one message that names the file and the tensors."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cosmos_policy_ros.core.config import load_config
from cosmos_policy_ros.core.errors import CheckpointError
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.model.checkpoint import load_checkpoint
from cosmos_policy_ros.model.config import CheckpointConfig
from cosmos_policy_ros.model.files import (
    RELEASES,
    REQUIRED,
    TRANSFORMER,
    VAE,
    Release,
    describe_missing,
    digest,
)
from cosmos_policy_ros.model.policy import CosmosPolicy


@pytest.fixture
def folder(tmp_path: Path, tiny_path: Path) -> Path:
    """Copy the shipped folder."""
    return Path(shutil.copytree(tiny_path, tmp_path / "checkpoint"))


@pytest.fixture
def trained(folder: Path, tiny: CosmosPolicy) -> Path:
    """Add weights to the copy: the random ones, shifted a little."""
    for name, network in ((TRANSFORMER, tiny.checkpoint.transformer), (VAE, _vae(tiny))):
        shifted = {key: value * 1.5 for key, value in network.state_dict().items()}
        save_file(shifted, folder / name)
    return folder


def _vae(tiny: CosmosPolicy) -> torch.nn.Module:
    vae: torch.nn.Module = tiny.checkpoint.tokenizer.vae
    return vae


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_shipped_folder_is_random_and_says_so(tiny: CosmosPolicy, tiny_path: Path) -> None:
    assert tiny.checkpoint.random_weights
    assert describe_missing(tiny_path) is None
    assert sum(f.stat().st_size for f in tiny_path.iterdir()) < 100_000


def test_random_weights_are_the_same_every_time(tiny: CosmosPolicy, tiny_path: Path) -> None:
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    again = load_checkpoint(tiny_path)
    assert torch.equal(torch.random.get_rng_state(), before), "torch's own seed was touched"
    for key, value in tiny.checkpoint.transformer.state_dict().items():
        assert torch.equal(again.transformer.state_dict()[key], value)


def test_weights_are_read(trained: Path, tiny: CosmosPolicy) -> None:
    checkpoint = load_checkpoint(trained)
    assert not checkpoint.random_weights
    for network, random in (
        (checkpoint.transformer, tiny.checkpoint.transformer),
        (checkpoint.tokenizer, tiny.checkpoint.tokenizer),
    ):
        for key, value in random.state_dict().items():
            assert torch.equal(network.state_dict()[key], value * 1.5)
        assert not any(p.requires_grad or p.is_meta for p in network.parameters())


def test_precision_is_the_configs(trained: Path) -> None:
    edit(trained / "config.yaml", "precision: float32", "precision: bfloat16")
    checkpoint = load_checkpoint(trained)
    assert checkpoint.transformer.dtype == checkpoint.tokenizer.dtype == torch.bfloat16


def test_wrong_tensors_are_named(trained: Path) -> None:
    tensors = load_file(trained / TRANSFORMER)
    tensors["patch.weight"] = tensors.pop("x_embedder.proj.1.weight")
    tensors["final_layer.linear.weight"] = tensors["final_layer.linear.weight"][:8].clone()
    save_file(tensors, trained / TRANSFORMER)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(trained)
    message = str(caught.value)
    assert str(trained / TRANSFORMER) in message
    assert "; missing: x_embedder.proj.1.weight;" in message
    assert "; unknown: patch.weight;" in message
    assert "; wrong shape: final_layer.linear.weight is (8, 192), expected (256, 192)" in message


def test_truncated_file_is_named(trained: Path) -> None:
    path = trained / VAE
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="may have been cut short") as caught:
        load_checkpoint(trained)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("absent", REQUIRED)
def test_missing_file_is_named(folder: Path, absent: str) -> None:
    (folder / absent).unlink()
    assert f"lacks {absent}" in str(describe_missing(folder))
    with pytest.raises(CheckpointError, match=f"lacks {absent}"):
        load_checkpoint(folder)


@pytest.mark.parametrize(("absent", "present"), [(VAE, TRANSFORMER), (TRANSFORMER, VAE)])
def test_half_the_weights_are_refused(trained: Path, absent: str, present: str) -> None:
    (trained / absent).unlink()
    with pytest.raises(CheckpointError, match=f"has {present} but not {absent}"):
        load_checkpoint(trained)


def test_unknown_folder_lists_what_is_needed(tmp_path: Path) -> None:
    message = str(describe_missing(tmp_path / "nowhere"))
    assert "does not exist" in message
    assert all(name in message for name in REQUIRED)
    (tmp_path / "file").touch()
    assert "is a file" in str(describe_missing(tmp_path / "file"))


def test_published_checkpoint_is_recognised_and_the_command_given(tmp_path: Path) -> None:
    name = "nvidia/Cosmos-Policy-ALOHA-Predict2-2B"
    by_name = describe_missing(name)
    (tmp_path / "aloha_dataset_statistics.json").touch()
    for message, source in ((by_name, name), (describe_missing(tmp_path), tmp_path)):
        assert message is not None
        for part in (
            name,
            "Cosmos-Policy-ALOHA-Predict2-2B.pt",
            "aloha_dataset_statistics.json",
            "aloha_t5_embeddings.pkl",
            "tokenizer/tokenizer.pth from nvidia/Cosmos-Predict2-2B-Video2World",
            f"cosmos convert {source} ~/checkpoints/Cosmos-Policy-ALOHA-Predict2-2B",
        ):
            assert part in message


def test_planning_release_names_where_its_other_files_are() -> None:
    message = str(describe_missing("nvidia/Cosmos-Policy-ALOHA-Planning-Model-Predict2-2B"))
    assert "statistics and prompts from nvidia/Cosmos-Policy-ALOHA-Predict2-2B" in message


@pytest.mark.parametrize("release", RELEASES, ids=lambda release: release.repository)
def test_shipped_config_of_a_release_loads_but_is_no_checkpoint(release: Release) -> None:
    folder = config_folder("models") / release.config
    load_config(CheckpointConfig, folder / "config.yaml")
    message = str(describe_missing(folder))
    assert "lacks dataset_statistics.json, text.safetensors" in message
    assert "only describes a published checkpoint" in message
    assert f"cosmos convert nvidia/Cosmos-Policy-{release.config[:3].upper()}" in (
        message.replace("RoboCasa", "ROBOCASA")
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("layout: aloha", "layout: aloa", "did you mean 'aloha'"),
        ("image_size: 64 ", "image_size: 60 ", "multiple of 32"),
        ("image_size: 64 ", "image_size: 32 ", "256 numbers cannot hold a chunk of 50 x 14"),
        ("image_size: 64 ", "image_size: 96 ", r"\(11, 12, 12\) exceeds"),
        ("denoising_steps: 10 ", "denoising_steps: 0 ", "denoising_steps is 0"),
        ("preconditioning: x0 ", "preconditioning: edm ", "'edm' is not a choice"),
        ("dt: 0.04", "dt: .nan", "dt is nan, must be positive"),
        ("dt: 0.04", "jpeg_quality: 96\ndt: 0.04", "jpeg_quality is 96, must be 1 to 95"),
        ("dt: 0.04", "jpeg_quality: 0\ndt: 0.04", "jpeg_quality is 0, must be 1 to 95"),
        ("patch: [1, 4, 4]", "patch: [2, 4, 4]", "never spans two frames"),
        ("patch: [1, 4, 4]", "patch: [1, 4, 0]", "patch is 0"),
        ("patch: [1, 4, 4]", "patch: [4, 4]", "patch needs three entries"),
        ("head_dim: 32", "head_dim: 12", "head_dim is 12"),
        ("  patch: 2\n", "  patch: 4\n", "compress space by 16, needs 8"),
        ("halve_time: [true, true]", "halve_time: [true, false]", "1 true entries, needs two"),
        ("multipliers: [1, 2, 4]", "multipliers: [1, 2]", "one entry more than halve_time"),
        ("numerics: released", "numeric: released", "unknown key 'numeric'; did you mean"),
    ],
)
def test_wrong_config_is_named(folder: Path, old: str, new: str, message: str) -> None:
    edit(folder / "config.yaml", old, new)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(folder)
    assert "config.yaml" in str(caught.value)


def test_digest_follows_every_checkpoint_file_and_no_other(folder: Path, tiny_path: Path) -> None:
    first = digest(folder)
    assert first == digest(tiny_path) and len(first) == 64
    (folder / "README.md").write_text("notes")
    assert digest(folder) == first
    edit(folder / "config.yaml", "denoising_steps: 10", "denoising_steps: 11")
    assert digest(folder) != first


def test_cheap_check_needs_no_torch() -> None:
    code = "import sys, cosmos_policy_ros.model.files; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
