"""A long job in stages, each a command of the package; a stage that is done is passed over."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cosmos_policy_ros.core.config import load_yaml
from cosmos_policy_ros.core.errors import ConfigError
from cosmos_policy_ros.model.files import PROVENANCE

PACKAGE = "cosmos_policy_ros"
NOTES = "stages.json"
# Changes that make a training as small as it can be.
REHEARSED_TRAINING = (
    "run.steps=2",
    "run.batch=8",
    "run.micro_batch=8",
    "run.validation_windows=2",
    "data.held_out=0.25",
)
# And an evaluation; every process would load everything for a trial or two.
REHEARSED_EVALUATION = ("trials=1", "conditions=[usual]", "processes=0")
GOES_ON = "interrupted: the same command goes on where it was"
# Each of a training's keeps images and latents of its own, up to 8 GB.
MOST_PROCESSES = 2
PATIENCE = 60.0  # wall s
INTERRUPTED = (-2, 130)  # exit codes after Ctrl-C


class Stages:
    """One folder's stages, and how long each took.

    Attributes:
        minutes: of each stage that is done.
    """

    def __init__(self, output: Path, settings: Mapping[str, Any]) -> None:
        """Open the folder.

        Args:
            output: all stages work in it; made where it is missing.
            settings: what the stages depend on.

        Raises:
            ConfigError: it holds stages with other settings.
        """
        output.mkdir(parents=True, exist_ok=True)
        self._output, self._path = output, output / NOTES
        self._settings = dict(settings)
        self.minutes: dict[str, float] = {}
        if not self._path.is_file():
            return
        notes = load_yaml(self._path)  # JSON is YAML
        self.minutes = notes["minutes"]
        for name, value in self._settings.items():
            if notes["settings"].get(name) != value:
                raise ConfigError(
                    f"{output}: holds a run with {name} {notes['settings'].get(name)!r}, not "
                    f"{value!r}; give another --output"
                )

    def run(self, stages: Mapping[str, Callable[[], None]], expected: Mapping[str, float]) -> None:
        """Do what is left, in order.

        Args:
            stages: by name.
            expected: minutes that each takes.

        Raises:
            ConfigError: a command failed, or the disk refused.
        """
        try:
            self._run(stages, expected)
        except OSError as error:
            raise ConfigError(
                f"{self._output}: {error}; free disk space, and the same command goes on"
            ) from error

    def _run(self, stages: Mapping[str, Callable[[], None]], expected: Mapping[str, float]) -> None:
        for number, (name, stage) in enumerate(stages.items(), 1):
            if name in self.minutes:
                print(f"{number}/{len(stages)} {name}: done before")
                continue
            left = sum(expected[other] for other in stages if other not in self.minutes)
            print(f"{number}/{len(stages)} {name}; about {left:.0f} minutes are left", flush=True)
            began = time.monotonic()
            stage()
            self.minutes[name] = round((time.monotonic() - began) / 60, 1)
            notes = {"settings": self._settings, "minutes": self.minutes}
            self._path.write_text(json.dumps(notes, indent=2) + "\n", encoding="utf-8")

    def command(self, name: str, config: str, folder: str, *more: str) -> None:
        """Run a command of the package in the folder, whose other stages its config names.

        Raises:
            ConfigError: it failed.
            KeyboardInterrupt: it was interrupted.
        """
        arguments = [
            sys.executable,
            "-m",
            f"{PACKAGE}.cli.cosmos",
            name,
            config,
            "--output",
            folder,
        ]
        code = _run([*arguments, *more], self._output)
        if code in INTERRUPTED:
            raise KeyboardInterrupt
        if code:
            raise ConfigError(
                f"{self._output / folder}: 'cosmos {name} {config}' ended with exit code "
                f"{code}; fix what it says, and the same command goes on"
            )

    def train(self, config: str, folder: str, changes: Sequence[str]) -> None:
        """Train, on two cores where there are two, or go on with a training.

        Raises:
            ConfigError: it failed.
            KeyboardInterrupt: it was interrupted; it has kept what it had learned.
        """
        more = ["--resume"] if (self._output / folder / "training").is_dir() else []
        more += ["--processes", str(min(len(os.sched_getaffinity(0)), MOST_PROCESSES))]
        self.command("train", config, folder, *changed(changes), *more)
        # One that is asked to end makes a checkpoint of what it has, and has not failed.
        told = load_yaml(self._output / folder / PROVENANCE)
        if told["steps"] < told["planned_steps"]:
            raise KeyboardInterrupt


def _run(arguments: Sequence[str], folder: Path) -> int:
    process = subprocess.Popen(arguments, cwd=folder)
    try:
        return process.wait()
    except KeyboardInterrupt:
        # It was interrupted too, and keeps what it has; a training finishes its step.
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.terminate()
        raise


def changed(changes: Sequence[str]) -> list[str]:
    """Return the arguments that change keys of a config."""
    return [word for change in changes for word in ("--set", change)]
