"""Trials of a protocol as the operator's page shows them, without a word on who takes part.

What a browser is sent of a blind protocol neither names a contender nor tells one: no decision, no
candidate, no value, no imagined image, until the contenders are unsealed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cosmos_policy_ros.bags.messages import EpisodeMetadata
from cosmos_policy_ros.core.errors import ConfigError, CosmosPolicyError, RolloutError
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.core.task import load_task
from cosmos_policy_ros.episodes.trial_info import read_trial
from cosmos_policy_ros.evaluation import rig_report
from cosmos_policy_ros.evaluation.plan import Job
from cosmos_policy_ros.evaluation.protocol import load_protocol, reference_picture
from cosmos_policy_ros.evaluation.rig_trials import FAULT, FAULTS, Progress, RigTrials, telling
from cosmos_policy_ros.evaluation.tables import spoken
from cosmos_policy_ros.rig.jpeg import to_jpeg

NOT_TOLD = "…"  # in place of what would tell a contender
# Of the self-check: what it finds there is the checkpoint's.
TELLING_CHECKS = ("checkpoint", "images")
UNSEALED_EARLY = "of those made from now on the report says that the operator may have known"


@dataclass(frozen=True)
class TrialsLook:
    """What the disk said last.

    Attributes:
        progress: None before the first look, and where the episodes do not fit the protocol.
        prompt: of the next trial.
        picture: tells the next state's picture from any other; empty where there is none.
        sealed: whether the contenders are not to be shown.
        trouble: why there is no progress, and what to do; empty if nothing is wrong.
    """

    progress: Progress | None = None
    prompt: str = ""
    picture: str = ""
    sealed: bool = True
    trouble: str = ""

    @property
    def job(self) -> Job | None:
        """The next trial; None where it is not known, or all are made."""
        left = self.progress.left if self.progress is not None else ()
        return left[0] if left else None


class PanelTrials:
    """A protocol and its episodes. Methods that read the disk are meant for one thread.

    Attributes:
        protocol: what is to be made.
        rig_trials: what has been made.
        output: folder of pictures and tables.
        seen: the last :meth:`look`; replaced as a whole, and so read by any thread.
    """

    def __init__(self, protocol: str, output: Path | None, root: Path, *, simulated: bool) -> None:
        """Read a protocol.

        Args:
            protocol: a name in ``config/evaluations``, or a file.
            output: folder of pictures and tables; None for one beside ``root``.
            root: folder of the episodes.
            simulated: whether the rig is.

        Raises:
            ConfigError: it is missing or wrong, or one of its tasks is none of this kind of rig.
        """
        self.protocol = load_protocol(protocol)
        kind = "sim" if simulated else "real"
        for name in self.protocol.tasks:
            rigs = load_task(name, config_folder("tasks")).rigs
            if kind not in rigs:
                raise ConfigError(
                    f"protocol {protocol}: task '{name}' is one for a {' or '.join(rigs)} rig, and "
                    f"this rig is {kind}: give another rig or another protocol"
                )
        self._given, self._root = protocol, root
        self.rig_trials = RigTrials(self.protocol, root)
        self.output = output or root.parent / "evaluations" / self.protocol.name
        self.seen = TrialsLook(sealed=self.protocol.blind)
        self._telling = telling(self.protocol)

    # ---------------------------------------------------------------- what reads the disk

    def look(self) -> TrialsLook:
        """Look through the episodes; what is wrong with them is told, not raised."""
        sealed = self.protocol.blind and not (self.output / rig_report.UNSEALED).is_file()
        try:
            progress = self.rig_trials.progress()
            job = progress.left[0] if progress.left else None
            prompt = self.rig_trials.prompt(job) if job else ""
        except CosmosPolicyError as error:
            self.seen = TrialsLook(sealed=sealed, trouble=str(error))
            return self.seen
        self.seen = TrialsLook(progress, prompt, self._stamp(job), sealed)
        return self.seen

    def picture(self) -> bytes:
        """Return the next state's picture as a JPEG file.

        Raises:
            ConfigError: there is none, or it is no picture, and what to do.
        """
        if (job := self.seen.job) is None:
            raise ConfigError("no trial is left whose state could be shown")
        path = reference_picture(self.output, job.state)
        try:
            data = np.frombuffer(path.read_bytes(), np.uint8)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}; {_PHOTOGRAPH}") from error
        pixels = cv2.imdecode(data, cv2.IMREAD_COLOR) if len(data) else None
        if pixels is None:
            raise ConfigError(f"{path}: is no picture; {_PHOTOGRAPH} with --retake")
        return to_jpeg(np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), np.uint8))

    def unseal(self, *, before_the_end: bool) -> list[str]:
        """Note that the contenders are known, write the tables, and return them as Markdown.

        Raises:
            ConfigError: none is made; trials are left and ``before_the_end`` is false, which says
                what it costs; the episodes do not fit the protocol; or the disk refused.
        """
        look = self.look()
        if look.progress is None:
            raise ConfigError(look.trouble)
        left = len(look.progress.left)
        if left == look.progress.total:
            raise ConfigError("no trial is made yet, so that there is no table to show")
        if left and look.sealed and not before_the_end:
            raise ConfigError(f"{left} trials are not made yet: {UNSEALED_EARLY}; confirm it")
        try:
            if self.protocol.blind:
                rig_report.unseal(self.output, look.progress)
            self.output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{self.output}: cannot be written: {error}") from error
        lines = rig_report.write_report(self.protocol, look.progress, self.output)
        self.look()
        return lines

    def _stamp(self, job: Job | None) -> str:
        if job is None:
            return ""
        try:
            changed = reference_picture(self.output, job.state).stat().st_mtime_ns
        except OSError:
            return ""
        return f"{job.state.task}/{job.state.number}/{changed}"

    # ---------------------------------------------------------------- what is told and what not

    def owns(self, metadata: EpisodeMetadata) -> bool:
        """Return whether an episode is a trial of this evaluation."""
        try:
            trial = read_trial(metadata)
        except RolloutError:
            return False
        return trial is not None and trial.evaluation == self.protocol.name

    def hides(self, metadata: EpisodeMetadata) -> bool:
        """Return whether what an episode's policy decided would tell a sealed contender."""
        return self.seen.sealed and self.owns(metadata)

    def veil(self, text: str) -> str:
        """Return a text of a node's without what names a contender, while they are sealed."""
        return self._telling.sub(NOT_TOLD, text) if self.seen.sealed else text

    def veil_check(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return a row of the self-check without what tells a contender."""
        row = {k: self.veil(v) if isinstance(v, str) else v for k, v in row.items()}
        if self.seen.sealed and row["passed"] and row["check"] in TELLING_CHECKS:
            row["found"] = NOT_TOLD
        return row

    def again(self) -> str:
        """Return a sentence on why the last trial is made again; empty where it counts."""
        progress, job = self.seen.progress, self.seen.job
        if progress is None or job is None or progress.waiting or not progress.results:
            return ""
        last = progress.results[-1]
        if not last.crashed or last.key != job.key:
            return ""
        if last.outcome != FAULT:
            return "The last trial does not count and is made again."
        row = 0
        for each in reversed(progress.results):
            if not (each.crashed and each.outcome == FAULT):
                break
            row += 1
        if row < FAULTS:
            return "The last trial ended in a fault: it does not count and is made again."
        return f"{row} trials in a row have ended in a fault, and do not count: mend it first."

    def described(self) -> dict[str, Any]:
        """Return what the page shows of the next trial, and how far the evaluation is."""
        seen, job = self.seen, self.seen.job
        progress = seen.progress
        found: dict[str, Any] = {
            "evaluation": self.protocol.name,
            "sealed": seen.sealed,
            "number": progress.number if progress else 0,
            "total": progress.total if progress else 0,
            "left": len(progress.left) if progress else 0,
            "waiting": len(progress.waiting) if progress else 0,
            "repeated": sum(each.crashed for each in progress.results) if progress else 0,
            "command": f"cosmos trials {self._given} --root {self._root} --output {self.output}",
            "trial": None,
        }
        if job is not None:
            state = job.state
            found["trial"] = {
                "task": state.task,
                "condition": spoken(state.condition),
                "state": state.number,
                "prompt": seen.prompt,
                "setup": state.setup,
                "place": state.place,
                "picture": seen.picture,
                "contender": "" if self.protocol.blind else job.contender,
            }
        return found


_PHOTOGRAPH = "take it by `cosmos protocol`"
