"""An episode with all that a planned trial leaves: candidates, verdicts, futures, stages."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from helpers.episodes import CAMERA_PERIOD, JOINT_PERIOD, MS, RIG, START_NS, Writing
from helpers.scenes import scene
from numpy.typing import NDArray
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.bags.messages import RigMessages
from cosmos_policy_ros.episodes.labels import OperatorScore
from cosmos_policy_ros.episodes.store import EpisodeStore
from cosmos_policy_ros.episodes.topics import future_topic
from cosmos_policy_ros.rig.chunk import TimedChunk

SECONDS, ROWS, DT = 4.0, 25, 0.04
SEARCH = "{candidates: 3, futures: 1, values: 2}"
# Decided on [ms], begun [ms]: each takes one second.
CHUNKS = {"run/0": (0, 480), "run/2": (1720, 2000)}
REFUSED = (1520, 1600)
IMAGINED = 200  # grey level
STAGES = ["touched", "lifted", "met", "handed over"]
NONE = float("nan")


def pose(at: int) -> NDArray[np.float64]:
    """Return the (14,) state at a moment [ms]."""
    moved = 0.3 * np.sin(at / 1000 + np.arange(14))
    moved[[6, 13]] = 0.5 + 0.4 * np.sin(at / 1000)
    return np.asarray(moved)


def targets(chunk_id: str) -> NDArray[np.float64]:
    """Return the (25, 14) positions of a chunk."""
    begin = CHUNKS[chunk_id][1]
    return np.stack([pose(begin + round(1000 * DT * (row + 1))) + 0.01 for row in range(ROWS)])


def planned(writing: Writing) -> list[tuple[int, Callable[[], None]]]:
    """Return what writes two chunks that were executed, and one that the gate refused, and when."""
    make = writing.types.types
    events: list[tuple[int, Callable[[], None]]] = []

    def candidate(seed: int, value: float, finished: bool = True) -> Any:
        values = np.array([value - 0.1, value + 0.1] if finished else [], np.float32)
        spread = 0.1 if finished else NONE
        fields = {"seed": seed, "finished": finished, "value": value, "spread": spread}
        fields |= {"own_value": NONE, "variance": NONE, "dropped": ""}
        return make["cosmos_policy_ros/msg/Candidate"](**fields, values=values)

    def decide(chunk_id: str, at: int, best: float) -> None:
        shown = [candidate(7, best - 0.3), candidate(8, best), candidate(9, NONE, False)]
        phases = {"phases": ["sample_actions"], "phase_seconds": np.array([0.25], np.float32)}
        told = {"candidates": shown, "chosen": 1, "requested": 3, "finished": 2, **phases}
        told |= {"reason": f"candidate 1 is valued highest: {best}", "search": SEARCH}
        writing.decision(at, "", at, chunk_id=chunk_id, engine="cosmos", **told)

    def judge(chunk_id: str, at: int, **refusal: Any) -> None:
        stamp = make["builtin_interfaces/msg/Time"](sec=0, nanosec=0)
        fields: dict[str, Any] = {
            **{"chunk_id": chunk_id, "accepted": not refusal, "rule": "", "joint": -1, "step": -1},
            **{"joint_name": "", "value": 0.0, "limit": 0.0, "message": "", "clamped": 0},
            **{"asked": stamp, "latency": 0.0, "dropped": 0, "blend_rows": 0},
            **{"jump_decided": np.zeros(0), "jump_sent": np.zeros(0)},
        }
        kind = "cosmos_policy_ros/msg/GateResult"
        writing._write("policy_node/gate_result", kind, at, None, **{**fields, **refusal})

    def imagine(at: int) -> None:
        for camera in RIG.cameras:
            grey = np.full((24, 24, 3), IMAGINED, np.uint8)
            cdr = RigMessages(writing.types).image(grey, START_NS + at * MS)
            name = writing.topic(future_topic(camera.role))
            writing.recording.write(name, START_NS + (at + 300) * MS, cdr)

    def send(chunk_id: str, at: int) -> None:
        judge(chunk_id, at)
        rows = targets(chunk_id)
        writing.trajectory(TimedChunk(chunk_id, START_NS + at * MS, DT, rows[0], rows, np.ones(14)))

    def tell(at: int, reached: int) -> None:
        counts = {name: np.zeros(2, np.uint32) for name in ("accepted", "refused")}
        fields = {"task": "transfer_cube", "seed": 1, "period": at // 40, "refusal": "", **counts}
        fields |= {"stages": STAGES, "reached": reached}
        writing._write("sim_rig_node/state", "cosmos_policy_ros/msg/RigState", at, None, **fields)

    for number, (chunk_id, (decided, begun)) in enumerate(CHUNKS.items()):
        events.append((decided, partial(decide, chunk_id, decided, 0.6 + 0.2 * number)))
        events.append((decided + 300, partial(imagine, decided)))
        events.append((begun, partial(send, chunk_id, begun)))
    why = {"rule": "step_speed", "joint": 7, "joint_name": "right/waist", "step": 3, "value": 4.5}
    why |= {"limit": 3.1, "message": "right/waist is too fast: try again"}
    events.append((REFUSED[0], partial(decide, "run/1", REFUSED[0], 0.7)))
    events.append((REFUSED[1], partial(judge, "run/1", REFUSED[1], **why)))
    events += [(at, partial(tell, at, n)) for at, n in ((100, 0), (1000, 1), (2600, 2))]
    return sorted(events, key=lambda event: event[0])


def record_planned(
    store: EpisodeStore, types: Typestore, *, score: OperatorScore | None = None, **options: Any
) -> Path:
    """Record it, four seconds of it, and score it 50 unless told otherwise; return its folder."""
    writing = Writing(store, types, **options)
    waiting = planned(writing)
    for at in range(0, round(SECONDS * 1000), JOINT_PERIOD):
        writing.follow_once(at, pose(at), lambda role, at: scene(role, at // CAMERA_PERIOD))
        while waiting and waiting[0][0] <= at:
            waiting.pop(0)[1]()
    path = writing.recording.finish("time_limit")
    given = OperatorScore(None, False, ("touched", "lifted"), note="slipped", operator_name="ann")
    store.score(score or given, episode=path.name)
    return path
