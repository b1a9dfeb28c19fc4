"""What trials at a rig add up to: what they can find, said before, and the tables at the end."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from statistics import median

import yaml

from cosmos_policy_ros.core.config import load_yaml
from cosmos_policy_ros.core.errors import ConfigError
from cosmos_policy_ros.core.files import replace_text, replacing
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.core.task import load_task
from cosmos_policy_ros.evaluation.protocol import TrialProtocol
from cosmos_policy_ros.evaluation.results import Result
from cosmos_policy_ros.evaluation.rig_trials import Progress
from cosmos_policy_ros.evaluation.significance import detectable, paired, states_needed
from cosmos_policy_ros.evaluation.tables import (
    as_csv,
    comparison,
    effort,
    picture,
    sensitivity,
    table_by_task,
)

UNSEALED = "unsealed.yaml"
ASSUMED_SPREAD = 40.0
"""Points by which two contenders' scores on a state differ from their mean difference: of a rubric
of five stages, some 30 where both reach most of them and 50 where success is a coin."""
LAYING_OUT = 60.0  # s that a person takes between two trials, before any were made
DIFFERENCES = (5.0, 10.0, 20.0)  # points, whose number of states is told


def outlook(protocol: TrialProtocol, progress: Progress) -> list[str]:
    """Return how many trials there are, how long they take, and which differences they can find."""
    contenders, states = len(protocol.contenders), len(protocol.states())
    made = progress.total - len(progress.left)
    faults = sum(result.crashed for result in progress.results)
    lines = [
        f"{states} initial states, {contenders} contenders: {progress.total} trials, {made} made"
        + (f", {faults} repeated after a fault" if faults else ""),
    ]
    if progress.left:
        # Before the first trial: the whole time that each task allows.
        took = [r.seconds for r in progress.results if not r.crashed]
        limits = {
            task: load_task(task, config_folder("tasks")).time_limit for task in protocol.tasks
        }
        seconds = sum(median(took) if took else limits[j.state.task] for j in progress.left)
        hours = (seconds + LAYING_OUT * len(progress.left)) / 3600
        lines.append(
            f"about {hours:.1f} hours are left, {LAYING_OUT:g} s to lay out each of them included"
        )
    if contenders > 1:
        lines.append(_can_find(protocol, progress.results, states))
    return lines


def _can_find(protocol: TrialProtocol, results: Sequence[Result], states: int) -> str:
    names = [contender.name for contender in protocol.contenders]
    measured = [paired(results, name, names[0]) for name in names[1:]]
    spreads = [each.spread for each in measured if each.states > 4 and not math.isnan(each.spread)]
    spread, source = max(spreads, default=0.0), "so far"
    if not spread:
        spread, source = ASSUMED_SPREAD, "an assumption, until there are trials"
    needed = ", ".join(f"{d:g} points take {states_needed(d, spread)}" for d in DIFFERENCES)
    return (
        f"{states} states find a difference of {detectable(states, spread):.0f} points between two "
        f"contenders' mean scores four times in five, where the states' differences scatter by "
        f"{spread:.0f} points ({source}); {needed} states"
    )


def unseal(output: Path, progress: Progress) -> None:
    """Note that the contenders are known from now on; an earlier note stays.

    Raises:
        ConfigError: the disk refused.
    """
    path = output / UNSEALED
    if path.is_file():
        return
    made = progress.total - len(progress.left)
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    try:
        output.mkdir(parents=True, exist_ok=True)
        replace_text(path, yaml.safe_dump({"when": now, "trials": made, "of": progress.total}))
    except OSError as error:
        raise ConfigError(f"{output}: cannot be written: {error}") from error


def report(protocol: TrialProtocol, progress: Progress, output: Path) -> list[str]:
    """Return the tables as Markdown lines.

    Raises:
        ConfigError: the contenders are still sealed.
    """
    if protocol.blind and not (output / UNSEALED).is_file():
        raise ConfigError(
            f"{output}: the contenders are sealed until all trials are made ({len(progress.left)} "
            "are left); --unseal opens them now, and the report will say so"
        )
    names = [contender.name for contender in protocol.contenders]
    results = progress.results
    return [
        f"# {protocol.name}: {len(protocol.states())} initial states, {len(names)} contenders",
        "",
        _blinding(protocol, output),
        "",
        "Mean score of 100 (95 % bootstrap interval); successes (95 % Wilson interval). In the",
        "full rows every trial of a task weighs the same; the average is that of the tasks.",
        "",
        *table_by_task(results, names, protocol.tasks, protocol.conditions),
        "",
        *comparison(results, names),
        "",
        *sensitivity(results, names),
        "",
        *effort(results, names),
    ]


def _blinding(protocol: TrialProtocol, output: Path) -> str:
    if not protocol.blind:
        return "The operator knew which contender ran."
    known = load_yaml(output / UNSEALED)
    if known.get("trials") == known.get("of"):
        return "The operator did not know which contender ran."
    return (
        f"The contenders were unsealed after {known.get('trials')} of {known.get('of')} trials, on "
        f"{known.get('when')}: the operator may have known which one ran in those after it."
    )


def write_report(protocol: TrialProtocol, progress: Progress, output: Path) -> list[str]:
    """Write the tables as Markdown, CSV and PNG, and a list of all trials; return the Markdown.

    Raises:
        ConfigError: the contenders are still sealed, or the disk refused.
    """
    lines = report(protocol, progress, output)
    names = [contender.name for contender in protocol.contenders]
    every = io.StringIO()
    rows = csv.writer(every, lineterminator="\n")
    rows.writerow(
        ["contender", "task", "condition", "state", "score", "success", "crashed", "episode"]
    )
    for r in progress.results:
        told = [f"{r.score:g}", int(r.success), int(r.crashed), Path(r.episode).name]
        rows.writerow([r.contender, r.task, r.condition, r.state, *told])
    try:
        output.mkdir(parents=True, exist_ok=True)
        replace_text(output / "table.md", "\n".join(lines) + "\n")
        replace_text(output / "table.csv", as_csv(progress.results, names))
        replace_text(output / "trials.csv", every.getvalue())
        with replacing(output / "table.png") as path:
            path.write_bytes(picture(progress.results, names, protocol.conditions))
    except OSError as error:
        raise ConfigError(f"{output}: cannot be written: {error}") from error
    return lines
