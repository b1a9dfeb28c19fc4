"""``cosmos reproduce-tiny``, ``ablate``, ``improve`` …: long experiments, and what they end with.

Their stages are commands of this program in the makefiles of ``config/experiments``.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

from cosmos_policy_ros.cli.shared import GOES_ON, positive
from cosmos_policy_ros.core.config import load_yaml
from cosmos_policy_ros.core.errors import CheckpointError, ConfigError, TrainingError
from cosmos_policy_ros.core.files import replace_text
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.core.task import load_task
from cosmos_policy_ros.core.untrusted import shown
from cosmos_policy_ros.model import files

SETTINGS = "settings.json"
PROGRAM = f"{shlex.quote(sys.executable)} -m cosmos_policy_ros.cli.cosmos"


def add_reproduce_tiny(parser: argparse.ArgumentParser) -> None:
    """Make the tiny checkpoint that ships with the package from nothing.

    Demonstrations, autoencoder, policy and evaluation: two cores take about 133 minutes. The same
    command goes on after a break.
    """
    _add_output(parser)
    parser.add_argument("--seed", type=int, default=0, help="of the trainings (0)")

    def reproduce(options: argparse.Namespace) -> int:
        _make("reproduce-tiny", options, SEED=str(options.seed))
        made = options.output / "tiny"
        print(f"{made}: a checkpoint like any other; its README.md tells how good it is")
        return 0

    parser.set_defaults(run=reproduce)


def add_ablate(parser: argparse.ArgumentParser) -> None:
    """Train the tiny policy with less and less to learn, and compare in closed loop.

    Without auxiliary targets, without value samples, and with policy samples only, each as long as
    the full one. The same command goes on after a break.
    """
    parser.add_argument(
        "--reproduced",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="of reproduce-tiny: its demonstrations and autoencoder are used",
    )
    _add_output(parser)
    parser.add_argument("--steps", type=positive, default=1500, help="of each training (1500)")
    parser.add_argument("--seed", type=int, default=0, help="of each training (0)")

    def ablate(options: argparse.Namespace) -> int:
        reproduced = options.reproduced.expanduser().resolve()
        for name in ("autoencoder", "demonstrations"):
            if not (reproduced / name).is_dir():
                raise ConfigError(f"{reproduced / name}: is missing; run reproduce-tiny first")
        settings = {"STEPS": str(options.steps), "SEED": str(options.seed)}
        _make("ablate", options, REPRODUCED=str(reproduced), **settings)
        print((options.output / "table.md").read_text(encoding="utf-8"), end="")
        return 0

    parser.set_defaults(run=ablate)


def add_improve(parser: argparse.ArgumentParser) -> None:
    """Let a checkpoint try on the simulated rig, and learn planning from its scored rollouts.

    A world model is fine-tuned on them, and the checkpoint is compared with and without planning.
    Two cores take about 71 minutes. The same command goes on after a break.
    """
    parser.add_argument(
        "--checkpoint", default="tiny", help="a folder, or a name in config/models (tiny)"
    )
    _add_output(parser)
    parser.add_argument(
        "--rollouts", type=positive, default=100, help="per condition, to learn from (100)"
    )
    parser.add_argument(
        "--trials", type=positive, default=100, help="per condition and contender, to compare (100)"
    )
    parser.add_argument(
        "--demonstrations",
        type=Path,
        nargs="+",
        default=(),
        metavar="FOLDER",
        help="those that the checkpoint learned from; 60 are made where none are given",
    )

    def improve(options: argparse.Namespace) -> int:
        from cosmos_policy_ros.evaluation.contenders import checkpoint_folder

        folders = [str(path.expanduser().resolve()) for path in options.demonstrations]
        _make(
            "improve",
            options,
            CHECKPOINT=str(checkpoint_folder(options.checkpoint).resolve()),
            ROLLOUTS=str(options.rollouts),
            TRIALS=str(options.trials),
            DEMONSTRATIONS=json.dumps(folders) if folders else "",  # JSON is YAML
        )
        print((options.output / "report.md").read_text(encoding="utf-8"))
        print(f"with plots: {options.output / 'report.html'}")
        return 0

    parser.set_defaults(run=improve)


def add_compare_planners(parser: argparse.ArgumentParser) -> None:
    """Train planners on fewer rollouts and with other value functions, and compare them.

    V(s'), Q(s, a) and V(s, a, s'), and 25, 50 and 100 rollouts, on the same scenes. Two cores take
    hours. The same command goes on after a break.
    """
    parser.add_argument(
        "--improved",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="of improve: its rollouts are learned from, and its planner takes part",
    )
    _add_output(parser)
    parser.add_argument("--steps", type=positive, default=600, help="of each training (600)")
    parser.add_argument(
        "--trials", type=positive, default=100, help="per condition and contender (100)"
    )

    def compare(options: argparse.Namespace) -> int:
        improved = options.improved.expanduser().resolve()
        for name in (SETTINGS, "rollouts", "planner"):
            if not (improved / name).exists():
                raise ConfigError(f"{improved / name}: is missing; run improve first")
        before = load_yaml(improved / SETTINGS)  # JSON is YAML
        made = improved / "demonstrations" / "rollouts"
        demonstrations = json.dumps([str(made / name) for name in ("red", "blue")])
        _make(
            "planners",
            options,
            IMPROVED=str(improved),
            CHECKPOINT=before["CHECKPOINT"],
            DEMONSTRATIONS=before["DEMONSTRATIONS"] or demonstrations,
            PLANNING=str(config_folder("planning")),
            STEPS=str(options.steps),
            TRIALS=str(options.trials),
        )
        print((options.output / "evaluation/table.md").read_text(encoding="utf-8"), end="")
        return 0

    parser.set_defaults(run=compare)


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output",
        type=lambda text: Path(text).expanduser(),
        required=True,
        help="folder of everything it makes",
    )
    parser.add_argument(
        "--rehearsal",
        action="store_true",
        help="every stage as small as it can be: minutes, and nothing is learned",
    )
    parser.set_defaults(interrupted=GOES_ON)


def _make(name: str, options: argparse.Namespace, **settings: str) -> None:
    """Run what is left of an experiment with ``make`` in its output folder.

    Raises:
        ConfigError: a stage failed, or the folder holds one with other settings.
    """
    settings["REHEARSAL"] = "1" if options.rehearsal else ""
    remembered = options.output / SETTINGS
    before = load_yaml(remembered) if remembered.is_file() else settings  # JSON is YAML
    for key, value in settings.items():
        if before.get(key) != value:
            raise ConfigError(
                f"{options.output}: holds a run with {key.lower()} {before.get(key) or 'none'}, "
                f"not {value or 'none'}; give another --output"
            )
    # Through the environment, where make expands no character of a path.
    environment = {**os.environ, **settings, "COSMOS": PROGRAM}
    folder = config_folder("experiments")
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        replace_text(remembered, json.dumps(settings, indent=2) + "\n")
        command = ["make", f"--include-dir={folder}", f"--file={folder / name}.mk"]
        process = subprocess.Popen(command, cwd=options.output, env=environment)
    except FileNotFoundError as error:
        raise ConfigError("'make' is not found; install it: sudo apt-get install make") from error
    except OSError as error:
        raise ConfigError(f"{options.output}: cannot be written: {error}") from error
    try:
        code = process.wait()
    except KeyboardInterrupt:
        # A terminal has interrupted make and the stage, too; a training finishes its step.
        process.wait()
        raise
    if code:
        raise ConfigError(
            f"{options.output}: a stage failed; fix what it says, and the same command goes on"
        )


def add_held_out(parser: argparse.ArgumentParser) -> None:
    """Compare trained checkpoints on the demonstrations that they were not trained on.

    A training that has not made all its steps is refused.
    """
    parser.add_argument("checkpoints", type=Path, nargs="+", metavar="FOLDER", help="to compare")
    parser.set_defaults(run=_held_out)


def _held_out(options: argparse.Namespace) -> int:
    rows = []
    for folder in options.checkpoints:
        told = load_yaml(folder / files.PROVENANCE)  # JSON is YAML
        if told["steps"] < told["planned_steps"]:
            raise TrainingError(
                f"{folder}: the training was ended after {told['steps']} of "
                f"{told['planned_steps']} steps; train --resume goes on with it"
            )
        error = told["held_out"].get("action_l1")
        said = "none held out" if error is None else f"{error:.4f}"
        rows.append(f"| {folder.name.replace('_', ' ')} | {told['samples']} | {said} |")
    print("| | samples | chunks on held-out demonstrations, mean absolute error |")
    print("|---|---|---|")
    print("\n".join(rows))
    return 0


def add_round(parser: argparse.ArgumentParser) -> None:
    """Write a trained checkpoint anew in half precision, with the prompts that it was trained on.

    The others that it began with are left out where a task or prompts are given.
    """
    parser.add_argument("source", type=Path, help="the checkpoint folder that a training made")
    parser.add_argument("target", type=Path, help="the folder to make")
    kept = parser.add_mutually_exclusive_group()
    kept.add_argument("--task", help="a name in config/tasks, or a YAML file")
    kept.add_argument("--prompts", nargs="+", help="in the words of the training")
    parser.set_defaults(run=_round)


def _round(options: argparse.Namespace) -> int:
    from cosmos_policy_ros.model.config import read_config
    from cosmos_policy_ros.model.text import load_text, save_text
    from cosmos_policy_ros.training.saving import CARD, copy_file, write_rounded

    source, target = options.source, options.target
    target.mkdir(exist_ok=True)
    for name in (files.CONFIG, files.STATISTICS):
        copy_file(source / name, target / name)
    config = read_config(source / files.CONFIG)
    text = load_text(source / files.TEXT, config.text_tokens, config.transformer.text_width)
    prompts = options.prompts or tuple(text.embeddings)
    if options.task is not None:
        prompts = load_task(options.task, config_folder("tasks")).prompts
    if unknown := [shown(prompt) for prompt in prompts if prompt not in text.embeddings]:
        raise CheckpointError(
            f"{source}: has no embedding of '{unknown[0]}'; it has "
            f"{', '.join(map(shown, text.embeddings))}"
        )
    save_text(target / files.TEXT, {prompt: text.embeddings[prompt] for prompt in prompts})
    write_rounded(source, target)
    # The card and the provenance name the digest, which is another one now.
    told = load_yaml(source / files.PROVENANCE)
    before, told["digest"] = told["digest"], files.digest(target)
    card = (source / CARD).read_text(encoding="utf-8").replace(before, told["digest"])
    card = card.replace(f"# {source.name}", f"# {target.name}", 1)
    replace_text((target / CARD), card)
    written = json.dumps(told, indent=2) + "\n"
    replace_text((target / files.PROVENANCE), written)
    print(f"{target}: rounded to float16, digest {told['digest'][:12]}")
    return 0


def add_report(parser: argparse.ArgumentParser) -> None:
    """Measure whether planning can help, and report it beside a comparison with and without it.

    Proposals must differ, values must tell good from bad, futures must be right: all measured on
    rollouts that neither checkpoint learned from. Written are report.md and report.html,
    preconditions.json and imagination.png.
    """
    parser.add_argument("comparison", type=Path, help="the --output of an evaluation")
    parser.add_argument("--policy", required=True, help="a folder, or a name in config/models")
    parser.add_argument("--world-model", required=True, help="a folder, or a name in config/models")
    parser.add_argument("--rollouts", type=Path, required=True, help="folder of scored episodes")
    parser.add_argument("--output", type=Path, required=True, help="the report, without a suffix")
    parser.set_defaults(run=_report)


def _report(options: argparse.Namespace) -> int:
    import numpy as np

    from cosmos_policy_ros.dataset.contact_sheet import save_sheet
    from cosmos_policy_ros.evaluation.contenders import checkpoint_folder
    from cosmos_policy_ros.evaluation.evaluate import TRIALS
    from cosmos_policy_ros.evaluation.report import (
        imagination_sheet,
        measure_preconditions,
        scored,
        write_report,
    )
    from cosmos_policy_ros.model.policy import CosmosPolicy

    policy = CosmosPolicy.load(checkpoint_folder(options.policy))
    world_model = CosmosPolicy.load(checkpoint_folder(options.world_model))
    data, dataset_index = scored(options.rollouts, policy)
    both = {"imagined before": policy, "imagined after": world_model}
    steps = policy.checkpoint.config.denoising_steps
    sheet = imagination_sheet(both, data, dataset_index, steps)
    imagination = options.output.with_name("imagination.png")
    save_sheet(sheet, imagination)
    found = measure_preconditions(policy, world_model, data, dataset_index)
    preconditions = options.output.with_name("preconditions.json")
    text = json.dumps(found, indent=2, default=np.ndarray.tolist)
    replace_text(preconditions, text + "\n")
    write_report(options.output, options.comparison / TRIALS, preconditions, imagination)
    return 0
