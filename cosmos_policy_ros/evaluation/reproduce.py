"""``scripts/reproduce_tiny``: the checkpoint that ships with the package, from nothing.

Demonstrations, autoencoder, policy and evaluation are the package's own commands with the package's
own configs, run in one folder. A stage that is done is passed over, and one that was killed goes on
where it was; only the autoencoder begins again.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from cosmos_policy_ros.errors import ConfigError, CosmosPolicyError
from cosmos_policy_ros.evaluation.evaluate_command import TABLE
from cosmos_policy_ros.model import files
from cosmos_policy_ros.rig.config import load_yaml
from cosmos_policy_ros.training.export import CARD, write_tensors
from cosmos_policy_ros.training.start import copy_file

PACKAGE = "cosmos_policy_ros"
CHECKPOINT = "tiny"  # the folder that comes out
NOTES = "stages.json"  # minutes of each stage that is done
# On two cores of 2020; what is asked for is at most three hours.
MINUTES = {"demonstrations": 12, "autoencoder": 14, "policy": 70, "checkpoint": 1, "evaluation": 20}

REHEARSED_AUTOENCODER = ("steps=2", "moments=16", "data.held_out=0.25")
REHEARSED_POLICY = (
    "run.steps=2",
    "run.batch=8",
    "run.micro_batch=8",
    "run.judged_windows=2",
    "data.held_out=0.25",
)


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
            ConfigError: a stage failed, or the folder holds a run with another seed.
        """
        self.output.mkdir(parents=True, exist_ok=True)
        notes = self._notes()
        stages: dict[str, Callable[[], None]] = {
            "demonstrations": self._demonstrations,
            "autoencoder": self._autoencoder,
            "policy": self._policy,
            "checkpoint": self._checkpoint,
            "evaluation": self._evaluation,
        }
        for number, (name, stage) in enumerate(stages.items(), 1):
            if name in notes["minutes"]:
                print(f"{number}/{len(stages)} {name}: done before")
                continue
            left = sum(MINUTES[other] for other in stages if other not in notes["minutes"])
            print(f"{number}/{len(stages)} {name}; about {left} minutes are left", flush=True)
            began = time.monotonic()
            stage()
            notes["minutes"][name] = round((time.monotonic() - began) / 60, 1)
            (self.output / NOTES).write_text(json.dumps(notes, indent=2) + "\n", encoding="utf-8")
        self._finish_card(notes["minutes"])
        return self.output / CHECKPOINT

    def _notes(self) -> dict[str, Any]:
        path = self.output / NOTES
        if not path.is_file():
            return {"seed": self.seed, "rehearsal": self.rehearsal, "minutes": {}}
        notes: dict[str, Any] = load_yaml(path)  # JSON is YAML
        for name in ("seed", "rehearsal"):
            if notes[name] != getattr(self, name):
                raise ConfigError(
                    f"{self.output}: holds a run with {name} {notes[name]}, not "
                    f"{getattr(self, name)}; give another --output"
                )
        return notes

    def _demonstrations(self) -> None:
        few = ["--trials", "4"] if self.rehearsal else []
        self._command("evaluation.evaluate_command", "demonstrations", "demonstrations", *few)

    def _autoencoder(self) -> None:
        changes = [f"seed={self.seed}", *(REHEARSED_AUTOENCODER if self.rehearsal else ())]
        self._command("training.autoencoder_command", "tiny", "autoencoder", *_set(changes))

    def _policy(self) -> None:
        begun = (self.output / "policy" / "training").is_dir()
        changes = [f"run.seed={self.seed}", *(REHEARSED_POLICY if self.rehearsal else ())]
        more = ["--resume"] if begun else []
        self._command("training.command", "tiny_base", "policy", *_set(changes), *more)

    def _checkpoint(self) -> None:
        """Write what the training made in half precision."""
        source, target = self.output / "policy", self.output / CHECKPOINT
        target.mkdir(exist_ok=True)
        for name in files.REQUIRED:
            copy_file(source / name, target / name)
        for name in files.WEIGHTS:
            write_tensors(load_file(source / name), torch.float16, target / name)

    def _evaluation(self) -> None:
        folder = str((self.output / CHECKPOINT).resolve())
        few = ["--trials", "1"] if self.rehearsal else []
        more = ["--checkpoint", folder, *few]
        self._command("evaluation.evaluate_command", "tiny", "evaluation", *more)

    def _finish_card(self, minutes: dict[str, float]) -> None:
        source, target = self.output / "policy", self.output / CHECKPOINT
        took = ", ".join(f"{name} {value:g}" for name, value in minutes.items())
        lines = [
            (source / CARD).read_text(encoding="utf-8").rstrip(),
            "",
            "## How it was made",
            "",
            f"`scripts/reproduce_tiny --seed {self.seed}`, on {platform.processor() or 'a CPU'} "
            f"({platform.machine()}); minutes: {took}. The weights are rounded to float16.",
            "",
            "## Closed loop",
            "",
            (self.output / "evaluation" / TABLE).read_text(encoding="utf-8").rstrip(),
        ]
        (target / CARD).write_text("\n".join(lines) + "\n", encoding="utf-8")
        shutil.copyfile(source / files.PROVENANCE, target / files.PROVENANCE)

    def _command(self, module: str, config: str, folder: str, *more: str) -> None:
        arguments = [sys.executable, "-m", f"{PACKAGE}.{module}", config, "--output", folder]
        # Configs name the other stages' folders as seen from the output.
        done = subprocess.run([*arguments, *more], cwd=self.output, check=False)
        if done.returncode == -2 or done.returncode == 130:
            raise KeyboardInterrupt
        if done.returncode:
            raise ConfigError(
                f"{self.output / folder}: '{module} {config}' ended with exit code "
                f"{done.returncode}; mend what it says, and the same command goes on"
            )


def _set(changes: Sequence[str]) -> list[str]:
    return [word for change in changes for word in ("--set", change)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``scripts/reproduce_tiny``; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="reproduce_tiny",
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
    options = parser.parse_args(arguments)
    run = Reproduction(options.output.expanduser(), options.seed, options.rehearsal)
    try:
        made = run.run()
    except (CosmosPolicyError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted: the same command goes on", file=sys.stderr)
        return 130
    print(f"{made}: a checkpoint like any other; its README.md tells how good it is")
    return 0
