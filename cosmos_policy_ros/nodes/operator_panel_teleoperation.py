"""The operator panel's teleoperation: to lead the arms, and to record demonstrations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from cosmos_policy_ros.core.errors import CosmosPolicyError, RolloutError
from cosmos_policy_ros.episodes.folders import State
from cosmos_policy_ros.nodes.operator_panel_graph import PanelGraph
from cosmos_policy_ros.panel.episodes import EpisodeLibrary
from cosmos_policy_ros.panel.status import Graph, allowed
from cosmos_policy_ros.rig.teleoperation import TELEOPERATION

EPISODE_ANSWER = 30.0  # wall s to begin or end an episode: a recorder waits for its rig for ten
LOOK_AGAIN = 1.0  # s of one look through the episodes


@dataclass(frozen=True)
class Demonstrate:
    """A demonstration to record; an empty prompt is the task's first."""

    task: str
    prompt: str = ""
    operator: str = ""


class PanelTeleoperation:
    """What the page asks of the arm interface and the recorder when a person leads the arms.

    Attributes:
        counts: demonstrations in the folder, by task; discarded ones left out.
        demonstrated: id of the newest demonstration that was begun here; empty for none.
    """

    def __init__(
        self,
        graph: PanelGraph,
        library: EpisodeLibrary,
        known: Callable[[PanelGraph], Graph],
        read: Callable[[Callable[[], Any]], Awaitable[Any]],
    ) -> None:
        """Count nothing yet.

        Args:
            graph: that is asked.
            library: the folder's episodes.
            known: tells what of it is known now.
            read: has a function called in the thread that reads the disk.
        """
        self.counts: dict[str, int] = {}
        self.demonstrated = ""
        self._graph, self._library, self._known, self._read = graph, library, known, read

    @property
    def leading(self) -> bool:
        """Whether followers track leaders, or are about to."""
        state = self._graph.arm_interface
        return state is not None and state.teleoperation not in ("", "off")

    async def count(self) -> None:
        """Look through the episodes."""

        def look() -> dict[str, int]:
            try:
                table = self._library.table(LOOK_AGAIN)
            except RolloutError:
                return {}
            shown = [each for each in table if each["engine"] == TELEOPERATION]
            kept = [each for each in shown if State.DISCARDED.value not in each["state"]]
            return dict(Counter(each["task"] for each in kept))

        self.counts = await self._read(look)

    async def lead(self, _: Any) -> dict[str, Any]:
        """Have the followers track the leaders, or a run be taken over."""
        self._check("lead")
        return await self._call("teleoperate", data=True)

    async def let_go(self, _: Any) -> dict[str, Any]:
        """Hold the followers; a run that was taken over goes on when it is resumed."""
        return await self._call("teleoperate", data=False)

    async def clutch(self, _: Any) -> dict[str, Any]:
        """Hold the followers while the leaders are moved, or follow again."""
        self._check("clutch")
        return await self._call(
            "clutch", data=self._graph.arm_interface.teleoperation != "clutched"
        )

    async def demonstrate(self, asked: Demonstrate) -> dict[str, Any]:
        """Begin to record a demonstration."""
        self._check("demonstrate")
        answer = await self._graph.answer(
            "start_episode",
            EPISODE_ANSWER,
            task=asked.task,
            prompt=asked.prompt,
            operator_name=asked.operator,
            demonstration=True,
        )
        self.demonstrated = answer.episode_id
        return {"message": answer.message}

    async def drop(self, _: Any) -> dict[str, Any]:
        """Discard the demonstration that is being recorded, or was last."""
        self._check("drop")
        return await self._call(
            "discard_episode",
            EPISODE_ANSWER,
            episode_id=self.demonstrated,
            reason="a demonstration that the operator did not like",
        )

    def _check(self, action: str) -> None:
        if refusal := allowed(self._known(self._graph))[action]:
            raise CosmosPolicyError(f"refused: {refusal}")

    async def _call(self, service: str, timeout: float = 10.0, **fields: Any) -> dict[str, Any]:
        return {"message": (await self._graph.answer(service, timeout, **fields)).message}
