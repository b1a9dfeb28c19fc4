"""What one micro-batch teaches: its loss, and how far off each kind of frame was."""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from cosmos_policy_ros.model.checkpoint import Checkpoint
from cosmos_policy_ros.model.transformer import Transformer
from cosmos_policy_ros.training.config import ObjectiveConfig
from cosmos_policy_ros.training.objective import (
    Role,
    counted_frames,
    draw_sigmas,
    frame_errors,
    mode_of,
    total_loss,
)
from cosmos_policy_ros.training.samples import Batch
from cosmos_policy_ros.training.targets import TargetMaker

ROLES: tuple[Role, ...] = get_args(Role)


class Tally:
    """Sums over samples, which processes can add up.

    Attributes:
        errors: (2, R, T) float64: per role and frame the sum of the absolute errors, and of how
            many samples.
        loss: (1,) float64.
    """

    def __init__(self, frames: tuple[str, ...], device: torch.device) -> None:
        self._frames = frames
        self.errors = torch.zeros(2, len(ROLES), len(frames), dtype=torch.float64, device=device)
        self.loss = torch.zeros(1, dtype=torch.float64, device=device)

    def add(self, roles: tuple[Role, ...], generated: Tensor, l1: Tensor, loss: Tensor) -> None:
        """Note a micro-batch: (B, T) what was generated and how far off; its part of the loss."""
        for index, role in enumerate(roles):
            row = ROLES.index(role)
            self.errors[0, row] += torch.where(generated[index], l1[index], 0.0)
            self.errors[1, row] += generated[index]
        self.loss += loss.detach()

    def l1(self) -> dict[str, dict[str, float]]:
        """Return the mean absolute error per role and frame, of what the role generates."""
        sums, counts = self.errors.cpu()
        return {
            role: {
                frame: float(sums[row, column] / counts[row, column])
                for column, frame in enumerate(self._frames)
                if counts[row, column]
            }
            for row, role in enumerate(ROLES)
            if counts[row].any()
        }


class Lesson:
    """Turns micro-batches into losses."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        objective: ObjectiveConfig,
        targets: TargetMaker,
        device: torch.device,
    ) -> None:
        """Lay out every role's masks."""
        self._checkpoint, self._objective = checkpoint, objective
        self._targets, self._device = targets, device
        layout, value = checkpoint.layout, objective.value
        self._known = {role: layout.mask(mode_of(role, value)) for role in ROLES}
        weights = [objective.weights.of(frame) for frame in layout.frames]
        self._weights = {
            role: [
                weight * counts
                for weight, counts in zip(
                    weights,
                    counted_frames(layout, role, value, auxiliary=objective.auxiliary),
                    strict=True,
                )
            ]
            for role in ROLES
        }

    def loss(self, network: Transformer, batch: Batch, tally: Tally, share: float) -> Tensor:
        """Return the loss of a micro-batch, times its ``share`` of the step's samples."""
        clean = self._targets(batch)
        known = torch.tensor([self._known[role] for role in batch.roles], device=self._device)
        weights = torch.tensor([self._weights[role] for role in batch.roles], device=self._device)
        sigma, noise = self.draw(batch, tuple(clean.shape[1:]))
        errors = frame_errors(
            network,
            self._checkpoint.config.preconditioning,
            clean,
            known,
            self.read(batch),
            sigma,
            noise,
        )
        loss = share * total_loss(errors.losses, weights, self._objective.loss_scale)
        tally.add(batch.roles, ~known, errors.l1, loss)
        return loss

    def draw(self, batch: Batch, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Draw each sample's noise level and noise from its own seed, whoever it is beside."""
        objective, frames = self._objective, shape[1]
        sigmas, noises = [], []
        for seed in batch.seeds:
            source = torch.Generator().manual_seed(seed)
            sigmas.append(draw_sigmas(1, frames, objective.noise, objective.numerics, source))
            noises.append(torch.randn(shape, generator=source))
        return torch.cat(sigmas).to(self._device), torch.stack(noises).to(self._device)

    def read(self, batch: Batch) -> Tensor:
        """Return each sample's prompt embedding (B, L, D)."""
        text = self._checkpoint.text
        return torch.stack([text.embedding(prompt) for prompt in batch.prompts]).to(self._device)
