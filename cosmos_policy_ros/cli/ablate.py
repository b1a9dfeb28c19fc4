"""``cosmos ablate``: the paper's ablations at the tiny checkpoint's size, in one table.

The same demonstrations, autoencoder and number of samples for all, and each time one thing less to
learn besides the policy itself.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cosmos_policy_ros.cli.evaluate import TABLE
from cosmos_policy_ros.cli.shared import parse, run
from cosmos_policy_ros.cli.stages import (
    GOES_ON,
    REHEARSED_EVALUATION,
    REHEARSED_TRAINING,
    Stages,
    changed,
)
from cosmos_policy_ros.core.errors import ConfigError
from cosmos_policy_ros.model.files import PROVENANCE

VARIANTS = {
    "full": (),
    "without_auxiliary_targets": ("objective.auxiliary=false",),
    "without_value_samples": ("mixture.value=0",),
    "policy_samples_only": ("mixture.value=0", "mixture.world_model=0"),
}
MINUTES_PER_STEP, EVALUATION_MINUTES = 0.013, 10
EVALUATION = "evaluation"


@dataclass(frozen=True)
class Ablations:
    """All variants, trained and compared.

    Attributes:
        output: the folder that all stages work in.
        reproduced: what ``cosmos reproduce-tiny`` made: demonstrations and autoencoder.
        steps: of each training.
        seed: of each training.
        rehearsal: every stage as small as it can be.
    """

    output: Path
    reproduced: Path
    steps: int
    seed: int = 0
    rehearsal: bool = False

    def run(self) -> list[str]:
        """Do what is left; return the tables, as Markdown.

        Raises:
            ConfigError: a stage failed, or the folder holds other ablations.
        """
        for name in ("autoencoder", "demonstrations"):
            if not (self.reproduced / name).is_dir():
                raise ConfigError(f"{self.reproduced / name}: is missing; run reproduce_tiny first")
        settings = {
            "reproduced": str(self.reproduced),
            "steps": self.steps,
            "seed": self.seed,
            "rehearsal": self.rehearsal,
        }
        stages = Stages(self.output, settings)
        work: dict[str, Callable[[], None]] = {
            name: partial(self._train, stages, name) for name in VARIANTS
        }
        work[EVALUATION] = lambda: self._evaluate(stages)
        minutes = dict.fromkeys(VARIANTS, self.steps * MINUTES_PER_STEP)
        stages.run(work, {**minutes, EVALUATION: EVALUATION_MINUTES})
        return [*self._held_out(), "", (self.output / EVALUATION / TABLE).read_text("utf-8")]

    def _train(self, stages: Stages, name: str) -> None:
        rollouts = self.reproduced / "demonstrations" / "rollouts"
        folders = json.dumps([str(rollouts / each) for each in ("red", "blue")])  # JSON is YAML
        changes = (
            f"start.checkpoint={self.reproduced / 'autoencoder'}",
            f"data.demonstrations={folders}",
            f"run.seed={self.seed}",
            f"run.steps={self.steps}",
            f"optimiser.decay_steps={self.steps}",
            *VARIANTS[name],
        )
        stages.train("tiny_base", name, [*changes, *(REHEARSED_TRAINING if self.rehearsal else ())])

    def _evaluate(self, stages: Stages) -> None:
        few = changed(REHEARSED_EVALUATION if self.rehearsal else ())
        stages.command("evaluate", "ablations", EVALUATION, *few)

    def _held_out(self) -> list[str]:
        rows = []
        for name in VARIANTS:
            told = json.loads((self.output / name / PROVENANCE).read_text("utf-8"))
            error = told["held_out"]["action_l1"]
            rows.append(f"| {name.replace('_', ' ')} | {told['samples']} | {error:.4f} |")
        header = "| | samples | chunks on held-out demonstrations, mean absolute error |"
        return [header, "|---|---|---|", *rows]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``cosmos ablate``; returns the exit code."""
    options = _parse(arguments)
    ablations = Ablations(
        options.output.expanduser(),
        options.reproduced.expanduser().resolve(),
        options.steps,
        options.seed,
        options.rehearsal,
    )

    def ablate() -> int:
        print("\n".join(ablations.run()))
        return 0

    return run(ablate, GOES_ON)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="cosmos ablate",
        description="Train the tiny policy without auxiliary targets, without value samples, and "
        "with policy samples only, each as long as the full one, and compare them in closed loop. "
        "The same command goes on after a break.",
    )
    parser.add_argument(
        "--reproduced",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="of reproduce_tiny: its demonstrations and autoencoder are used",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of everything it makes")
    parser.add_argument("--steps", type=int, default=1500, help="of each training (1500)")
    parser.add_argument("--seed", type=int, default=0, help="of each training (0)")
    parser.add_argument(
        "--rehearsal", action="store_true", help="every stage as small as it can be: minutes"
    )
    options = parse(parser, arguments)
    if options.steps < 1:
        parser.error("--steps: must be at least 1")
    return options
