"""Results of trials, and the file that keeps those made in the simulator."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from cosmos_policy_ros.core.config import from_mapping
from cosmos_policy_ros.evaluation.plan import Key


@dataclass(frozen=True)
class Result:
    """How one trial ended; a line of ``trials.jsonl``.

    Attributes:
        state: number of the initial state; in the simulator the seed that placed the objects.
        noise_seed: the policy's.
        message: why, where it crashed.
        crashed: it ended by a fault, not by the policy's skill: it does not count, and is repeated.
        score: 0 to 100.
        success: whether the task was done; in the simulator whether every stage was reached.
        success_with_any: the same with any of several objects, whichever the prompt named.
        chunks, refused: executed and refused.
        seconds: of the rig's time.
        thinking: wall seconds per decision, the median.
        episode: the bag's folder; empty where none was kept.
        decisions: how often the policy was asked.
        evaluations: how often the networks ran for all of them; 0 where it is not known.
        steps: of a benchmark, that were executed.
        wall, cpu: seconds that the trial took, and of processor time, the environment's with it; 0
            where they are not measured.
        environment: versions and anchor of a benchmark, see
            :func:`~cosmos_policy_ros.environments.benchmark.examine`.
    """

    contender: str
    task: str
    condition: str
    state: int
    noise_seed: int
    outcome: str
    message: str
    crashed: bool
    score: float
    success: bool
    chunks: int
    refused: int
    seconds: float
    thinking: float
    episode: str = ""
    steps: int = 0
    wall: float = 0.0
    cpu: float = 0.0
    environment: str = ""
    success_with_any: bool = False
    decisions: int = 0
    evaluations: int = 0

    @property
    def key(self) -> Key:
        """Contender, task, condition, initial state and noise."""
        return self.contender, self.task, self.condition, self.state, self.noise_seed


def read_results(path: Path) -> list[Result]:
    """Read ``trials.jsonl`` but for a last line that was cut short; raises ConfigError."""
    if not path.is_file():
        return []
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            content = json.loads(line)
        except json.JSONDecodeError:
            break
        found.append(from_mapping(Result, content, f"{path}, line {number}"))
    return found


def to_line(result: Result) -> str:
    """Return a line of ``trials.jsonl``."""
    return json.dumps(asdict(result)) + "\n"
