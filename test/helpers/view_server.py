"""The operator's page over a folder of episodes, without a graph: no node answers but a recorder.

What it is told is all that the researcher's view needs; the operator's view has its own tests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from cosmos_policy_ros.episodes.labels import OperatorScore
from cosmos_policy_ros.episodes.store import EpisodeStore
from cosmos_policy_ros.panel.access import Access
from cosmos_policy_ros.panel.episode_requests import episode_handlers
from cosmos_policy_ros.panel.episodes import EpisodeLibrary
from cosmos_policy_ros.panel.server import Handler, PanelServer

STATE: Mapping[str, Any] = {
    "tone": "idle",
    "sentence": "The policy node has not been found yet: wait, or look at its log.",
    "nodes": {"policy_node": "absent", "recorder_node": "alive"},
    "recorder": {
        **{"phase": "idle", "episode_id": "", "seconds": 0.0, "go": True, "reasons": []},
    },
    "minutes_left": None,
    "free_gb": 100.0,
    "recording": False,
    "records": True,
    "refusals": {},
    "simulated": False,
    "task": "transfer_cube",
    "values": [],
    **dict.fromkeys(("policy", "decision", "refusal", "unscored")),
}


@dataclass
class Served:
    """A page that is being served.

    Attributes:
        server: of it.
        base: its address, up to the view's own part.
        asked: of what was asked for, the name and the arguments.
    """

    server: PanelServer
    base: str
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def tell(self, **changed: Any) -> None:
        """Show a changed state."""
        self.server.publish({**STATE, **changed})


def _recorder(store: EpisodeStore) -> Mapping[str, Handler]:
    """Return what the recorder node would do, by its store."""

    async def score(asked: dict[str, Any]) -> dict[str, Any]:
        stages, deductions = tuple(asked["stages"]), tuple(asked["deductions"])
        texts = asked["operator"], asked["note"]
        given = OperatorScore(asked.get("score"), asked["success"], stages, deductions, *texts)
        store.score(given, episode=asked["episode"])
        return {"message": "scored"}

    async def discard(asked: dict[str, Any]) -> dict[str, Any]:
        store.discard(asked["reason"], episode=asked["episode"])
        return {"message": "discarded"}

    async def stop(asked: dict[str, Any]) -> dict[str, Any]:
        return {"message": "stopped"}

    async def tasks(asked: dict[str, Any]) -> dict[str, Any]:
        return {"tasks": {}}

    return {"score": score, "discard": discard, "stop": stop, "tasks": tasks}


@contextmanager
def serving(store: EpisodeStore) -> Iterator[Served]:
    """Serve the page on a free port of this machine."""
    disk = ThreadPoolExecutor(1)

    async def run(work: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(disk, work)

    def noted(name: str, handler: Handler) -> Handler:
        async def handle(arguments: dict[str, Any]) -> Any:
            served.asked.append((name, dict(arguments)))
            return await handler(arguments)

        return handle

    handlers = {**_recorder(store), **episode_handlers(EpisodeLibrary(store.root), run)}
    reports: list[str] = []
    server = PanelServer(
        Access(),
        0,
        {name: noted(name, handler) for name, handler in handlers.items()},
        dict,
        reports.append,
    )
    served = Served(server, f"http://127.0.0.1:{server.port}/")
    served.tell()
    try:
        yield served
    finally:
        server.close()
        disk.shutdown()
    assert reports == []
