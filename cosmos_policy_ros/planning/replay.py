"""A recorded decision made once more, from what is in the bag, and held against what was recorded.

A decision is a function of observation, seed, settings and checkpoint. On the machine that made it
the same comes out to the last bit; another device rounds otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from cosmos_policy_ros.core.errors import CheckpointError, ObservationError, RolloutError
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.dataset.playback import decisions, observations
from cosmos_policy_ros.episodes.episode import read_episode
from cosmos_policy_ros.episodes.trial_info import opened_metadata
from cosmos_policy_ros.inference.spec import Decide, Engine, parse_search
from cosmos_policy_ros.model.files import digest
from cosmos_policy_ros.planning.search import Foresee, run_search
from cosmos_policy_ros.rig.decision import ActionPrefix, Decision, Query
from cosmos_policy_ros.rig.observation import Observation


@dataclass(frozen=True)
class Difference:
    """One recorded decision beside the one made again.

    Attributes:
        recorded: the bag's ``Decision`` message.
        again: the new one; of the candidates that had finished then.
        values: per recorded and finished candidate the largest difference of its values.
        chunk: largest difference of the chunk's rows [rad; gripper openings]; infinite when another
            candidate was chosen.
    """

    recorded: Any
    again: Decision
    values: tuple[float, ...]
    chunk: float

    @property
    def same_choice(self) -> bool:
        """Whether the same candidate was chosen."""
        return int(self.recorded.chosen) == self.again.chosen

    @property
    def exact(self) -> bool:
        """Whether everything is equal to the last bit."""
        return self.chunk == 0 and not any(self.values)


def recorded_decision(path: Path, index: int) -> tuple[Any, Observation]:
    """Return a decision of an episode, counted from 0, and what it was made of.

    Raises:
        RolloutError: there is none, or it was not made by engine cosmos.
        ObservationError: what it was made of is not in the bag.
    """
    found = list(decisions(path))
    if not 0 <= index < len(found):
        last = f"it has {len(found)}, 0 to {len(found) - 1}" if found else "it has none"
        raise RolloutError(f"{path}: no decision {index}: {last}")
    recorded = found[index]
    if recorded.engine != "cosmos":
        raise RolloutError(
            f"{path}: decision {index} was made by engine {recorded.engine}, and only decisions of "
            "engine cosmos can be made again"
        )
    if not hasattr(recorded, "search"):
        raise RolloutError(
            f"{path}: decision {index} does not tell how it was made; it was recorded by a version "
            "of this package before 0.1.0"
        )
    seen = next(islice(observations(path), index, None))
    if isinstance(seen, ObservationError):
        raise seen
    return recorded, seen


def recorded_query(recorded: Any, seen: Observation) -> Query:
    """Return the query that a recorded decision answered."""
    # What the arms were doing anyway: nothing at rest, and in bags older than that.
    weights = np.asarray(getattr(recorded, "committed_weights", ()), np.float64)
    committed = None
    if len(weights):
        positions = np.reshape(recorded.committed, (len(weights), -1))
        committed = ActionPrefix(positions, weights, float(recorded.committed_seconds))
    seed, held = int(recorded.candidates[0].seed), np.asarray(getattr(recorded, "held", ()))
    return Query(
        str(recorded.task),
        str(recorded.prompt),
        seed,
        0,
        seen,
        committed=committed,
        held=held if len(held) else None,
    )


def replay(
    recorded: Any, seen: Observation, engine: Engine, foresee: Foresee | None = None
) -> Difference:
    """Make a decision again with the engine that made it, and what left out its candidates.

    Raises CosmosPolicyError.
    """
    query = recorded_query(recorded, seen)
    finished = [i for i, c in enumerate(recorded.candidates) if c.finished]
    if recorded.search:
        config = parse_search(str(recorded.search), "the recorded search")
        again = run_search(engine, query, config, finished, foresee)
    else:
        answer = engine.answer(Decide(query))
        assert isinstance(answer, Decision)
        again = answer
    values = []
    for index in finished:
        now = np.asarray(again.candidates[index].values, dtype=np.float32)  # as it is recorded
        apart = np.abs(np.asarray(recorded.candidates[index].values) - now)
        values.append(float(apart.max(initial=0.0)))
    chunk = np.inf
    if again.chosen == recorded.chosen:
        then = np.reshape(recorded.positions, again.positions.shape)
        chunk = float(np.abs(then - again.positions).max(initial=0.0))
    return Difference(recorded, again, tuple(values), chunk)


def find_checkpoint(path: Path, wanted: str, given: str, role: str) -> str:
    """Return the folder of the checkpoint with digest ``wanted``.

    Looks in ``given``, or where the episode and the package have one; ``role`` is the option that
    gives it. Raises CheckpointError when it is in none of them.
    """
    shipped = sorted(p for p in config_folder("models").iterdir() if p.is_dir())
    told = opened_metadata(read_episode(path).metadata).checkpoint
    folders = [Path(given)] if given else [*([Path(told)] if told else []), *shipped]
    tried = []
    for folder in folders:
        try:
            found = digest(folder)
        except (CheckpointError, OSError):
            continue
        if found == wanted:
            return str(folder)
        tried.append(f"{folder} has {found[:12]}…")
    raise CheckpointError(
        f"no checkpoint with digest {wanted[:12]}… ({'; '.join(tried) or 'none found'}); name the "
        f"folder that the decision was made with by {role}"
    )


def lines(difference: Difference) -> Iterator[str]:
    """Yield a table of both decisions for people."""
    recorded, again = difference.recorded, difference.again
    yield f"{'candidate':>9}  {'seed':>6}  {'recorded':>9}  {'again':>9}  values differ by"
    values = iter(difference.values)
    for index, was in enumerate(recorded.candidates):
        mark = "*" if index == recorded.chosen else " "
        if not was.finished:
            yield f"{mark}{index:>8}  {was.seed:>6}  {'not finished in time':>20}"
            continue
        now, apart = again.candidates[index], next(values)
        yield (
            f"{mark}{index:>8}  {was.seed:>6}  {was.value:>9.4f}  {now.value:>9.4f}  "
            + (f"{apart:.1e}" if apart else "nothing")
        )
    yield f"recorded: {recorded.reason}"
    yield f"again:    {again.reason}"
    if difference.exact:
        yield "the same decision, to the last bit"
    elif difference.same_choice:
        yield f"the same choice; its chunk differs by at most {difference.chunk:.1e}"
    else:
        yield f"ANOTHER CHOICE: candidate {recorded.chosen} then, {again.chosen} now"
