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
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from cosmos_policy_ros.core.errors import ObservationError, RolloutError
from cosmos_policy_ros.core.files import replace_text
from cosmos_policy_ros.model.draws import SampleSpec
from cosmos_policy_ros.model.images import ImageArray
from cosmos_policy_ros.model.policy import CosmosPolicy
from cosmos_policy_ros.model.sequence import prepare_images
from cosmos_policy_ros.training.dataset_index import EpisodeEntry

STEPS = "steps.jsonl"
IMAGES = "judged"
# Of the paper's trainings by layout, one step, in the statistics' and the latents' units: what to
# hold a training against.
PAPER_L1 = {
    "aloha": {
        "action": 0.010,
        "proprio": 0.008,
        "wrists": 0.097,
        "primary": 0.085,
        "value": 0.007,
    },
    "libero": {
        "action": 0.012,
        "proprio": 0.007,
        "wrist": 0.068,
        "primary": 0.036,
        "value": 0.007,
    },
    "robocasa": {
        "action": 0.016,
        "proprio": 0.007,
        "wrist": 0.084,
        "primary": 0.048,
        "value": 0.007,
    },
}
_NAMES = {"aloha": "ALOHA", "libero": "LIBERO", "robocasa": "RoboCasa"}


@dataclass(frozen=True)
class Validation:
    """Open-loop errors in the statistics' units (-1 to 1), over all rows and joints.

    Attributes:
        windows: the number of windows.
        action_l1: of the policy's chunks against the demonstrator's.
        pose_l1: of the chunk that repeats the current pose, as a baseline; where actions are no
            poses but changes, of the one that repeats the last action.
        still: what that baseline does, for messages.
        images: (rows of S, columns of S, 3) uint8: the first window's cameras as seen, as they
            were a chunk later, and as they were predicted. None without a window.
    """

    windows: int
    action_l1: float
    pose_l1: float
    still: str
    images: ImageArray | None


def validate(
    folder: Path, held_out: Sequence[EpisodeEntry], windows: int, device: torch.device, threads: int
) -> Validation:
    """Compare a checkpoint with demonstrations at windows spread evenly over held-out episodes.

    It is loaded as the policy node loads it, so a folder that passes is one that can be deployed.

    Raises:
        CheckpointError: the folder cannot be loaded.
    """
    policy = CosmosPolicy.load(folder, device=str(device), threads=threads)
    config, cameras = policy.checkpoint.config, policy.checkpoint.layout.cameras
    normalise = policy.checkpoint.statistics.actions.normalise
    every = [(entry, int(step)) for entry in held_out for step in entry.starts]
    chosen = np.linspace(0, len(every) - 1, min(windows, len(every))).astype(int)
    poses = config.action_dims == config.proprio_dims
    still = "repeating the current pose" if poses else "repeating the last action"
    action_errors, pose_errors, images = [], [], None
    for entry, step in (every[index] for index in chosen):
        try:
            observation = entry.observe(step)
        except (ObservationError, RolloutError):
            continue
        scene = policy.encode_observation(entry.prompt, observation)
        latents = policy.sample_actions(
            scene, [SampleSpec(0, config.denoising_steps)], futures=images is None
        )
        (chunk,) = policy.chunks(latents)
        wanted = normalise(entry.windows.chunk(step, config.chunk_steps))
        action_errors.append(np.abs(normalise(chunk) - wanted).mean())
        before = observation.state if poses else entry.windows.chunk(max(step - 1, 0), 1)
        pose_errors.append(np.abs(normalise(before) - wanted).mean())
        if images is None:
            later = entry.windows.future(step, config.chunk_steps)
            try:
                came = prepare_images(entry.observe(later), policy.checkpoint)
            except (ObservationError, RolloutError):
                black = torch.zeros(config.image_size, config.image_size, 3, dtype=torch.uint8)
                came = dict.fromkeys(cameras, black)
            seen = [[row[c].cpu().numpy() for c in cameras] for row in (scene.images, came)]
            (predicted,) = policy.decode_images(scene, latents)
            rows = [*seen, [predicted[c] for c in cameras]]
            images = np.concatenate([np.concatenate(row, axis=1) for row in rows])
    if not action_errors:
        return Validation(0, math.nan, math.nan, still, None)
    action_l1, pose_l1 = float(np.mean(action_errors)), float(np.mean(pose_errors))
    return Validation(len(action_errors), action_l1, pose_l1, still, images)


class Reports:
    """Belongs to the first process; the others report nothing."""

    def __init__(self, folder: Path, first_step: int, steps: int) -> None:
        """Write into ``folder``; drop the lines after ``first_step``, which will come again."""
        self._images = folder / IMAGES
        self._images.mkdir(parents=True, exist_ok=True)
        path = folder / STEPS
        if path.is_file():
            kept = [line for line in read_steps(path) if line["step"] <= first_step]
            replace_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._lines = path.open("a", encoding="utf-8")
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
        """Report a step; ``metadata["step"]`` counts from 1."""
        self._lines.write(json.dumps(metadata) + "\n")
        self._lines.flush()
        step, l1 = metadata["step"], metadata["l1"]
        for name in ("loss", "learning_rate", "gradient_norm", "samples_per_second"):
            self._board.add_scalar(name, metadata[name], step)
        for role, errors in l1.items():
            for frame, error in errors.items():
                self._board.add_scalar(f"l1/{role}/{frame}", error, step)
        action = l1.get("policy", {}).get("action", math.nan)
        self._bar.set_postfix(loss=f"{metadata['loss']:.3f}", action=f"{action:.4f}", refresh=False)
        self._bar.update()

    def say(self, line: str) -> None:
        """Show a line above the bar."""
        self._bar.write(line)

    def validated(self, step: int, validation: Validation) -> None:
        """Report a checkpoint's validation, if there was a window."""
        if validation.images is None:
            return
        self.say(
            f"step {step}: open-loop action L1 {validation.action_l1:.4f} on {validation.windows} "
            f"held-out windows; {validation.still} {validation.pose_l1:.4f}"
        )
        self._board.add_scalar("held_out/action_l1", validation.action_l1, step)
        self._board.add_scalar("held_out/pose_l1", validation.pose_l1, step)
        Image.fromarray(validation.images).save(self._images / f"step_{step:09d}.png")
        rows = np.ascontiguousarray(validation.images)
        self._board.add_image("seen, a chunk later, imagined", rows, step, dataformats="HWC")


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
    layout: str,
) -> list[str]:
    """Return the lines of a model card."""
    frames = list(dict.fromkeys(frame for errors in l1.values() for frame in errors))
    rows = [["role", *frames]]
    for role, errors in l1.items():
        rows.append([role, *(f"{errors[f]:.4f}" if f in errors else "" for f in frames)])
    header, *table = [f"| {' | '.join(row)} |" for row in rows]
    return [
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
        f"levels; the paper's {_NAMES[layout]} training ended at "
        + ", ".join(f"{name} {value:g}" for name, value in PAPER_L1[layout].items())
        + ".",
        "",
        header,
        "|---|" + "---|" * len(frames),
        *table,
    ]


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_cell(each)}" for name, each in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)
