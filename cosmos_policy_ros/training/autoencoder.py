"""Trains the small video autoencoder on the images of episodes, in minutes on a CPU."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import yaml
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from cosmos_policy_ros.core.config import load_yaml
from cosmos_policy_ros.core.errors import ObservationError, RolloutError, TrainingError
from cosmos_policy_ros.core.files import replace_text
from cosmos_policy_ros.model import files
from cosmos_policy_ros.model.checkpoint import Checkpoint, load_checkpoint
from cosmos_policy_ros.model.images import to_model
from cosmos_policy_ros.model.sequence import prepare_images
from cosmos_policy_ros.model.tokenizer import Tokenizer
from cosmos_policy_ros.training.config import DataConfig
from cosmos_policy_ros.training.dataset_index import EpisodeEntry, index_episodes
from cosmos_policy_ros.training.saving import copy_file, write_tensors
from cosmos_policy_ros.training.start import start_folder
from cosmos_policy_ros.training.targets import as_images, decode_images, encode_images, inflate

LOG = "autoencoder.jsonl"
VALIDATED = 64  # moments of held-out episodes, where as many were learned from
MEASURED = 512  # moments by which the latents' scale is taken
# Of the squared latent: enough that its scale, which nothing else fixes, stays where it began.
LATENT_PENALTY = 1e-4

Moments = NDArray[np.uint8]  # (N, C, S, S, 3) every camera's image


@dataclass(frozen=True)
class AutoencoderConfig:
    """A file of ``config/autoencoder``; the defaults are the shipped tiny model's.

    Attributes:
        checkpoint: a checkpoint folder, or a name in ``config/models``, whose sizes it takes.
        data: the episodes.
        steps: of the optimiser.
        batch: images per step.
        moments: of the episodes, whose images are learned from; all are kept in memory.
        learning_rate: at first; it falls to zero along a cosine.
        contrast: weight of a pixel per squared distance from its camera's mean image: what moves
            is small, and matters.
        latent_noise: in standard deviations of the latent; the decoder must bear with as much.
        seed: of everything random.
        threads: CPU threads.
    """

    checkpoint: str
    data: DataConfig
    steps: int
    batch: int = 24
    moments: int = 8000
    learning_rate: float = 2e-3
    contrast: float = 12.0
    latent_noise: float = 0.05
    seed: int = 0
    threads: int = 1

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "moments", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} must be at least 1")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate: {self.learning_rate} must be above 0")
        if min(self.contrast, self.latent_noise) < 0:
            raise ValueError("contrast and latent_noise must not be negative")


class ImageErrors(NamedTuple):
    """Mean absolute errors of held-out images in [-1, 1], as a query encodes them.

    Attributes:
        l1: of the autoencoder.
        mean_image: of each camera's mean image, as a baseline.
        moving: of the autoencoder, over the tenth of the pixels farthest from the mean image.
        mean_image_moving: of the mean image there.
    """

    l1: float
    mean_image: float
    moving: float
    mean_image_moving: float


def train_autoencoder(config: AutoencoderConfig, output: Path) -> ImageErrors:
    """Train, and write a checkpoint folder with the autoencoder and without a transformer.

    ``cosmos train`` begins with such a folder when ``start.scratch`` is true.

    Args:
        config: decides everything.
        output: exists.

    Raises:
        CosmosPolicyError: something is wrong with data or checkpoint, or the disk refused.
    """
    torch.set_num_threads(config.threads)
    checkpoint = load_checkpoint(start_folder(config.checkpoint), unfinished=True)
    dataset_index = index_episodes(config.data, checkpoint.config, checkpoint.text)
    moments = collect(dataset_index.entries, config.moments, checkpoint)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        vae = Tokenizer(checkpoint.config.vae).vae
    with as_images(vae):
        _learn(vae, moments, checkpoint.config.vae.patch, config, output / LOG)
        # The latents' mean and standard deviation per channel, over all cameras.
        spread = np.linspace(0, len(moments) - 1, min(MEASURED, len(moments))).astype(int)
        with torch.no_grad():
            latents = torch.cat(
                [
                    encode_images(vae.eval(), _to_tensor(moments[i]), checkpoint.config.vae.patch)
                    for i in spread
                ]
            )
    inflate(vae)
    mean, std = latents.mean(dim=(0, 2, 3)).tolist(), latents.std(dim=(0, 2, 3)).tolist()
    for name in (files.TEXT, files.STATISTICS):
        copy_file(checkpoint.path / name, output / name)
    content = load_yaml(checkpoint.path / files.CONFIG)
    content["vae"] |= {
        "latent_mean": [round(x, 4) for x in mean],
        "latent_std": [max(round(x, 4), 1e-4) for x in std],
    }
    text = yaml.safe_dump(content, sort_keys=False, default_flow_style=None)
    replace_text((output / files.CONFIG), text)
    write_tensors(vae.state_dict(), torch.float32, output / files.VAE)
    return measure_errors(output, dataset_index.held_out, moments)


def collect(entries: Sequence[EpisodeEntry], count: int, checkpoint: Checkpoint) -> Moments:
    """Return the images of moments spread evenly over the episodes; unreadable ones are left out.

    Raises:
        TrainingError: none can be read.
    """
    every = [
        (entry, int(at)) for entry in entries for at in np.flatnonzero(entry.windows.has_images)
    ]
    chosen = np.linspace(0, len(every) - 1, min(count, len(every))).astype(int)
    found = []
    for entry, step in (every[i] for i in tqdm(chosen, "images", disable=None)):
        try:
            observation = entry.observe(step)
        except (ObservationError, RolloutError):
            continue
        images = prepare_images(observation, checkpoint)
        found.append(torch.stack([images[role] for role in checkpoint.layout.cameras]).numpy())
    if not found:
        raise TrainingError(f"no image of {len(entries)} episodes can be read")
    return np.stack(found)


def _learn(
    vae: AutoencoderKLWan, moments: Moments, patch: int, config: AutoencoderConfig, log: Path
) -> None:
    """Train on single images; write a line per step."""
    optimiser = torch.optim.AdamW(
        vae.train().parameters(), lr=config.learning_rate, weight_decay=0.0
    )
    mean_images, cameras = _mean_images(moments), moments.shape[1]
    source = torch.Generator().manual_seed(config.seed)
    bar = tqdm(range(config.steps), "autoencoder", disable=None)
    with log.open("w", encoding="utf-8") as lines:
        for step in bar:
            rate = config.learning_rate * (1 + math.cos(math.pi * step / config.steps)) / 2
            for group in optimiser.param_groups:
                group["lr"] = rate
            drawn = torch.randint(len(moments) * cameras, (config.batch,), generator=source)
            index, camera = drawn // cameras, drawn % cameras
            images = _to_tensor(moments[index.numpy(), camera.numpy()])
            latents = encode_images(vae, images, patch)
            spread = latents.detach().std(dim=(0, 2, 3), keepdim=True)
            noise = torch.randn(latents.shape, generator=source) * spread * config.latent_noise
            error = decode_images(vae, latents + noise, patch) - images
            weight = 1 + config.contrast * (images - mean_images[camera]).square()
            loss = (weight * (error.abs() + error.square())).mean()
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss + LATENT_PENALTY * latents.square().mean())
            optimiser.step()
            loss_value, l1 = float(loss.detach()), float(error.detach().abs().mean())
            if not math.isfinite(loss_value):
                raise TrainingError(
                    f"step {step + 1}: the loss is {loss_value}; lower learning_rate"
                )
            bar.set_postfix(l1=f"{l1:.4f}", refresh=False)
            lines.write(json.dumps({"step": step + 1, "loss": loss_value, "l1": l1}) + "\n")


def measure_errors(folder: Path, held_out: Sequence[EpisodeEntry], moments: Moments) -> ImageErrors:
    """Compare decoded images of held-out episodes with what the cameras saw.

    Args:
        folder: a checkpoint's.
        held_out: the episodes.
        moments: the images that it was trained on.
    """
    if not held_out:
        return ImageErrors(math.nan, math.nan, math.nan, math.nan)
    checkpoint, mean_images = load_checkpoint(folder, unfinished=True), _mean_images(moments)
    errors, distances = [], []
    for images in collect(held_out, min(VALIDATED, len(moments)), checkpoint):
        # As a query has them: a black image first, then each camera's four times.
        video = np.concatenate([np.zeros_like(images[:1]), images.repeat(4, axis=0)])
        latent = checkpoint.tokenizer.encode(to_model(torch.from_numpy(video), torch.float32))
        decoded = checkpoint.tokenizer.decode_first_images(latent, range(1, 1 + len(images)))
        seen = _to_tensor(images)
        errors.append((decoded[0].transpose(0, 1) - seen).abs())
        distances.append((mean_images - seen).abs())
    error, distance = torch.stack(errors), torch.stack(distances)
    moving = distance >= distance.flatten().kthvalue(int(0.9 * distance.numel())).values
    pairs = (error, distance, error[moving], distance[moving])
    return ImageErrors(*(float(each.mean()) for each in pairs))


def _mean_images(moments: Moments) -> Tensor:
    """Return each camera's mean image (C, 3, S, S) in [-1, 1]."""
    return _to_tensor(moments.mean(axis=0).round().astype(np.uint8))


def _to_tensor(images: NDArray[np.uint8]) -> Tensor:
    """Map (N, S, S, 3) to (N, 3, S, S) in [-1, 1]."""
    return to_model(torch.from_numpy(images), torch.float32)[0].transpose(0, 1)
