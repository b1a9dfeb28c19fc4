"""``cosmos dataset check``: what a training would make of recordings, before it is begun."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.bags.types import load_types
from cosmos_policy_ros.bags.writer import DISCARDED
from cosmos_policy_ros.cli.import_episodes import add_source_options, source_options
from cosmos_policy_ros.cli.shared import say_count, say_seconds
from cosmos_policy_ros.core.errors import CosmosPolicyError, RolloutError
from cosmos_policy_ros.core.files import replace_text
from cosmos_policy_ros.core.paths import config_folder, package_share
from cosmos_policy_ros.core.untrusted import escaped
from cosmos_policy_ros.dataset.checks import (
    CheckLimits,
    EpisodeReport,
    Expected,
    judge_episode,
    load_check_limits,
)
from cosmos_policy_ros.dataset.motion import Motion, read_motion
from cosmos_policy_ros.dataset.review import (
    count_prompts,
    idle_joints,
    learned_ranges,
    set_warnings,
    with_outliers,
)
from cosmos_policy_ros.dataset.windows import EpisodeWindows
from cosmos_policy_ros.episodes.episode import read_episode
from cosmos_policy_ros.episodes.folders import State, candidates, is_bag, look
from cosmos_policy_ros.episodes.store import EpisodeStore
from cosmos_policy_ros.interop.foreign_episode import ImportOptions, Source
from cosmos_policy_ros.interop.importer import Importer
from cosmos_policy_ros.interop.sources import find_sources
from cosmos_policy_ros.rig.spec import RigSpec, load_rig

REFUSED = "refused"


def add_dataset(parser: argparse.ArgumentParser) -> None:
    """Look at what would be learned from."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    text = (
        "Judge episodes as a training would, before it is begun: GO, or NO-GO with the reasons. "
        "Nothing is changed or kept. A SOURCE is an episode, a folder of episodes, or what 'cosmos "
        "import' takes: that is imported with the options given here, one episode at a time, into "
        "a temporary folder (below $TMPDIR), and judged there. The exit code is 0 if all are GO."
    )
    check = commands.add_parser("check", help="judge episodes before a training", description=text)
    check.add_argument(
        "sources",
        type=Path,
        nargs="+",
        metavar="SOURCE",
        help="episodes, folders of episodes, or recordings that could be imported",
    )
    check.add_argument(
        "--checkpoint",
        help="of what is to learn, a folder or a name in config/models: are its prompts, its "
        "images' shape and its chunk's length those of the episodes?",
    )
    check.add_argument(
        "--histograms", type=Path, metavar="FILE.png", help="draw each joint's states and actions"
    )
    check.add_argument("--json", type=Path, metavar="FILE", help="write all that was found")
    add_source_options(check)
    check.set_defaults(run=_check)


@dataclass(frozen=True)
class _Judge:
    """Judges one episode after the other, all by the same measures.

    Attributes:
        limits: of ``checks.yaml``.
        expected: of the checkpoint, if one is given.
        dt: seconds per step of the checkpoint; None for each rig's own.
        rig: whose limits count; None for each episode's own.
        watch: is told each rig and motion.
    """

    limits: CheckLimits
    expected: Expected | None
    dt: float | None
    rig: RigSpec | None
    watch: Callable[[RigSpec, Motion], None]

    def judge(self, path: Path) -> EpisodeReport:
        """Judge a finished episode; raises RolloutError where it cannot be read."""
        windows = EpisodeWindows(read_episode(path), self.dt)
        own = windows.rig.rig
        motion = read_motion(windows, self.dt or own.rates.dt)
        report = judge_episode(windows, motion, self.limits, expected=self.expected, rig=self.rig)
        self.watch(self.rig or own, motion)
        return report

    def judge_import(
        self, source: Source, choices: ImportOptions, types: Typestore
    ) -> EpisodeReport:
        """Judge what an import makes of a source; nothing of it stays."""
        with tempfile.TemporaryDirectory(prefix="cosmos-check-") as folder:
            store = EpisodeStore(Path(folder), types)
            return self.judge(Importer(store, types, choices).take(source).path)


@dataclass
class _Found:
    """What was found, by the name of each episode's source."""

    reports: dict[str, EpisodeReport] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    discarded: int = 0


def _check(options: argparse.Namespace) -> int:
    choices = source_options(options)
    limits = load_check_limits()
    expected, dt = _expected(options.checkpoint) if options.checkpoint else (None, None)
    rig = load_rig(options.rig, config_folder("rigs")) if options.rig else None
    histograms = _histograms() if options.histograms else None
    judge = _Judge(limits, expected, dt, rig, histograms.add if histograms else _ignore)
    found, types = _Found(), load_types(package_share() / "msg")
    for source in options.sources:
        for name, act in _episodes(source.expanduser(), judge, choices, types, found):
            try:
                found.reports[name] = report = act()
            except Exception as error:  # a fault of ours with one must not cost the others
                ours = isinstance(error, CosmosPolicyError)
                text = str(error) if ours else f"{type(error).__name__}: {error}; please report it"
                found.refused[name] = text.removeprefix(f"{name}: ")
                print(f"{escaped(name)}: NO-GO: {escaped(found.refused[name])}", flush=True)
            else:
                print(escaped(_line(name, report)), flush=True)
    before, found.reports = found.reports, with_outliers(found.reports, limits)
    for name, report in found.reports.items():
        for finding in report.warnings[len(before[name].warnings) :]:
            print(escaped(f"{name}: {finding.text}"))
    print("\n".join(_summary(found, limits)))
    good = [report for report in found.reports.values() if report.go]
    if histograms is not None and found.reports:
        histograms.draw(options.histograms.expanduser(), idle_joints(good, limits))
        print(f"{escaped(str(options.histograms))}: histograms of the states and actions")
    if options.json:
        _write_json(options.json.expanduser(), found, limits)
    return int(len(good) < len(found.reports) + len(found.refused) or not good)


def _ignore(rig: RigSpec, motion: Motion) -> None:
    """Take no histograms."""


def _histograms() -> Any:
    """Return an empty set of histograms; only this needs a library for drawing."""
    try:
        from cosmos_policy_ros.dataset.histograms import JointHistograms
    except ModuleNotFoundError as error:
        raise RolloutError(f"--histograms needs {error.name}: pip install {error.name}") from error
    return JointHistograms()


def _expected(name: str) -> tuple[Expected, float]:
    """Return what a checkpoint expects, and its seconds per step; raises CheckpointError."""
    from cosmos_policy_ros.model import files
    from cosmos_policy_ros.model.config import read_config
    from cosmos_policy_ros.model.text import load_text
    from cosmos_policy_ros.training.dataset_index import expected_of
    from cosmos_policy_ros.training.start import start_folder

    folder = start_folder(name)
    model = read_config(folder / files.CONFIG)
    text = load_text(folder / files.TEXT, model.text_tokens, model.transformer.text_width)
    return expected_of(model, text), model.dt


def _episodes(
    source: Path, judge: _Judge, choices: ImportOptions, types: Typestore, found: _Found
) -> Iterator[tuple[str, Callable[[], EpisodeReport]]]:
    """Yield the name of each episode of a source, and what judges it."""
    folders: list[Path] = []
    recordings: list[Source] = []
    try:
        if source.is_dir():
            bags = [source] if is_bag(source) else candidates(source)
            folders = [folder for folder in bags if look(folder).state is not State.FOREIGN]
        if folders != [source]:
            recordings = [
                s for s in find_sources(source) if not {s.path, s.path.parent} & {*folders}
            ]
    except (RolloutError, OSError) as error:
        if not folders:
            found.refused[str(source)] = text = str(error).removeprefix(f"{source}: ")
            print(f"{escaped(str(source))}: NO-GO: {escaped(text)}", flush=True)
    for folder in folders:
        if look(folder).state is State.DISCARDED or folder.name.endswith(DISCARDED):
            found.discarded += 1  # not a fault to report: an operator discarded it
        else:
            yield str(folder), partial(judge.judge, folder)
    for recording in recordings:
        yield str(recording.path), partial(judge.judge_import, recording, choices, types)


# ---------------------------------------------------------------- for people, and for programs


def _line(name: str, report: EpisodeReport) -> str:
    """Return what is told of an episode at once."""
    verdict = "GO" if report.go else "NO-GO"
    told = [f"{name}: {verdict}, {report.steps} steps, {say_seconds(report.seconds)}"]
    told += [finding.text for finding in report.reasons]
    told += [f"warning: {finding.text}" for finding in report.warnings]
    return "; ".join([*told, *report.notes])


def _summary(found: _Found, limits: CheckLimits) -> Iterator[str]:
    reports = list(found.reports.values())
    good = [report for report in reports if report.go]
    yield ""
    yield f"{len(good)} of {say_count(len(reports) + len(found.refused), 'episode')} GO"
    if found.discarded:
        yield f"not looked at: {say_count(found.discarded, 'discarded episode')}"
    reasons = Counter(c for r in reports for c in {finding.check for finding in r.reasons})
    reasons[REFUSED] = len(found.refused)
    warnings = Counter(c for r in reports for c in {finding.check for finding in r.warnings})
    for word, counts in (("NO-GO", reasons), ("warnings", warnings)):
        if listed := ", ".join(f"{check} {count}" for check, count in counts.items() if count):
            yield f"{word} by check, in episodes: {listed}"
    if not good:
        return
    seconds = [report.seconds for report in good]
    yield (
        f"length of the GO ones: median {np.median(seconds):.1f} s, {min(seconds):.1f} to "
        f"{max(seconds):.1f} s, {say_seconds(sum(seconds))} in all"
    )
    yield from (f"prompt in {count}: {prompt}" for prompt, count in count_prompts(good))
    for role in dict.fromkeys(role for report in good for role in report.sizes):
        sizes = Counter(size for report in good for size in report.sizes.get(role, ()))
        shapes = ", ".join(f"{rows}x{cols} in {count}" for (rows, cols), count in sizes.items())
        yield f"{role}: {shapes} (rows x columns)"
    yield from (f"warning: {finding.text}" for finding in set_warnings(good, limits))
    yield from _table(good, limits)


def _table(good: Sequence[EpisodeReport], limits: CheckLimits) -> Iterator[str]:
    """Yield the statistics that a training would take from these episodes, a joint a line."""
    ranges = learned_ranges(good, limits)
    if ranges is None:
        return
    joints, idle = good[0].joints, idle_joints(good, limits)
    width = max(map(len, joints))
    yield ""
    columns = ("state: min", "max", "std", "action: min", "max", "std")
    sizes = (12, 8, 8, 14, 8, 8)
    heads = (f"{head:>{size}}" for head, size in zip(columns, sizes, strict=True))
    yield f"{'':{width}}{''.join(heads)}"
    for at, joint in enumerate(joints):
        state, action = (
            [ranges.content[f"{what}_{name}"][at] for name in ("min", "max", "std")]
            for what in ("proprio", "actions")
        )
        cells = "".join(
            f"{value:{size}.3f}" for value, size in zip((*state, *action), sizes, strict=True)
        )
        yield f"{joint:{width}}{cells}{'  idle' if joint in idle else ''}"
    if ranges.text:
        yield ranges.text


def _write_json(path: Path, found: _Found, limits: CheckLimits) -> None:
    good = [report for report in found.reports.values() if report.go]
    ranges = learned_ranges(good, limits)
    content = {
        "episodes": {
            **{name: {"go": r.go, **asdict(r)} for name, r in found.reports.items()},
            **{name: {"go": False, REFUSED: why} for name, why in found.refused.items()},
        },
        "warnings": [asdict(finding) for finding in set_warnings(good, limits)],
        "statistics": None if ranges is None else ranges.content,
        "widened": [] if ranges is None else ranges.widened,
    }
    try:
        replace_text(path, json.dumps(content, indent=1) + "\n")
    except OSError as error:
        raise RolloutError(f"{path}: cannot be written: {error}") from error
