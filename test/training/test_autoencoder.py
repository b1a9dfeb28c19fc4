"""The small autoencoder: trained on images, used on sequences."""

from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
import yaml
from helpers.episodes import CAMERA_PERIOD, JOINT_PERIOD, MS, START_NS, Writing
from rosbags.typesys.store import Typestore
from safetensors.torch import load_file
from torch import Tensor

from cosmos_policy_ros.cli import cosmos
from cosmos_policy_ros.core.config import from_mapping
from cosmos_policy_ros.core.errors import ConfigError
from cosmos_policy_ros.episodes.store import EpisodeStore
from cosmos_policy_ros.model import files
from cosmos_policy_ros.model.checkpoint import load_checkpoint
from cosmos_policy_ros.model.images import to_model
from cosmos_policy_ros.model.tokenizer import Tokenizer
from cosmos_policy_ros.rig.chunk import TimedChunk
from cosmos_policy_ros.training.autoencoder import LOG, AutoencoderConfig
from cosmos_policy_ros.training.config import StartConfig
from cosmos_policy_ros.training.start import load_start
from cosmos_policy_ros.training.targets import (
    as_images,
    decode_images,
    encode_images,
    inflate,
)

from .conftest import TINY, same_day, wave

# A random autoencoder shows one grey for a while before it tells the cameras apart.
STEPS, BATCH, RATE = 80, 6, 1e-3


@pytest.fixture
def tokenizer() -> Tokenizer:
    return load_checkpoint(TINY).tokenizer.requires_grad_(False)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (3, 8, 8, 3), np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


def batch(images: np.ndarray) -> Tensor:
    return to_model(torch.from_numpy(images), torch.float32)[0].transpose(0, 1)


def test_two_dimensions_are_the_first_image_of_a_sequence(
    tokenizer: Tokenizer, images: np.ndarray
) -> None:
    with as_images(tokenizer.vae):
        latents = encode_images(tokenizer.vae, batch(images), 2)
        decoded = decode_images(tokenizer.vae, latents, 2)
    for image, latent, again in zip(images, latents, decoded, strict=True):
        first = tokenizer.encode(to_model(torch.from_numpy(image[None]), torch.float32))
        torch.testing.assert_close(first[0, :, 0], latent, rtol=0, atol=1e-5)
        back = tokenizer.decode(latent[None, :, None])
        torch.testing.assert_close(back[0, :, 0], again.clamp(-1, 1), rtol=0, atol=1e-5)


def test_inflated_every_frame_is_a_image_whatever_comes_before(
    tokenizer: Tokenizer, images: np.ndarray
) -> None:
    def sequence(order: list[int]) -> Tensor:
        video = np.concatenate([images[:1] * 0, images[order].repeat(4, axis=0)])
        return tokenizer.encode(to_model(torch.from_numpy(video), torch.float32))

    with as_images(tokenizer.vae):
        latents = encode_images(tokenizer.vae, batch(images), 2)
        decoded = decode_images(tokenizer.vae, latents, 2).clamp(-1, 1)
    before = sequence([0, 1, 2])
    inflate(tokenizer.vae)
    found = sequence([0, 1, 2])
    assert (found - before).abs().max() > 1e-3, "it was not so by itself"
    torch.testing.assert_close(found[0, :, 1:].transpose(0, 1), latents, rtol=0, atol=1e-5)
    other = sequence([2, 0, 1])
    torch.testing.assert_close(other[:, :, [2, 3, 1]], found[:, :, 1:], rtol=0, atol=1e-5)
    video = tokenizer.decode(found)[0].transpose(0, 1)[1:].unflatten(0, (3, 4))
    for four in video.unbind(1):
        torch.testing.assert_close(four, decoded, rtol=0, atol=1e-5)


def record_square(store: EpisodeStore, types: Typestore, phase: float) -> None:
    """Record arms that wave before cameras that see a white square wander over grey."""
    writing, actions = Writing(store, types), wave(60, phase)
    chunk = TimedChunk("run/0", START_NS + 200 * MS, 0.04, actions[0], actions, np.full(14, 9.0))
    writing.trajectory(chunk)
    for at in range(0, 2800, JOINT_PERIOD):
        for side in ("left", "right"):
            writing.state(side, at)
        for index, camera in enumerate(writing.rig.cameras if at % CAMERA_PERIOD == 0 else ()):
            pixels = np.full((64, 64, 3), 60 + 60 * index, np.uint8)
            left = int(24 + 20 * np.sin(at / 400 + phase))
            pixels[left : left + 16, 44 - left : 60 - left] = 255
            writing.image(camera.role, at, pixels)
    writing.recording.finish("stopped")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, types: Typestore) -> Path:
    folder = tmp_path_factory.mktemp("autoencoder")
    store = EpisodeStore(folder / "episodes", types)
    with same_day():
        for phase in (0.0, 1.0, 2.0):
            record_square(store, types, phase)
    config = {
        "checkpoint": str(TINY),
        "data": {"demonstrations": [str(folder / "episodes")], "held_out": 0.34, "use_no_go": True},
        "steps": STEPS,
        "batch": BATCH,
        "learning_rate": RATE,
        "moments": 50,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    arguments = [str(folder / "config.yaml"), "--output", str(folder / "out")]
    with patch("cosmos_policy_ros.training.autoencoder.VALIDATED", 4):
        assert cosmos.main(["train-autoencoder", *arguments]) == 0
    assert cosmos.main(["train-autoencoder", *arguments]) == 1, "it is not written over"
    return folder / "out"


def test_it_learns(trained: Path) -> None:
    lines = [json.loads(line) for line in (trained / LOG).read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    first, last = (np.mean([x["loss"] for x in part]) for part in (lines[:20], lines[-20:]))
    assert last < 0.7 * first, (first, last)


def test_what_comes_out_is_what_a_training_begins_with(trained: Path) -> None:
    weights = load_file(trained / files.VAE)
    start = load_start(StartConfig(str(trained), scratch=True), torch.device("cpu"), seed=0)
    assert start.random_weights
    for name, tensor in start.tokenizer.vae.state_dict().items():
        torch.testing.assert_close(tensor, weights[name], rtol=0, atol=0)
    assert start.config.vae.latent_std != load_checkpoint(TINY).config.vae.latent_std
    assert start.digest != load_checkpoint(TINY).digest
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 64, 3), np.uint8)
    latents = torch.cat(
        [start.tokenizer.encode(to_model(torch.from_numpy(x[None]), torch.float32)) for x in noise]
    )
    assert latents.std() < 10, "the scale is the images', not off by orders of magnitude"


@pytest.mark.parametrize(
    ("key", "value"), [("steps", 0), ("learning_rate", 0.0), ("contrast", -1.0)]
)
def test_wrong_numbers_are_refused(key: str, value: float) -> None:
    content = {"checkpoint": "x", "data": {"demonstrations": ["x"]}, "steps": 1, key: value}
    with pytest.raises(ConfigError, match=key):
        from_mapping(AutoencoderConfig, content, "my.yaml")
