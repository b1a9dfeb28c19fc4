"""Recorded episodes before the live safety gate: their decisions, or what was demonstrated."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from cosmos_policy_ros.bags.mcap_file import VERIFY
from cosmos_policy_ros.core.errors import ObservationError, RolloutError
from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.core.untrusted import reading
from cosmos_policy_ros.dataset.playback import stamp_ns
from cosmos_policy_ros.dataset.windows import EpisodeWindows
from cosmos_policy_ros.episodes.episode import read_episode, read_messages
from cosmos_policy_ros.episodes.topics import POLICY_NODE
from cosmos_policy_ros.rig.chunk import Blend, TimedChunk
from cosmos_policy_ros.rig.run import LATE
from cosmos_policy_ros.rig.safety_gate import GateContext, GateResult, SafetyGate
from cosmos_policy_ros.rig.spec import RigSpec

REMOTE = "remote"  # what a remote policy's decisions name as their engine


@dataclass
class Checked:
    """The gate's results on one episode."""

    path: Path
    decided: bool  # True for a policy's decisions, False for chunks cut from a demonstration
    judged: int = 0
    refused: Counter[str] = field(default_factory=Counter)  # per rule
    first: str = ""  # refusal, in the gate's words
    changed: list[str] = field(default_factory=list)  # results that are not the recorded ones
    skipped: int = 0  # since an arm had not reported
    # Least distance [m] of two links, or a link and the table; empty without a geometry.
    closest: dict[tuple[str, str], float] = field(default_factory=dict)

    def add(self, result: GateResult, closest: dict[tuple[str, str], float]) -> None:
        """Count a result, and how close the chunk's links come."""
        for names, distance in closest.items():
            self.closest[names] = min(distance, self.closest.get(names, distance))
        self.judged += 1
        if not result.accepted:
            self.refused[result.rule] += 1
            self.first = self.first or result.message


def check_episode(path: Path, rig: RigSpec | None = None) -> Checked:
    """Judge an episode's decisions; of one without, what was demonstrated, chunk by chunk.

    Args:
        path: a finished episode.
        rig: whose limits count; by default those of the episode's own rig.

    Raises:
        RolloutError: the bag is unfinished, unreadable, damaged, or no episode.
    """
    # The bag defines its messages itself, and may have put anything into them.
    with reading(path, "an episode", RolloutError, VERIFY):
        windows = EpisodeWindows(read_episode(path))
        names = [windows.rig.topic(f"{POLICY_NODE}/{name}") for name in ("decision", "gate_result")]
        recorded: dict[str, list[Any]] = {name: [] for name in names}
        for topic, _, message in read_messages(path, names):
            recorded[topic].append(message)
        # Each decision is published before its gate result, so they belong together by their order.
        pairs = list(zip(*recorded.values(), strict=False))
        found = Checked(path, decided=bool(pairs))
        if not pairs:
            _check_steps(found, windows, SafetyGate(rig or windows.rig.rig))
            return found
        judging = _executing(rig or windows.rig.rig, pairs)
        if judging.rates.dt != windows.rig.rig.rates.dt:
            windows = EpisodeWindows(
                windows.episode, judging.rates.dt, windows.indexed, windows.sent
            )
        _check_decisions(found, windows, judging, pairs, compare=rig is None)
        return found


def _executing(rig: RigSpec, pairs: list[tuple[Any, ...]]) -> RigSpec:
    """Return the rig as it executed the chunks of an episode.

    A remote policy's are of another length and rate than the rig's file says; what passed the gate
    tells which.
    """
    for decision, result in pairs:
        if result.accepted and decision.engine == REMOTE:
            return rig.executing(int(decision.steps), float(decision.dt))
    return rig


def _check_decisions(
    found: Checked,
    windows: EpisodeWindows,
    rig: RigSpec,
    pairs: list[tuple[Any, ...]],
    *,
    compare: bool,
) -> None:
    """Judge (decision, recorded gate result) pairs; ``compare`` with what was recorded."""
    gate = SafetyGate(rig)
    for decision, recorded in pairs:
        if recorded.rule == LATE:
            continue  # it was not judged
        try:
            result, context = _judge(windows, gate, rig.rates.dt, decision, recorded)
        except ObservationError:
            found.skipped += 1
            continue
        # A refused chunk would not move the arms.
        moved = result.positions
        found.add(result, {} if moved is None else gate.closest(moved, context))
        if compare and (result.accepted, result.rule) != (recorded.accepted, recorded.rule):
            was, now = (
                "accepted" if each.accepted else f"refused by {each.rule}"
                for each in (recorded, result)
            )
            found.changed.append(f"chunk {recorded.chunk_id}: was {was}, is {now}")


def _judge(
    windows: EpisodeWindows, gate: SafetyGate, dt: float, decision: Any, recorded: Any
) -> tuple[GateResult, GateContext]:
    """Judge a decision in the context of its recorded gate result; raises ObservationError.

    ``dt`` are the seconds between two rows of a chunk.
    """
    rig, now_ns, seen_ns = windows.rig.rig, stamp_ns(recorded), stamp_ns(decision)
    measured, age = windows.measured(now_ns)
    before = [s for s in windows.sent if s.start_ns < now_ns and s.chunk_id != decision.chunk_id]
    positions = np.asarray(decision.positions).reshape(decision.steps, -1)
    result_age = (now_ns - seen_ns) / NS_PER_S
    if not before or not len(getattr(decision, "committed_weights", ())):
        held = before[-1].positions[-1] if before else measured
        context = GateContext(held, measured, age, result_age)
        return gate.judge(positions, decision.dt, context), context
    last = before[-1]
    # What the arms were following; no blend looks at where it began.
    path = TimedChunk(
        chunk_id=last.chunk_id,
        start_ns=last.start_ns,
        dt=dt,
        start=last.positions[0],
        positions=last.positions,
        max_velocity=rig.max_velocity,
    )
    decided = replace(
        path,
        start_ns=seen_ns,
        dt=decision.dt,
        start=path.sample(seen_ns),
        positions=positions,
        sent_after_ns=0,
    )
    blend = Blend(path, decided, now_ns, int(recorded.blend_rows))
    steps = windows.steps
    since_ns = now_ns - round(rig.tracking.lag * NS_PER_S)
    late = (steps.times_ns >= since_ns) & (steps.times_ns <= now_ns)
    commanded = path.sample(now_ns)
    trail = np.vstack([steps.actions[late], commanded])
    context = GateContext(commanded, measured, age, result_age, trail)
    return gate.judge_blend(blend, Blend.blended, context), context


def _check_steps(found: Checked, windows: EpisodeWindows, gate: SafetyGate) -> None:
    steps, rates = windows.steps, windows.rig.rig.rates
    for first in range(0, len(steps), rates.chunk_steps):
        try:
            measured, age = windows.measured(int(steps.times_ns[first]))
        except ObservationError:
            found.skipped += 1
            continue
        follows = first > 0 and steps.stretch[first - 1] == steps.stretch[first]
        held = steps.actions[first - 1] if follows else measured
        chunk = windows.chunk(first, rates.chunk_steps)
        context = GateContext(held, measured, age)
        found.add(gate.judge(chunk, rates.dt, context), gate.closest(chunk, context))
