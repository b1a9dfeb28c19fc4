"""``cosmos reproduce-tiny``: the checkpoint that ships with the package, from nothing.

Demonstrations, autoencoder, policy and evaluation are the package's own commands with the package's
own configs, run in one folder.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
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
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.core.task import load_task
from cosmos_policy_ros.model import files
from cosmos_policy_ros.model.config import read_config
from cosmos_policy_ros.model.text import load_text, save_text
from cosmos_policy_ros.training.saving import CARD, copy_file, write_rounded

TASK = "either_cube"
CHECKPOINT = "tiny"  # the folder that comes out
# Estimated for two older cores; newer ones took half of it.
MINUTES = {"demonstrations": 30, "autoencoder": 12, "policy": 80, "checkpoint": 1, "evaluation": 10}
REHEARSED_AUTOENCODER = ("steps=2", "moments=16", "data.held_out=0.25")


@dataclass(frozen=True)
class Reproduction:
    """One run of all stages.

    Attributes:
        output: the folder that all stages work in.
        seed: of the autoencoder's and the policy's training.
        rehearsal: every stage as small as it can be, to see that all of them work; what comes out
            has learned nothing.
    """

    output: Path
    seed: int
    rehearsal: bool = False

    def run(self) -> Path:
        """Do what is left; return the checkpoint's folder.

        Raises:
            ConfigError: a stage failed, or the folder holds another run.
        """
        stages = Stages(self.output, {"seed": self.seed, "rehearsal": self.rehearsal})
        work = {
            "demonstrations": lambda: self._demonstrations(stages),
            "autoencoder": lambda: self._autoencoder(stages),
            "policy": lambda: self._policy(stages),
            "checkpoint": self._checkpoint,
            "evaluation": lambda: self._evaluation(stages),
        }
        stages.run(work, MINUTES)
        self._finish_card(stages)
        return self.output / CHECKPOINT

    def _demonstrations(self, stages: Stages) -> None:
        few = changed((*REHEARSED_EVALUATION, "trials=2") if self.rehearsal else ())
        stages.command("evaluate", "demonstrations", "demonstrations", *few)

    def _autoencoder(self, stages: Stages) -> None:
        changes = [f"seed={self.seed}", *(REHEARSED_AUTOENCODER if self.rehearsal else ())]
        stages.command("train-autoencoder", "tiny", "autoencoder", *changed(changes))

    def _policy(self, stages: Stages) -> None:
        changes = [f"run.seed={self.seed}", *(REHEARSED_TRAINING if self.rehearsal else ())]
        stages.train("tiny_base", "policy", changes)

    def _checkpoint(self) -> None:
        """Write what the training made in half precision, with the one prompt that it learned."""
        source, target = self.output / "policy", self.output / CHECKPOINT
        target.mkdir(exist_ok=True)
        for name in (files.CONFIG, files.STATISTICS):
            copy_file(source / name, target / name)
        config = read_config(source / files.CONFIG)
        text = load_text(source / files.TEXT, config.text_tokens, config.transformer.text_width)
        prompts = load_task(TASK, config_folder("tasks")).prompts
        save_text(target / files.TEXT, {prompt: text.embeddings[prompt] for prompt in prompts})
        write_rounded(source, target)

    def _evaluation(self, stages: Stages) -> None:
        folder = str((self.output / CHECKPOINT).resolve())
        more = ["--checkpoint", folder, *changed(REHEARSED_EVALUATION if self.rehearsal else ())]
        stages.command("evaluate", "tiny", "evaluation", *more)

    def _finish_card(self, stages: Stages) -> None:
        source, target = self.output / "policy", self.output / CHECKPOINT
        told = json.loads((source / files.PROVENANCE).read_text(encoding="utf-8"))
        before, told["digest"] = told["digest"], files.digest(target)  # the weights are rounded
        card = (source / CARD).read_text(encoding="utf-8").rstrip()
        card = card.replace(f"# {source.name}", f"# {target.name}", 1)
        took = ", ".join(f"{name} {value:g}" for name, value in stages.minutes.items())
        machine = f"{len(os.sched_getaffinity(0))} cores ({platform.machine()})"
        lines = [
            card.replace(before, told["digest"]),
            "",
            "## How it was made",
            "",
            f"`cosmos reproduce-tiny --seed {self.seed}`, on {machine}; minutes: {took}. The "
            "weights are rounded to float16.",
            "",
            "## Closed loop",
            "",
            (self.output / "evaluation" / TABLE).read_text(encoding="utf-8").rstrip(),
        ]
        (target / CARD).write_text("\n".join(lines) + "\n", encoding="utf-8")
        text = json.dumps(told, indent=2) + "\n"
        (target / files.PROVENANCE).write_text(text, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``cosmos reproduce-tiny``; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="cosmos reproduce-tiny",
        description="Make the tiny checkpoint that ships with the package from nothing: "
        "demonstrations, autoencoder, policy, evaluation. Two cores take about "
        f"{sum(MINUTES.values())} minutes. The same command goes on after a break.",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of everything it makes")
    parser.add_argument("--seed", type=int, default=0, help="of the trainings (0)")
    parser.add_argument(
        "--rehearsal",
        action="store_true",
        help="every stage as small as it can be: minutes, and a checkpoint that knows nothing",
    )
    options = parse(parser, arguments)
    reproduction = Reproduction(options.output.expanduser(), options.seed, options.rehearsal)

    def make() -> int:
        made = reproduction.run()
        print(f"{made}: a checkpoint like any other; its README.md tells how good it is")
        return 0

    return run(make, GOES_ON)
