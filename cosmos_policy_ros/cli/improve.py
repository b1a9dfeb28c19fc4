"""``cosmos improve``: the paper's loop in one command (sections 4.2, 4.3 and 5.3).

A checkpoint tries, its rollouts are scored, a planning model is fine-tuned on them, and the same
checkpoint is evaluated with and without it on the same scenes and noise. Before the comparison
stands what must be true for planning to help at all.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cosmos_policy_ros.cli.shared import parse, run
from cosmos_policy_ros.cli.stages import (
    GOES_ON,
    REHEARSED_EVALUATION,
    REHEARSED_TRAINING,
    Stages,
    changed,
)
from cosmos_policy_ros.dataset.contact_sheet import save_sheet
from cosmos_policy_ros.evaluation.contenders import DIRECT, checkpoint_folder
from cosmos_policy_ros.evaluation.evaluate import ROLLOUTS, TRIALS

DEMONSTRATIONS, COLLECTED, HELD_OUT, PLANNER, COMPARISON = (
    "demonstrations",
    "rollouts",
    "held_out",
    "world_model",
    "comparison",
)
PRECONDITIONS, IMAGINATION, REPORT = "preconditions.json", "imagination.png", "report"
HELD_OUT_SEED = 300_000
MINUTES = {  # estimated for two older cores; newer ones took half of it
    DEMONSTRATIONS: 6,
    COLLECTED: 14,
    HELD_OUT: 4,
    PLANNER: 20,
    "preconditions": 4,
    COMPARISON: 22,
    REPORT: 1,
}


@dataclass(frozen=True)
class Improvement:
    """One turn of the loop.

    Attributes:
        output: the folder that all stages work in.
        checkpoint: the policy's folder.
        rollouts: trials per condition to learn from.
        trials: per condition and contender, to compare.
        demonstrations: folders of those that the checkpoint learned from; none makes some.
        rehearsal: every stage as small as it can be.
    """

    output: Path
    checkpoint: Path
    rollouts: int
    trials: int
    demonstrations: tuple[Path, ...] = ()
    rehearsal: bool = False

    def run(self) -> Path:
        """Do what is left; return the report.

        Raises:
            CosmosPolicyError: a stage failed, or the folder holds another turn.
        """
        settings = {
            "checkpoint": str(self.checkpoint),
            "rollouts": self.rollouts,
            "trials": self.trials,
            "demonstrations": list(map(str, self.demonstrations)),
            "rehearsal": self.rehearsal,
        }
        stages = Stages(self.output, settings)
        work: dict[str, Callable[[], None]] = {}
        if not self.demonstrations:
            work[DEMONSTRATIONS] = lambda: self._demonstrate(stages)
        work |= {
            COLLECTED: lambda: self._collect(stages, COLLECTED, self.rollouts),
            HELD_OUT: lambda: self._collect(
                stages, HELD_OUT, max(self.rollouts // 5, 1), f"first_seed={HELD_OUT_SEED}"
            ),
            PLANNER: lambda: self._train(stages),
            "preconditions": self._measure,
            COMPARISON: lambda: self._compare(stages),
            REPORT: self._report,
        }
        stages.run(work, MINUTES)
        return self.output / f"{REPORT}.html"

    def _demonstrate(self, stages: Stages) -> None:
        """Record demonstrations for the 10 % of the world model's batches that train the policy."""
        few = self._trials(30)
        stages.command("evaluate", DEMONSTRATIONS, DEMONSTRATIONS, *few)

    def _collect(self, stages: Stages, folder: str, trials: int, *changes: str) -> None:
        more = ["--checkpoint", str(self.checkpoint), *self._trials(trials, *changes)]
        stages.command("evaluate", COLLECTED, folder, *more)

    def _trials(self, count: int, *changes: str) -> list[str]:
        few = REHEARSED_EVALUATION if self.rehearsal else (f"trials={count}",)
        return changed([*few, *changes])

    def _train(self, stages: Stages) -> None:
        changes = [f"start.checkpoint={self.checkpoint}"]
        if self.demonstrations:
            folders = json.dumps(list(map(str, self.demonstrations)))  # JSON is YAML
            changes.append(f"data.demonstrations={folders}")
        changes += REHEARSED_TRAINING if self.rehearsal else ()
        stages.train("tiny_planning", PLANNER, changes)

    def _measure(self) -> None:
        # Networks are needed here alone.
        from cosmos_policy_ros.evaluation.report import (
            imagination_sheet,
            measure_preconditions,
            scored,
        )
        from cosmos_policy_ros.model.policy import CosmosPolicy

        policy = CosmosPolicy.load(self.checkpoint)
        world_model = CosmosPolicy.load(self.output / PLANNER)
        data, dataset_index = scored(self.output / HELD_OUT / ROLLOUTS / DIRECT, policy)
        steps = policy.checkpoint.config.denoising_steps
        both = {"imagined before": policy, "imagined after": world_model}
        sheet = imagination_sheet(both, data, dataset_index, steps)
        save_sheet(sheet, self.output / IMAGINATION)
        found = measure_preconditions(policy, world_model, data, dataset_index)
        text = json.dumps(found, indent=2, default=np.ndarray.tolist)
        (self.output / PRECONDITIONS).write_text(text + "\n", encoding="utf-8")

    def _compare(self, stages: Stages) -> None:
        more = ["--checkpoint", str(self.checkpoint), *self._trials(self.trials)]
        stages.command("evaluate", "planning", COMPARISON, *more)

    def _report(self) -> None:
        from cosmos_policy_ros.evaluation.report import write_report

        trials, preconditions = self.output / COMPARISON / TRIALS, self.output / PRECONDITIONS
        write_report(self.output / REPORT, trials, preconditions, self.output / IMAGINATION)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``cosmos improve``; returns the exit code."""
    options = _parse(arguments)
    checkpoint = checkpoint_folder(options.checkpoint).resolve()
    turn = Improvement(
        output=options.output.expanduser(),
        checkpoint=checkpoint,
        rollouts=options.rollouts,
        trials=options.trials,
        demonstrations=tuple(path.expanduser().resolve() for path in options.demonstrations),
        rehearsal=options.rehearsal,
    )

    def improve() -> int:
        report = turn.run()
        print(report.with_suffix(".md").read_text(encoding="utf-8"))
        print(f"with plots: {report}")
        return 0

    return run(improve, GOES_ON)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="cosmos improve",
        description="Let a checkpoint try on the simulated rig, score its rollouts, fine-tune a "
        "planning model on them, and compare the checkpoint with and without planning. Two cores "
        f"take about {sum(MINUTES.values())} minutes. The same command goes on after a break.",
    )
    parser.add_argument(
        "--checkpoint", default="tiny", help="a folder, or a name in config/models (tiny)"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of everything it makes")
    parser.add_argument(
        "--rollouts", type=int, default=100, help="per condition, to learn from (100)"
    )
    parser.add_argument(
        "--trials", type=int, default=100, help="per condition and contender, to compare (100)"
    )
    parser.add_argument(
        "--demonstrations",
        type=Path,
        nargs="+",
        default=(),
        metavar="FOLDER",
        help="those that the checkpoint learned from; 60 are made where none are given",
    )
    parser.add_argument(
        "--rehearsal", action="store_true", help="every stage as small as it can be: minutes"
    )
    options = parse(parser, arguments)
    for name in ("rollouts", "trials"):
        if getattr(options, name) < 1:
            parser.error(f"--{name}: must be at least 1")
    return options
