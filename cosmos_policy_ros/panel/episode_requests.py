"""What a browser may ask of the recorded episodes, read in a thread of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from cosmos_policy_ros.core.config import from_mapping
from cosmos_policy_ros.panel.episodes import READING, EpisodeLibrary
from cosmos_policy_ros.panel.server import Handler, Images

Run = Callable[[Callable[[], Any]], Awaitable[Any]]


@dataclass(frozen=True)
class _All:
    """All episodes."""


@dataclass(frozen=True)
class _One:
    """One episode, by its id in the table."""

    episode: str


@dataclass(frozen=True)
class _Moment:
    """One episode at a time, in seconds since its begin."""

    episode: str
    seconds: float


def episode_handlers(library: EpisodeLibrary, run: Run) -> dict[str, Handler]:
    """Return the handlers of "episodes", "episode", "frames" and "calibration".

    "episodes" answers what could be read in :data:`READING` seconds, and how many are "left".

    Args:
        library: what they ask; used by one thread at a time.
        run: has a function called in that thread, and returns what it returns.
    """

    def handler(kind: Any, answer: Callable[[Any], Any]) -> Handler:
        async def handle(arguments: dict[str, Any]) -> Any:
            asked = from_mapping(kind, arguments, "the request")
            return await run(lambda: answer(asked))

        return handle

    return {
        "episodes": handler(
            _All, lambda _: {"episodes": library.table(READING), "left": library.left}
        ),
        "episode": handler(_One, lambda asked: library.episode(asked.episode)),
        "frames": handler(
            _Moment, lambda asked: Images(*library.frames(asked.episode, asked.seconds))
        ),
        "calibration": handler(_All, lambda _: library.calibration()),
    }
