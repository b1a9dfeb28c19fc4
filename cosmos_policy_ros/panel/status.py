"""What the operator's page says and allows: one sentence, and for every action why not.

Without ROS: works on any objects with the fields of this package's messages. Nothing is decided
here about the arms, whose nodes refuse for themselves; what would be refused is only told before it
is tried.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

from cosmos_policy_ros.core.task import Rubric
from cosmos_policy_ros.episodes.topics import (
    ARM_INTERFACE_NODE,
    POLICY_NODE,
    RECORDER_NODE,
    SIM_RIG_NODE,
)

TITLES = {
    POLICY_NODE: "The policy node",
    RECORDER_NODE: "The recorder",
    ARM_INTERFACE_NODE: "The arm interface",
    SIM_RIG_NODE: "The simulated rig",
}

# absent: not heard of since the panel began; lost: heard of before, and silent now.
Presence = Literal["absent", "alive", "lost"]
# What a sentence is about, and so its colour.
Tone = Literal["idle", "ready", "busy", "hold", "fault"]


class Sentence(NamedTuple):
    """What goes on, or is waited for, and what to do."""

    tone: Tone
    text: str


@dataclass(frozen=True)
class Unscored:
    """An episode that waits for its score.

    Attributes:
        episode: its id.
        rubric: that was in force; None where its task has none that can be read.
        trial: whether it is a trial of the protocol, which is scored or made again.
    """

    episode: str
    rubric: Rubric | None = None
    trial: bool = False

    @property
    def first(self) -> str:
        """What is to be done before anything else."""
        return f"score {'' if self.trial else 'or skip '}episode {self.episode} first"


@dataclass(frozen=True)
class Trial:
    """How far the trials of a protocol are.

    Attributes:
        number: the next trial's, from 1; beyond ``total`` when all are made.
        total: trials in all; 0 until the episodes have been looked through.
        prepared: whether its contender is loaded.
        preparing: whether that is being done, and the policy node not to be asked meanwhile.
        again: a sentence on why the last one is made again, or why no contender could be loaded;
            empty where there is nothing to tell.
        trouble: what keeps the trials from going on, and what to do; empty if nothing does.
    """

    number: int = 1
    total: int = 0
    prepared: bool = False
    preparing: bool = False
    again: str = ""
    trouble: str = ""

    @property
    def refusal(self) -> str:
        """Why no trial can be prepared or started, empty if one can."""
        if self.trouble:
            return self.trouble
        if not self.total:
            return "the episodes are being looked through"
        return "all trials are made" if self.complete else ""

    @property
    def complete(self) -> bool:
        """Whether every trial has a result that counts."""
        return 0 < self.total < self.number

    @property
    def title(self) -> str:
        """Which one it is."""
        return f"Trial {self.number} of {self.total}"


@dataclass(frozen=True)
class Graph:
    """What the panel knows.

    Attributes:
        presence: by node.
        inactive: lifecycle state of those alive nodes that are not active.
        policy, recorder, arm_interface: newest PolicyState, RecorderState, ArmInterfaceState, or
            None.
        records: whether the graph is to have a recorder.
        simulated: whether the rig is.
        unscored: the episode that waits for its score.
        busy: what the panel is doing itself, such as starting a trial; empty if nothing.
        demonstrated: id of the newest demonstration that was begun on the page; empty for none.
        trial: how far the protocol's trials are; None without a protocol.
    """

    presence: Mapping[str, Presence]
    inactive: Mapping[str, str] = field(default_factory=dict)
    policy: Any = None
    recorder: Any = None
    arm_interface: Any = None
    records: bool = True
    simulated: bool = False
    unscored: Unscored | None = None
    busy: str = ""
    demonstrated: str = ""
    trial: Trial | None = None

    @property
    def leaders(self) -> bool:
        """Whether the rig has leader arms."""
        return self.arm_interface is not None and bool(self.arm_interface.teleoperation)

    @property
    def leaders_hold(self) -> bool:
        """Whether the leaders are under torque."""
        return self.leaders and bool(self.arm_interface.leaders_hold)

    @property
    def led(self) -> str:
        """How the followers are led, as the arm interface calls it; empty while they are not."""
        led = str(self.arm_interface.teleoperation) if self.leaders else ""
        return "" if led == "off" else led

    @property
    def demonstrating(self) -> bool:
        """Whether a demonstration is being recorded."""
        ours = self.recorder is not None and self.recorder.episode_id == self.demonstrated
        return self.recording and ours and bool(self.demonstrated)

    @property
    def preparing(self) -> bool:
        """Whether the policy node is being given a contender, and is silent for a while."""
        return self.trial is not None and self.trial.preparing

    def missing(self, node: str) -> str:
        """Return why a node cannot be asked for anything, empty if it can."""
        state = self.presence.get(node, "absent")
        if state == "lost":
            return f"{TITLES[node]} does not answer any more"
        if state == "absent":
            return f"{TITLES[node]} has not been found yet"
        if node in self.inactive:
            return f"{TITLES[node]} is {self.inactive[node]}"
        return ""

    @property
    def running(self) -> bool:
        """Whether a run is under way."""
        return self.policy is not None and bool(self.policy.run_id)

    @property
    def recording(self) -> bool:
        """Whether an episode is being recorded."""
        return self.recorder is not None and self.recorder.phase == "recording"

    @property
    def holding(self) -> str:
        """Why the arms are held, empty if they are not."""
        if self.arm_interface is not None and self.arm_interface.holding:
            return str(self.arm_interface.reason) or "the arm interface holds them"
        if self.policy is not None and self.policy.phase == "paused":
            return str(self.policy.message)
        return ""


def sentence(graph: Graph) -> Sentence:
    """Return what goes on and what to do, the most urgent first."""
    return _lost(graph) or _led(graph) or _held(graph) or _moving(graph) or _at_rest(graph)


def _lost(graph: Graph) -> Sentence | None:
    """What cannot go on without a person at the computer."""
    missing = "" if graph.preparing else graph.missing(POLICY_NODE)
    if missing:
        if graph.presence.get(POLICY_NODE) != "lost":
            if graph.trial is not None and graph.trial.again:  # no contender could be loaded
                return _next_trial(graph.trial)
            return Sentence("idle", f"{missing}: wait, or look at its log.")
        watched = graph.presence.get(ARM_INTERFACE_NODE) == "alive"
        held = "The arm interface holds the arms. " if watched else ""
        text = f"{missing}. {held}Keep the emergency stop in hand, and start the graph again."
        return Sentence("fault", text)
    if graph.presence.get(ARM_INTERFACE_NODE) == "lost":
        text = f"{graph.missing(ARM_INTERFACE_NODE)}: no run goes on without it. Start it again."
        return Sentence("fault", text)
    if graph.records and graph.presence.get(RECORDER_NODE) == "lost":
        missing = graph.missing(RECORDER_NODE)
        text = f"{missing}. Press Stop and start it again: its bag is recovered."
        return Sentence("fault", text)
    if graph.policy is not None and graph.policy.phase == "failed" and not graph.preparing:
        todo = "Restart the policy node." if graph.trial is None else "Prepare the trial again."
        text = f"The policy has failed: {graph.policy.message.rstrip('.')}. {todo}"
        return Sentence("fault", text)
    return None


def _led(graph: Graph) -> Sentence | None:
    """What is to be done by hand."""
    led = graph.led
    if not led and graph.leaders_hold:
        text = "The leaders are under torque: hold them, and Clutch frees them."
        return Sentence("hold", text)
    if not led:
        return None
    reason = str(graph.arm_interface.teleoperation_reason).rstrip(".")
    if led == "matching":
        todo = "take over" if graph.running else "lead the arms"
        return Sentence("hold", f"You are about to {todo}: {reason}.")
    if led == "held":
        return Sentence("hold", f"The followers hold: {reason}. Press Lead to go on, or Let go.")
    if led == "clutched":
        return Sentence("hold", "The leaders are free, and the followers hold: Clutch goes on.")
    if graph.running:
        text = "You lead the arms, and the run is paused. Let go, then Resume hands them back."
    elif graph.demonstrating:
        text = "You lead the arms, and it is recorded: End trial keeps it, Drop discards it."
    else:
        text = "You lead the arms. Lay the scene out; Demonstrate records from then on."
    return Sentence("busy", f"{text} Space stops.")


def _held(graph: Graph) -> Sentence | None:
    if not graph.holding:
        return None
    if graph.running and graph.policy.phase == "paused":
        todo = "Press Resume to go on, or End trial."
    else:
        todo = "See why, then disarm and arm again."
    return Sentence("hold", f"The arms hold: {graph.holding.rstrip('.')}. {todo}")


def _moving(graph: Graph) -> Sentence | None:
    policy = graph.policy
    if graph.busy:
        return Sentence("busy", f"{graph.busy} …")
    if policy is None:
        return Sentence("idle", "Waiting for the policy node's first report.")
    if graph.running:
        doing = {
            "observing": "waiting for fresh images and joint states",
            "querying": "the policy is thinking, the arms hold",
            "executing": f"the arms follow chunk {policy.chunks}",
        }.get(policy.phase, policy.phase)
        unrecorded = "" if graph.recording or not graph.records else " NOTHING IS RECORDED."
        text = f"Running {policy.task}: {doing}. Space stops.{unrecorded}"
        return Sentence("busy", text)
    if policy.phase == "moving":
        return Sentence("busy", "The arms go to the start pose. Space stops.")
    if policy.phase in ("loading", "unconfigured"):
        return Sentence("idle", f"The policy is {policy.phase}: {policy.message or 'wait'}.")
    return None


def _at_rest(graph: Graph) -> Sentence:
    if graph.recording:
        text = "The run is over and its episode is still being recorded: press End trial."
        return Sentence("hold", text)
    if graph.unscored is not None:
        otherwise = "make its trial again" if graph.unscored.trial else "skip it"
        text = f"Score episode {graph.unscored.episode} by the rubric, or {otherwise}."
        return Sentence("ready", text)
    if graph.records and (missing := graph.missing(RECORDER_NODE)):
        return Sentence("idle", f"{missing}: nothing could be recorded. Wait, or look at its log.")
    if graph.trial is not None:
        return _next_trial(graph.trial, armed=graph.policy.armed)
    if not graph.policy.armed:
        text = (
            "Disarmed. Set up the scene, keep hands off the arms, then hold Arm for a second: "
            "they stand still until Start."
        )
        return Sentence("idle", text)
    return Sentence("ready", "Armed and ready: press Start.")


def _next_trial(trial: Trial, *, armed: bool = False) -> Sentence:
    if trial.trouble:
        return Sentence("fault", f"The trials cannot go on: {trial.trouble}")
    if not trial.total:
        return Sentence("idle", "Looking through the episodes for the protocol's trials.")
    if trial.complete:
        return Sentence("ready", f"All {trial.total} trials are made: unseal and show the table.")
    if not trial.prepared:
        text = f"{trial.title}: press Prepare, and lay the state out meanwhile."
        return Sentence("hold" if trial.again else "idle", f"{trial.again} {text}".lstrip())
    if not armed:
        text = (
            f"{trial.title}: lay the state out until it matches, hands off the arms, then hold "
            "Arm: they stand still until Start."
        )
        return Sentence("idle", text)
    text = f"{trial.title}: press Start. The arms go to the start pose, and it runs."
    return Sentence("ready", text)


def allowed(graph: Graph) -> dict[str, str]:
    """Return for every action why it would be refused now; empty where it would not be.

    ``stop`` is not among them: it is never greyed.
    """
    policy, gone, silent = graph.policy, graph.missing(POLICY_NODE), graph.missing(RECORDER_NODE)
    unrecordable = silent if graph.records else ""
    phase, armed = (policy.phase, policy.armed) if policy is not None else ("", False)
    run = "a run is under way" if graph.running else ""
    moving = run or ("the arms go to the start pose" if phase == "moving" else "")
    loading = "" if phase == "ready" else f"the policy node is {phase or 'silent'}"
    disarmed = "" if armed else "the arms are disarmed: hold Arm first"
    waiting = graph.unscored.first if graph.unscored else ""
    recording = "an episode is being recorded: end it first" if graph.recording else ""
    idle = moving or loading
    reset = "" if graph.simulated else "only a simulated rig can be reset"
    ended = "" if graph.running or graph.recording else "no trial is under way"
    trial = graph.trial
    unplanned, stuck, unprepared = "no protocol of trials was given", "", ""
    if trial is not None:
        unplanned, stuck = "", trial.refusal
        unprepared = stuck or ("" if trial.prepared else "press Prepare first")
        reset = "Prepare lays out the scene of a trial"
    hands = graph.missing(ARM_INTERFACE_NODE) or ("" if graph.leaders else "the rig has no leaders")
    unled = hands or ("" if graph.led else "no leader leads an arm: press Lead first")
    follows = graph.led in ("following", "clutched")
    unfollowing = "" if follows else "the followers do not follow"
    newest = graph.recorder.episode_id if graph.recorder is not None else ""
    # Inactive it may well be: a contender before could not be loaded.
    absent = gone if graph.presence.get(POLICY_NODE) != "alive" else ""
    return {
        "arm": gone or ("the arms are armed" if armed else "") or idle,
        "disarm": gone or disarmed,
        "start": gone
        or unrecordable
        or graph.busy
        or idle
        or waiting
        or recording
        or unprepared
        or disarmed,
        "pause": gone or ("" if run and phase != "paused" else "no run is under way"),
        "resume": gone
        or ("" if phase == "paused" else "the run is not paused")
        or ("you lead the arms: Let go first" if graph.led else ""),
        "lead": hands
        or ("you lead them already" if graph.led not in ("", "held", "matching") else "")
        or ("the arms go to the start pose" if phase == "moving" else ""),
        "let_go": unled,
        "clutch": "" if graph.leaders_hold else unled or unfollowing,
        "demonstrate": unrecordable
        or ("" if graph.records else "the recorder is off")
        or unled
        or run
        or recording
        or ("a protocol's trials are no demonstrations" if trial is not None else ""),
        "drop": silent
        or ("" if graph.demonstrated else "no demonstration was recorded")
        or ("" if newest == graph.demonstrated else "another episode was recorded since"),
        "go_to_start": gone or idle or disarmed,
        "end": ended or (gone if graph.running else silent) or graph.busy,
        "self_check": gone,
        "score": silent or ("" if graph.unscored else "no episode waits for a score"),
        "skip": (
            ("a trial is scored, or made again" if graph.unscored.trial else "")
            if graph.unscored
            else "no episode waits for a score"
        ),
        "prepare": unplanned or absent or graph.busy or moving or waiting or recording or stuck,
        "unseal": unplanned or graph.busy or moving or recording,
        "reset": reset
        or graph.missing(SIM_RIG_NODE)
        or moving
        or ("disarm the arms first" if armed else ""),
    }


def minutes_left(free_bytes: float, kept_free: float, rate: float) -> float | None:
    """Return minutes that can still be recorded, None where the rate is not known.

    Args:
        free_bytes: on the disk.
        kept_free: bytes at which the recorder ends an episode.
        rate: bytes per second of a recording.
    """
    return max(0.0, free_bytes - kept_free) / rate / 60 if rate > 0 else None


def describe_rubric(rubric: Rubric) -> dict[str, list[dict[str, Any]]]:
    """Return a rubric as the page draws its boxes."""
    return {
        "stages": [asdict(stage) for stage in rubric.stages],
        "deductions": [asdict(deduction) for deduction in rubric.deductions],
    }


def describe_refusal(result: Any) -> dict[str, Any]:
    """Return what the page shows of a refused GateResult; its message has value and limit."""
    return {
        "chunk": result.chunk_id.rpartition("/")[2],
        "joint": result.joint_name,
        "message": result.message,
    }


def describe_decision(decision: Any) -> dict[str, Any]:
    """Return what the page shows of a Decision: its candidates, and why the chosen one."""
    return {
        "chunk": decision.chunk_id.rpartition("/")[2],
        "requested": decision.requested,
        "finished": decision.finished,
        "chosen": decision.chosen,
        "reason": decision.reason,
        "candidates": [
            {
                "value": number(candidate.value),
                "spread": number(candidate.spread),
                "finished": candidate.finished,
            }
            for candidate in decision.candidates
        ],
    }


def chosen_value(decision: Any) -> float | None:
    """Return the predicted value of what a Decision chose, None where there is none."""
    if not 0 <= decision.chosen < len(decision.candidates):
        return None
    return number(decision.candidates[decision.chosen].value)


def number(value: Any, digits: int = 6) -> float | None:
    """Return a finite number rounded, or None: JSON has neither NaN nor infinity."""
    value = float(value)
    return round(value, digits) if math.isfinite(value) else None
