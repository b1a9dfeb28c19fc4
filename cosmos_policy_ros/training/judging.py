"""How good a written checkpoint is on demonstrations that it never learned from.

It is loaded as the policy node loads it, so a folder that is judged is one that can be deployed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cosmos_policy_ros.errors import ObservationError, RolloutError
from cosmos_policy_ros.model.images import Picture
from cosmos_policy_ros.model.policy import CosmosPolicy
from cosmos_policy_ros.model.sampler import Draw
from cosmos_policy_ros.model.sequence import Scene, prepare_pictures
from cosmos_policy_ros.training.census import Source


@dataclass(frozen=True)
class Judgement:
    """Open-loop errors in the statistics' units (-1 to 1), over all rows and joints.

    Attributes:
        windows: how many were looked at.
        action_l1: of the policy's chunks against the demonstrator's.
        pose_l1: of the chunk that repeats the current pose; what has learned nothing does as well.
        pictures: (rows of S, columns of S, 3) uint8: the first window's cameras as seen, as they
            were a chunk later, and as they were imagined. None without a window.
    """

    windows: int
    action_l1: float
    pose_l1: float
    pictures: Picture | None


def judge(
    folder: Path, held_out: Sequence[Source], windows: int, device: torch.device, threads: int
) -> Judgement:
    """Ask a checkpoint about windows spread evenly over the held-out episodes.

    Raises:
        CheckpointError: the folder cannot be loaded.
    """
    policy = CosmosPolicy.load(folder, device=str(device), threads=threads)
    statistics, config = policy.checkpoint.statistics, policy.checkpoint.config
    errors, still, pictures = [], [], None
    for source, step in _spread(held_out, windows):
        try:
            observation = source.windows.observe(int(source.windows.steps.times_ns[step]))
        except (ObservationError, RolloutError):
            continue
        scene = policy.look(source.prompt, observation)
        draw = Draw(0, config.denoising_steps)
        latents = policy.propose(scene, [draw], futures=pictures is None)
        (chunk,) = policy.chunks(latents)
        normalise = statistics.actions.normalise
        wanted = normalise(source.windows.chunk(step, config.chunk_steps))
        errors.append(np.abs(normalise(chunk) - wanted).mean())
        still.append(np.abs(normalise(observation.state) - wanted).mean())
        if pictures is None:
            pictures = _rows(policy, scene, latents, _later(source, step, policy))
    if not errors:
        return Judgement(0, float("nan"), float("nan"), None)
    return Judgement(len(errors), float(np.mean(errors)), float(np.mean(still)), pictures)


def _spread(held_out: Sequence[Source], count: int) -> list[tuple[Source, int]]:
    every = [(source, int(step)) for source in held_out for step in source.starts]
    if not every or not count:
        return []
    chosen = np.linspace(0, len(every) - 1, min(count, len(every))).astype(int)
    return [every[index] for index in chosen]


def _later(source: Source, step: int, policy: CosmosPolicy) -> dict[str, Picture]:
    """Return the pictures a chunk later, black where they cannot be read."""
    windows, config = source.windows, policy.checkpoint.config
    future = windows.future(step, config.chunk_steps)
    try:
        observation = windows.observe(int(windows.steps.times_ns[future]))
        return prepare_pictures(observation, policy.checkpoint)
    except (ObservationError, RolloutError):
        black = np.zeros((config.image_size, config.image_size, 3), np.uint8)
        return dict.fromkeys(policy.checkpoint.layout.cameras, black)


def _rows(
    policy: CosmosPolicy, scene: Scene, latents: Tensor, later: dict[str, Picture]
) -> Picture:
    (imagined,) = policy.depict(scene, latents)
    cameras = policy.checkpoint.layout.cameras
    rows = [
        np.concatenate([row[camera] for camera in cameras], axis=1)
        for row in (scene.pictures, later, imagined)
    ]
    return np.concatenate(rows)
