"""What must be true before a search can help, measured on rollouts that nothing was learned from.

Proposals must differ, or there is nothing to choose from; values must tell good from bad, or the
choice is blind; and futures must be right where it matters, or values are of something else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cosmos_policy_ros.errors import ObservationError, RolloutError
from cosmos_policy_ros.model.layout import FUTURE, ValueMode
from cosmos_policy_ros.model.policy import CosmosPolicy
from cosmos_policy_ros.model.sampler import Draw
from cosmos_policy_ros.rig.spec import ARM_DIM, ARM_JOINTS
from cosmos_policy_ros.sim.kinematics import ArmKinematics
from cosmos_policy_ros.sim.scene import ARMS
from cosmos_policy_ros.training.census import Census, Source
from cosmos_policy_ros.training.config import DataConfig, MixtureConfig, ObjectiveConfig
from cosmos_policy_ros.training.mixture import Mixture, Pick
from cosmos_policy_ros.training.samples import Batch, SampleMaker, collate
from cosmos_policy_ros.training.start import census_for
from cosmos_policy_ros.training.targets import TargetMaker

AT_ONCE = 16  # windows
CHUNK_ROWS = 50  # from one window to the next


@dataclass(frozen=True)
class Lot:
    """Windows of an episode side by side.

    Attributes:
        source: the episode.
        batch: its windows.
        clean: (B, 16, T, h, w), all that was seen, done and came.
    """

    source: Source
    batch: Batch
    clean: Tensor


@dataclass(frozen=True)
class Appraisal:
    """How a checkpoint appraises windows of rollouts whose end is known.

    Attributes:
        succeeded: per window, whether its episode did.
        true, imagined: per window, the value of the future that came, and of the one imagined from
            what was seen and done.
        world_l1: mean absolute error of the imagined cameras' latents, whose scale is 1.
    """

    succeeded: NDArray[np.bool_]
    true: NDArray[np.float64]
    imagined: NDArray[np.float64]
    world_l1: float

    @property
    def auc_true(self) -> float:
        """How often a window of a success is valued above one of a failure, by what came."""
        return auc(self.true, self.succeeded)

    @property
    def auc_imagined(self) -> float:
        """The same by what was imagined."""
        return auc(self.imagined, self.succeeded)


def auc(values: NDArray[np.float64], succeeded: NDArray[np.bool_]) -> float:
    """Return the area under the ROC curve, ties counting half; NaN where all ended alike."""
    good, bad = values[succeeded], values[~succeeded]
    if not len(good) or not len(bad):
        return float("nan")
    above = (good[:, None] > bad).mean() + 0.5 * (good[:, None] == bad).mean()
    return float(above)


def appraise(
    policy: CosmosPolicy,
    data: DataConfig,
    census: Census,
    mode: ValueMode,
    *,
    steps: int,
    every: int = CHUNK_ROWS,
) -> Appraisal:
    """Imagine and value what follows on every ``every``-th step of scored episodes.

    Args:
        policy: a checkpoint; as a planner it should have been trained for ``mode``.
        data: names scored episodes that it did not learn from.
        census: of them.
        mode: what values are conditioned on.
        steps: of denoising.
        every: control steps between two windows.
    """
    layout = policy.checkpoint.layout
    cameras = [layout.index(FUTURE + camera) for camera in layout.cameras]
    succeeded: list[bool] = []
    true: list[float] = []
    imagined: list[float] = []
    errors: list[float] = []
    for lot in read_lots(policy, data, census, windows_of(census, every), AT_ONCE):
        prompt, clean = lot.source.prompt, lot.clean
        draws = [Draw(number, steps) for number in range(len(clean))]
        future = policy.imagine(prompt, clean, draws)
        true += policy.appraise(prompt, clean, draws, mode)
        imagined += policy.appraise(prompt, future, draws, mode)
        off = (future[:, :, cameras] - clean[:, :, cameras]).abs().mean(dim=(1, 2, 3, 4))
        errors += off.tolist()
        succeeded += [lot.source.pool == "success"] * len(clean)
    return Appraisal(
        np.array(succeeded, dtype=bool), np.array(true), np.array(imagined), float(np.mean(errors))
    )


def windows_of(census: Census, every: int = CHUNK_ROWS) -> list[Pick]:
    """Return every ``every``-th window of each episode."""
    return [
        Pick("world_model", index, int(start), 0)
        for index, source in enumerate(census.sources)
        for start in source.starts[::every]
    ]


def read_lots(
    policy: CosmosPolicy, data: DataConfig, census: Census, windows: Sequence[Pick], at_once: int
) -> Iterator[Lot]:
    """Read windows as a checkpoint takes them; what is damaged is left out.

    Args:
        policy: whose sizes and autoencoder they are for.
        data: names the episodes.
        census: of them.
        windows: those of one episode together.
        at_once: most windows in a lot.
    """
    checkpoint = policy.checkpoint
    mixture = Mixture(census, MixtureConfig(policy=0.0, world_model=0.5, value=0.5), 0)
    config, statistics = checkpoint.config, checkpoint.statistics
    maker = SampleMaker(census, mixture, 1, config, statistics, data, ObjectiveConfig())
    targets = TargetMaker(checkpoint, policy.device)
    for index, picks in groupby(windows, key=lambda pick: pick.source):
        readable = []
        for pick in picks:
            with suppress(ObservationError, RolloutError):
                readable.append(maker.make(pick))
        for first in range(0, len(readable), at_once):
            batch = collate(readable[first : first + at_once])
            yield Lot(census.sources[index], batch, targets(batch))


def proposal_spread(
    policy: CosmosPolicy, sources: Sequence[Source], *, steps: int, proposals: int = 8
) -> NDArray[np.float64]:
    """Return how far apart proposals put the grippers, per episode's beginning and arm [m].

    The root mean square distance of the pinch points from their mean, a second before the chunk's
    end; (episodes, 2) left and right.
    """
    arms = [ArmKinematics(arm) for arm in ARMS]
    found = []
    for source in sources:
        step = int(source.starts[0])
        seen = source.windows.observe(int(source.windows.steps.times_ns[step]))
        scene = policy.look(source.prompt, seen)
        draws = [Draw(seed, steps) for seed in range(proposals)]
        chunks = policy.chunks(policy.propose(scene, draws))
        rows = chunks[:, chunks.shape[1] // 2]
        spread = []
        for index, arm in enumerate(arms):
            joints = rows[:, index * ARM_DIM : index * ARM_DIM + ARM_JOINTS]
            points = np.stack([arm.forward(each).position for each in joints])
            off = points - points.mean(axis=0)
            spread.append(float(np.sqrt((off**2).sum(axis=1).mean())))
        found.append(spread)
    return np.array(found)


def measure_preconditions(
    policy: CosmosPolicy, planner: CosmosPolicy, data: DataConfig, census: Census
) -> dict[str, Any]:
    """Measure policy and planner on rollouts that neither learned from.

    Args:
        policy: proposes.
        planner: trained for V(s').
        data: names the rollouts.
        census: of them.

    Returns:
        What goes into ``preconditions.json``: numbers, and per window the values behind them.
    """
    steps = policy.checkpoint.config.denoising_steps
    spread = proposal_spread(policy, census.sources, steps=steps)
    before = appraise(policy, data, census, "value_sas", steps=steps)
    after = appraise(planner, data, census, "value_s", steps=steps)
    return {
        "episodes": len(census.sources),
        "successes": len(census.pool("success")),
        "windows": len(after.succeeded),
        "spread_mm": [round(1000 * float(x), 1) for x in np.median(spread, axis=0)],
        "policy": {"auc_true": before.auc_true, "world_l1": before.world_l1},
        "planner": {
            "auc_true": after.auc_true,
            "auc_imagined": after.auc_imagined,
            "world_l1": after.world_l1,
        },
        "succeeded": after.succeeded,
        "value_true": after.true,
        "value_imagined": after.imagined,
    }


def held_out(rollouts: Path, policy: CosmosPolicy) -> tuple[DataConfig, Census]:
    """Return the scored rollouts in a folder, all of them to measure on.

    Raises:
        CosmosPolicyError: it holds none.
    """
    data = DataConfig(
        demonstrations=(),
        rollouts=(str(rollouts),),
        held_out=0.0,
        augmentation="none",
        workers=0,
    )
    return data, census_for(data, policy.checkpoint.config, policy.checkpoint.text)
