"""Trains the small video autoencoder on the images of episodes, in minutes on a CPU."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from cosmos_policy_ros.core.config import load_yaml
from cosmos_policy_ros.core.errors import ObservationError, RolloutError, TrainingError
from cosmos_policy_ros.model import files
from cosmos_policy_ros.model.checkpoint import Checkpoint, load_checkpoint
from cosmos_policy_ros.model.images import to_model
from cosmos_policy_ros.model.sequence import prepare_images
from cosmos_policy_ros.model.tokenizer import Tokenizer
from cosmos_policy_ros.training.config import DataConfig
from cosmos_policy_ros.training.dataset_index import EpisodeEntry
from cosmos_policy_ros.training.export import write_tensors
from cosmos_policy_ros.training.start import copy_file, dataset_index_for, start_folder
from cosmos_policy_ros.training.targets import (
    as_images,
    decode_images,
    encode_images,
    inflate,
)

LOG = "autoencoder.jsonl"
JUDGED = 64  # moments of held-out episodes, where as many were learned from
MEASURED = 512  # images by which the latents' scale is taken
# Of the squared latent: enough that its scale, which nothing else fixes, stays where it began.
LATENT_PENALTY = 1e-4

Moments = NDArray[np.uint8]  # (N, C, S, S, 3) every camera's image


@dataclass(frozen=True)
class AutoencoderConfig:
    """A file of ``config/autoencoder``; the defaults are those of the metadata' tiny model.

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


class Judged(NamedTuple):
    """Mean absolute errors of held-out images in [-1, 1], as a query encodes them.

    Attributes:
        l1: of the autoencoder.
        usual: of each camera's mean image; what has learned nothing does as well.
        moving: of the autoencoder, over the tenth of the pixels farthest from that.
        usual_moving: of the mean image there.
    """

    l1: float
    usual: float
    moving: float
    usual_moving: float


def train_autoencoder(config: AutoencoderConfig, output: Path) -> Judged:
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
    dataset_index = dataset_index_for(config.data, checkpoint.config, checkpoint.text)
    moments = collect(dataset_index.sources, config.moments, checkpoint)
    tokenizer = _fresh(checkpoint, config.seed)
    with (output / LOG).open("w", encoding="utf-8") as log, as_images(tokenizer.vae):
        for metadata in _learn(tokenizer, moments, checkpoint, config):
            log.write(json.dumps(metadata) + "\n")
        mean, std = _scale(tokenizer, moments, checkpoint)
    inflate(tokenizer.vae)
    _write(output, checkpoint, tokenizer, mean, std)
    return judge_autoencoder(output, dataset_index.held_out, moments)


def collect(sources: Sequence[EpisodeEntry], count: int, checkpoint: Checkpoint) -> Moments:
    """Return the images of moments spread evenly over the episodes; unreadable ones are left out.

    Raises:
        TrainingError: none can be read.
    """
    every = [(source, step) for source in sources for step in range(len(source.windows.steps))]
    chosen = np.linspace(0, len(every) - 1, min(count, len(every))).astype(int)
    found = []
    for source, step in (every[i] for i in tqdm(chosen, "images", disable=None)):
        try:
            seen = source.windows.observe(int(source.windows.steps.times_ns[step]))
        except (ObservationError, RolloutError):
            continue
        images = prepare_images(seen, checkpoint)
        found.append(np.stack([images[role] for role in checkpoint.layout.cameras]))
    if not found:
        raise TrainingError(f"no image of {len(sources)} episodes can be read")
    return np.stack(found)


def judge_autoencoder(folder: Path, held_out: Sequence[EpisodeEntry], learned: Moments) -> Judged:
    """Hold decoded images of held-out episodes against what the cameras saw.

    Args:
        folder: a checkpoint's.
        held_out: the episodes.
        learned: the images that it was trained on.
    """
    if not held_out:
        return Judged(math.nan, math.nan, math.nan, math.nan)
    checkpoint, usual = load_checkpoint(folder, unfinished=True), _usual(learned)
    off, far = [], []
    for one in collect(held_out, min(JUDGED, len(learned)), checkpoint):
        # As a query has them: a black image first, then each camera's four times.
        video = np.concatenate([np.zeros_like(one[:1]), one.repeat(4, axis=0)])
        latent = checkpoint.tokenizer.encode(to_model(video, torch.float32))
        decoded = checkpoint.tokenizer.decode_first_images(latent, range(1, 1 + len(one)))
        seen = _images(one)
        off.append((decoded[0].transpose(0, 1) - seen).abs())
        far.append((usual - seen).abs())
    error, distance = torch.stack(off), torch.stack(far)
    moving = distance >= distance.flatten().kthvalue(int(0.9 * distance.numel())).values
    pairs = (error, distance, error[moving], distance[moving])
    return Judged(*(float(numbers.mean()) for numbers in pairs))


def _learn(
    tokenizer: Tokenizer, moments: Moments, checkpoint: Checkpoint, config: AutoencoderConfig
) -> Iterator[dict[str, float]]:
    """Train; yield what each step brought."""
    vae, patch = tokenizer.vae.train(), checkpoint.config.vae.patch
    optimiser = torch.optim.AdamW(vae.parameters(), lr=config.learning_rate, weight_decay=0.0)
    usual, cameras = _usual(moments), moments.shape[1]
    source = torch.Generator().manual_seed(config.seed)
    bar = tqdm(range(config.steps), "autoencoder", disable=None)
    for step in bar:
        rate = config.learning_rate * (1 + math.cos(math.pi * step / config.steps)) / 2
        for group in optimiser.param_groups:
            group["lr"] = rate
        drawn = torch.randint(len(moments) * cameras, (config.batch,), generator=source)
        index, camera = drawn // cameras, drawn % cameras
        seen = _images(moments[index.numpy(), camera.numpy()])
        latents = encode_images(vae, seen, patch)
        spread = latents.detach().std(dim=(0, 2, 3), keepdim=True)
        noise = torch.randn(latents.shape, generator=source) * spread * config.latent_noise
        off = decode_images(vae, latents + noise, patch) - seen
        weight = 1 + config.contrast * (seen - usual[camera]).square()
        loss = (weight * (off.abs() + off.square())).mean()
        total = loss + LATENT_PENALTY * latents.square().mean()
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(total)
        optimiser.step()
        metadata = {
            "step": step + 1,
            "loss": float(loss.detach()),
            "l1": float(off.detach().abs().mean()),
        }
        if not math.isfinite(metadata["loss"]):
            raise TrainingError(
                f"step {step + 1}: the loss is {metadata['loss']}; lower learning_rate"
            )
        bar.set_postfix(l1=f"{metadata['l1']:.4f}", refresh=False)
        yield metadata


@torch.no_grad()
def _scale(
    tokenizer: Tokenizer, moments: Moments, checkpoint: Checkpoint
) -> tuple[list[float], list[float]]:
    """Return the latents' mean and standard deviation per channel, over all cameras."""
    spread = np.linspace(0, len(moments) - 1, min(MEASURED, len(moments))).astype(int)
    vae, patch = tokenizer.vae.eval(), checkpoint.config.vae.patch
    latents = torch.cat([encode_images(vae, _images(moments[i]), patch) for i in spread])
    mean, std = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    return [round(float(x), 4) for x in mean], [max(round(float(x), 4), 1e-4) for x in std]


def _fresh(checkpoint: Checkpoint, seed: int) -> Tokenizer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Tokenizer(checkpoint.config.vae)


def _usual(moments: Moments) -> Tensor:
    """Return each camera's mean image (C, 3, S, S) in [-1, 1]."""
    return _images(moments.mean(axis=0).round().astype(np.uint8))


def _images(images: NDArray[np.uint8]) -> Tensor:
    """Map (N, S, S, 3) to (N, 3, S, S) in [-1, 1]."""
    return to_model(images, torch.float32)[0].transpose(0, 1)


def _write(
    output: Path,
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    mean: list[float],
    std: list[float],
) -> None:
    for name in (files.TEXT, files.STATISTICS):
        copy_file(checkpoint.path / name, output / name)
    config = load_yaml(checkpoint.path / files.CONFIG)
    config["vae"] |= {"latent_mean": mean, "latent_std": std}
    text = yaml.safe_dump(config, sort_keys=False, default_flow_style=None)
    (output / files.CONFIG).write_text(text, encoding="utf-8")
    write_tensors(tokenizer.vae.state_dict(), torch.float32, output / files.VAE)
