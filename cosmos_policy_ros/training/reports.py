"""What a training run shows: a progress bar, a JSON line per step, TensorBoard, a model card."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from cosmos_policy_ros.core.errors import ObservationError, RolloutError
from cosmos_policy_ros.model.images import ImageArray
from cosmos_policy_ros.model.policy import CosmosPolicy
from cosmos_policy_ros.model.sampler import SampleSpec
from cosmos_policy_ros.model.sequence import Conditioning, prepare_images
from cosmos_policy_ros.training.dataset_index import EpisodeEntry

# How good a written checkpoint is on demonstrations that it never learned from.
#
# It is loaded as the policy node loads it, so a folder that is judged is one that can be deployed.


@dataclass(frozen=True)
class Validation:
    """Open-loop errors in the statistics' units (-1 to 1), over all rows and joints.

    Attributes:
        windows: how many were looked at.
        action_l1: of the policy's chunks against the demonstrator's.
        pose_l1: of the chunk that repeats the current pose; what has learned nothing does as well.
        images: (rows of S, columns of S, 3) uint8: the first window's cameras as seen, as they
            were a chunk later, and as they were imagined. None without a window.
    """

    windows: int
    action_l1: float
    pose_l1: float
    images: ImageArray | None


def judge(
    folder: Path, held_out: Sequence[EpisodeEntry], windows: int, device: torch.device, threads: int
) -> Validation:
    """Ask a checkpoint about windows spread evenly over the held-out episodes.

    Raises:
        CheckpointError: the folder cannot be loaded.
    """
    policy = CosmosPolicy.load(folder, device=str(device), threads=threads)
    statistics, config = policy.checkpoint.statistics, policy.checkpoint.config
    errors, still, images = [], [], None
    for source, step in _spread(held_out, windows):
        try:
            observation = source.windows.observe(int(source.windows.steps.times_ns[step]))
        except (ObservationError, RolloutError):
            continue
        scene = policy.encode_observation(source.prompt, observation)
        draw = SampleSpec(0, config.denoising_steps)
        latents = policy.sample_actions(scene, [draw], futures=images is None)
        (chunk,) = policy.chunks(latents)
        normalise = statistics.actions.normalise
        wanted = normalise(source.windows.chunk(step, config.chunk_steps))
        errors.append(np.abs(normalise(chunk) - wanted).mean())
        still.append(np.abs(normalise(observation.state) - wanted).mean())
        if images is None:
            images = _rows(policy, scene, latents, _later(source, step, policy))
    if not errors:
        return Validation(0, float("nan"), float("nan"), None)
    return Validation(len(errors), float(np.mean(errors)), float(np.mean(still)), images)


def _spread(held_out: Sequence[EpisodeEntry], count: int) -> list[tuple[EpisodeEntry, int]]:
    every = [(source, int(step)) for source in held_out for step in source.starts]
    if not every or not count:
        return []
    chosen = np.linspace(0, len(every) - 1, min(count, len(every))).astype(int)
    return [every[index] for index in chosen]


def _later(source: EpisodeEntry, step: int, policy: CosmosPolicy) -> dict[str, ImageArray]:
    """Return the images a chunk later, black where they cannot be read."""
    windows, config = source.windows, policy.checkpoint.config
    future = windows.future(step, config.chunk_steps)
    try:
        observation = windows.observe(int(windows.steps.times_ns[future]))
        return prepare_images(observation, policy.checkpoint)
    except (ObservationError, RolloutError):
        black = np.zeros((config.image_size, config.image_size, 3), np.uint8)
        return dict.fromkeys(policy.checkpoint.layout.cameras, black)


def _rows(
    policy: CosmosPolicy, scene: Conditioning, latents: Tensor, later: dict[str, ImageArray]
) -> ImageArray:
    (imagined,) = policy.decode_images(scene, latents)
    cameras = policy.checkpoint.layout.cameras
    rows = [
        np.concatenate([row[camera] for camera in cameras], axis=1)
        for row in (scene.images, later, imagined)
    ]
    return np.concatenate(rows)


STEPS = "steps.jsonl"
IMAGES = "judged"
# Of the paper's trainings on ALOHA, one step, in the statistics' and the latents' units: what to
# hold a training against.
PAPER_L1 = {"action": 0.010, "proprio": 0.008, "wrists": 0.097, "primary": 0.085, "value": 0.007}


class Reports:
    """Belongs to the first process; the others report nothing."""

    def __init__(self, folder: Path, first_step: int, steps: int) -> None:
        """Write into ``folder``; drop the lines behind ``first_step``, which will come again."""
        self._folder = folder
        (folder / IMAGES).mkdir(parents=True, exist_ok=True)
        self._drop_redone(first_step)
        self._lines = (folder / STEPS).open("a", encoding="utf-8")
        self._board = SummaryWriter(folder / "tensorboard", purge_step=first_step)
        seconds = 0.1 if sys.stderr.isatty() else 60.0  # a log wants no line per step
        self._bar = tqdm(
            total=steps, initial=first_step, unit="step", dynamic_ncols=True, mininterval=seconds
        )

    def close(self) -> None:
        """End the bar, flush the files."""
        self._bar.close()
        self._board.close()
        self._lines.close()

    def step(self, metadata: Mapping[str, Any]) -> None:
        """Tell what a step brought; ``facts["step"]`` counts from 1."""
        self._lines.write(json.dumps(metadata) + "\n")
        self._lines.flush()
        for name in ("loss", "learning_rate", "gradient_norm", "samples_per_second"):
            self._scalar(name, metadata[name], metadata["step"])
        for role, errors in metadata["l1"].items():
            for frame, error in errors.items():
                self._scalar(f"l1/{role}/{frame}", error, metadata["step"])
        action = metadata["l1"].get("policy", {}).get("action", math.nan)
        self._bar.set_postfix(loss=f"{metadata['loss']:.3f}", action=f"{action:.4f}", refresh=False)
        self._bar.update()

    def say(self, line: str) -> None:
        """Show a line above the bar."""
        self._bar.write(line)

    def judged(self, step: int, validation: Validation) -> None:
        """Tell how a checkpoint was judged."""
        if not validation.windows:
            return
        self.say(
            f"step {step}: open-loop action L1 {validation.action_l1:.4f} on {validation.windows} "
            f"held-out windows; repeating the current pose {validation.pose_l1:.4f}"
        )
        self._scalar("held_out/action_l1", validation.action_l1, step)
        self._scalar("held_out/pose_l1", validation.pose_l1, step)
        if validation.images is not None:
            self._image(step, validation.images)

    def _image(self, step: int, images: ImageArray) -> None:
        Image.fromarray(images).save(self._folder / IMAGES / f"step_{step:09d}.png")
        name = "seen, a chunk later, imagined"
        rows = np.ascontiguousarray(images)
        self._board.add_image(name, rows, step, dataformats="HWC")

    def _scalar(self, name: str, number: float, step: int) -> None:
        self._board.add_scalar(name, number, step)

    def _drop_redone(self, first_step: int) -> None:
        path = self._folder / STEPS
        if path.is_file():
            kept = [line for line in read_steps(path) if line["step"] <= first_step]
            path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")


def read_steps(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a ``steps.jsonl``; a last one that was cut short is left out."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return found


def card(
    title: str,
    metadata: Mapping[str, Any],
    dataset_index: Sequence[str],
    l1: Mapping[str, Mapping[str, float]],
) -> list[str]:
    """Return the lines of a model card."""
    lines = [
        f"# {title}",
        "",
        "A Cosmos Policy checkpoint, trained with cosmos_policy_ros. Use it as it is: "
        "`checkpoint:=<this folder>`.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name.replace('_', ' ')} | {_cell(value)} |" for name, value in metadata.items()),
        "",
        "## Data",
        "",
        "```",
        *dataset_index,
        "```",
        "",
        "## Mean absolute error of one denoising step, last step of the training",
        "",
        "In units of the statistics (vectors) and of the latents (images), over all noise",
        "levels; the paper's ALOHA training ended at "
        + ", ".join(f"{name} {value:g}" for name, value in PAPER_L1.items())
        + ".",
        "",
        "| role | " + " | ".join(_frames(l1)) + " |",
        "|---|" + "---|" * len(_frames(l1)),
    ]
    for role, errors in l1.items():
        cells = [f"{errors[f]:.4f}" if f in errors else "" for f in _frames(l1)]
        lines.append(f"| {role} | " + " | ".join(cells) + " |")
    return lines


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_cell(each)}" for name, each in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _frames(l1: Mapping[str, Mapping[str, float]]) -> list[str]:
    return list(dict.fromkeys(frame for errors in l1.values() for frame in errors))
