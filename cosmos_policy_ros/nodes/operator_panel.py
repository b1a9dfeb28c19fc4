"""The operator's page: what the graph says, and the operator's wishes as calls of its services.

Two threads. rclpy's keeps the newest message of everything and sends what is asked for; the
server's (``panel.server``) talks to browsers, and the coroutines below run in it. The panel has no
way to the arms but the other nodes' services and action, which check it like every other caller,
and nothing depends on it: when it dies a run goes on, and the next panel finds everything in the
nodes' own states.
"""

from __future__ import annotations

import asyncio
import copy
import shutil
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from action_msgs.msg import GoalInfo
from rclpy.clock import Clock, ClockType
from unique_identifier_msgs.msg import UUID

from cosmos_policy_ros.core.config import from_mapping
from cosmos_policy_ros.core.errors import ConfigError, CosmosPolicyError, RolloutError
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.core.task import load_named_task, load_task, task_names
from cosmos_policy_ros.episodes.episode import Episode, read_episode
from cosmos_policy_ros.episodes.quality import GIGABYTE, load_limits
from cosmos_policy_ros.nodes import shell
from cosmos_policy_ros.nodes.operator_panel_cameras import PanelCameras
from cosmos_policy_ros.nodes.operator_panel_graph import ANSWER, STOP_ANSWER, PanelGraph
from cosmos_policy_ros.nodes.operator_panel_teleoperation import (
    EPISODE_ANSWER,
    Demonstrate,
    PanelTeleoperation,
)
from cosmos_policy_ros.nodes.operator_panel_trials import TrialSequence, to_score
from cosmos_policy_ros.nodes.options import DEFAULT, NONE, PANEL
from cosmos_policy_ros.panel.access import Access, read_password
from cosmos_policy_ros.panel.episode_requests import episode_handlers
from cosmos_policy_ros.panel.episodes import EpisodeLibrary
from cosmos_policy_ros.panel.server import Handler, Images, PanelServer
from cosmos_policy_ros.panel.status import (
    Graph,
    Unscored,
    allowed,
    describe_rubric,
    minutes_left,
    sentence,
)
from cosmos_policy_ros.rig.spec import load_rig

if TYPE_CHECKING:
    from cosmos_policy_ros.panel.trials import PanelTrials

SHOW = 0.05  # wall s between two looks at whether the page has to change
DISK_PERIOD = 2.0  # wall s between two looks at the disk
SHORT_LOOK = 1.0  # s of looking through the episodes at the start
SHORTEST = 2.0  # s of a recording whose bytes per second say something
MOST_POINTS = 1e6  # a number beyond is no score that was mistyped
NOT_GIVEN = -1.0  # a score in a request, see ScoreEpisode.srv


@dataclass(frozen=True)
class Nothing:
    """A request without arguments."""


@dataclass(frozen=True)
class Start:
    """A trial to begin; an empty prompt is the task's first."""

    task: str
    prompt: str = ""
    operator: str = ""


@dataclass(frozen=True)
class Score:
    """An operator's score; without an episode it is that of the one that waits for it."""

    episode: str = ""
    score: float | None = None
    stages: tuple[str, ...] = ()
    deductions: tuple[str, ...] = ()
    success: bool = False
    operator: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        # The recorder says what a score may be; a message cannot carry just any number to it.
        if self.score is not None and abs(self.score) > MOST_POINTS:
            raise ValueError(f"score {self.score:g} must be a number from 0 to 100")


@dataclass(frozen=True)
class Discard:
    """An episode that is not to be used, and why."""

    episode: str
    reason: str = ""


@dataclass(frozen=True)
class Unseal:
    """The contenders of a protocol to be named, and whether also before all trials are made."""

    before_the_end: bool = False


@dataclass(frozen=True)
class Reset:
    """A new scene of the simulated rig, for a prompt; an empty one means any object."""

    seed: int = 0
    prompt: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed {self.seed} must be from 0 to {2**31 - 1}")


class OperatorPanel(shell.ManagedNode):
    """Lifecycle node ``operator_panel``."""

    def __init__(self) -> None:
        """Declare the parameters; everything else happens when it is configured."""
        super().__init__("operator_panel", PANEL)
        self._server: PanelServer | None = None
        self._disk: ThreadPoolExecutor | None = None
        self._graph: PanelGraph | None = None
        self._trials: TrialSequence | None = None
        self._leading: PanelTeleoperation | None = None

    # ---------------------------------------------------------------- lifecycle

    def set_up(self) -> None:
        """Connect to the graph and serve the page."""
        values = {option.name: shell.value_of(self, option.name) for option in PANEL}
        for option in PANEL:
            option.check(values[option.name])
        rig = load_rig(values["rig"], config_folder("rigs"))
        access = _access(values)
        self._task = load_task(values["task"], config_folder("tasks")).name
        self._root = Path(values["root"]).expanduser()
        self._records, self._simulated = bool(values["record"]), rig.kind == "sim"
        self._kept_free = load_limits().stop_free * GIGABYTE
        self._stops = 0
        self._busy = self._skipped = self._ran = self._begun = ""
        self._unscored: Unscored | None = None
        self._measuring: Future[None] | None = None
        self._free_bytes, self._rate, self._disk_at = 0, 0.0, 0.0
        self._episode_before: tuple[str, ...] = ()
        # Reads episodes, one at a time: a disk that hangs keeps the page's server waiting for none.
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="episodes")
        trials = self._read_protocol(values)
        self._library = EpisodeLibrary(self._root, trials.hides if trials else lambda _: False)
        self._disk.submit(self._learn_rate)
        self._dirty = True
        self._shown_presence: Mapping[str, str] = {}
        self._graph = PanelGraph(
            self,
            records=self._records,
            simulated=self._simulated,
            changed=self._on_change,
            reconfigures=trials is not None,
        )
        self._leading = PanelTeleoperation(self._graph, self._library, self._known, self._read)
        if trials is not None:
            self._trials = TrialSequence(trials, self._graph, self._read, self._doing)
        cameras = PanelCameras(self, rig)
        self._server = PanelServer(
            access,
            values["panel_port"],
            self._handlers(),
            lambda: cameras.look(imagined=not self._sealed),
            lambda line: self.get_logger().error(line),
        )
        if trials is not None:
            self._server.spawn(self._look_for_score)
        self.create_timer(SHOW, self.report, clock=Clock(clock_type=ClockType.STEADY_TIME))
        # On the terminal and not in the log, which others may read.
        print(f"operator's page: {self._server.url}", flush=True)

    def tear_down(self) -> None:
        """End the server and the reader of episodes."""
        if self._server is not None:
            self._server.close()
        if self._disk is not None:
            self._disk.shutdown(wait=False, cancel_futures=True)
        if self._graph is not None:
            self._graph.close()
        self._server = self._disk = self._graph = self._trials = self._leading = None

    def _read_protocol(self, values: Mapping[str, Any]) -> PanelTrials | None:
        """Return the protocol's trials, None without one."""
        if values["protocol"] == NONE:
            return None
        if not self._records:
            raise ConfigError(
                f"protocol '{values['protocol']}' needs the recorder: leave record:=false and "
                "dry_run:=true out"
            )
        # Here, since it draws in the simulator's and the tables' libraries, a second's work.
        from cosmos_policy_ros.panel.trials import PanelTrials

        output = values["protocol_output"]
        folder = None if output == DEFAULT else Path(output).expanduser()
        return PanelTrials(values["protocol"], folder, self._root, simulated=self._simulated)

    # ---------------------------------------------------------------- what the page shows

    def _on_change(self) -> None:
        """Note what has come, and end an episode of ours whose run is over.

        Another program that has begun an episode ends it itself, when it likes.
        """
        self._dirty = True
        graph = self._graph
        if graph is None or self._server is None:  # still being set up
            return
        policy, recorder = graph.policy, graph.recorder
        if policy is not None:
            over = self._ran and not policy.run_id
            self._ran = policy.run_id
            if over and self._begun and recorder is not None:
                ours = (recorder.phase, recorder.episode_id) == ("recording", self._begun)
                self._begun, outcome = "", policy.outcome
                if ours:
                    self._doing(f"The run is over ({outcome}): finishing its episode")
                    self._server.spawn(lambda: self._end_episode(outcome))
        if recorder is not None:
            if recorder.phase == "recording" and recorder.seconds > SHORTEST:
                self._rate = recorder.bytes / recorder.seconds
            episode = (recorder.phase, recorder.episode_id, recorder.path)
            if episode != self._episode_before:
                self._episode_before = episode
                self._server.spawn(self._look_for_score)

    def report(self) -> None:
        """Show how things stand, if that has changed or may have."""
        server, graph, disk = self._server, self._graph, self._disk
        if server is None or graph is None or disk is None:
            return
        now = time.monotonic()
        # One look at a time: a disk that hangs must not collect them.
        done = self._measuring is None or self._measuring.done()
        if done and now - self._disk_at > DISK_PERIOD:
            self._disk_at = now
            self._measuring = disk.submit(self._measure_disk)
        # Before the look: what the other thread changes meanwhile is shown the next time.
        dirty, self._dirty = self._dirty, False
        known = self._known(graph)
        if not dirty and known.presence == self._shown_presence:
            return
        self._shown_presence = known.presence
        server.publish(self._state(graph, known))

    def _known(self, graph: PanelGraph) -> Graph:
        return Graph(
            presence=graph.presence(),
            inactive=graph.inactive(),
            policy=self._told(graph.policy),
            recorder=graph.recorder,
            arm_interface=graph.arm_interface,
            records=self._records,
            simulated=self._simulated,
            unscored=self._unscored,
            busy=self._busy,
            demonstrated=self._leading.demonstrated if self._leading else "",
            trial=self._trials.trial() if self._trials else None,
        )

    @property
    def _sealed(self) -> bool:
        """Whether the page may show nothing that tells a contender."""
        return self._trials is not None and self._trials.trials.seen.sealed

    def _told(self, policy: Any) -> Any:
        """Return the policy node's state without what tells a sealed contender."""
        if policy is None or not self._sealed:
            return policy
        told = copy.copy(policy)
        told.message = self._veil(policy.message)
        return told

    def _veil(self, text: str) -> str:
        return self._trials.trials.veil(text) if self._trials else text

    def _state(self, graph: PanelGraph, known: Graph) -> dict[str, Any]:
        """Return the page's state; everything in it is text, a number, true or false, or null."""
        tone, text = sentence(known)
        unscored, sealed, trials = self._unscored, self._sealed, self._trials
        minutes = minutes_left(self._free_bytes, self._kept_free, self._rate)
        return {
            "tone": tone,
            "sentence": text,
            "nodes": known.presence,
            "refusals": allowed(known),
            "policy": _fields(graph.policy, ("armed", "run_id")),
            "recorder": _fields(
                graph.recorder, ("phase", "episode_id", "seconds", "go", "reasons")
            ),
            "recording": known.recording,
            "records": self._records,
            "simulated": self._simulated,
            "decision": None if sealed else graph.decision,
            "values": [] if sealed else graph.values,
            "refusal": graph.refusal
            and {name: self._veil(each) for name, each in graph.refusal.items()},
            "unscored": unscored
            and {
                "episode": unscored.episode,
                "rubric": unscored.rubric and describe_rubric(unscored.rubric),
                "trial": unscored.trial,
            },
            "minutes_left": None if minutes is None else round(minutes, 1),
            "free_gb": round(self._free_bytes / GIGABYTE, 1),
            "task": self._task,
            "leaders": known.leaders,
            "demonstrations": self._leading.counts if self._leading else {},
            "trials": trials and trials.described(),
        }

    def _learn_rate(self) -> None:
        """Take the bytes per second of the newest episode for those of the next."""
        try:
            table = self._library.table(SHORT_LOOK)
        except RolloutError:
            return
        long = [entry for entry in table if (entry["seconds"] or 0.0) > SHORTEST]
        if long and not self._rate:
            self._rate = long[-1]["bytes"] / long[-1]["seconds"]

    def _measure_disk(self) -> None:
        folder = self._root
        while not folder.is_dir() and folder != folder.parent:
            folder = folder.parent
        free = shutil.disk_usage(folder).free
        if abs(free - self._free_bytes) > GIGABYTE / 100:
            self._free_bytes, self._dirty = free, True

    # ---------------------------------------------------------------- what a browser may ask for

    def _handlers(self) -> Mapping[str, Handler]:
        """Return by name how a request is read and what is done."""

        def handler(kind: Any, act: Callable[[Any], Awaitable[Any]]) -> Handler:
            async def handle(arguments: dict[str, Any]) -> Any:
                try:
                    return await act(from_mapping(kind, arguments, "the request"))
                except CosmosPolicyError as error:
                    raise CosmosPolicyError(self._veil(str(error))) from error

            return handle

        return {
            "stop": handler(Nothing, self._stop),
            "arm": handler(Nothing, lambda _: self._call("arm", data=True)),
            "disarm": handler(Nothing, lambda _: self._call("arm", data=False)),
            "pause": handler(Nothing, lambda _: self._call("pause", data=True)),
            "resume": handler(Nothing, lambda _: self._call("pause", data=False)),
            "go_to_start": handler(Nothing, lambda _: self._call("go_to_start")),
            "self_check": handler(Nothing, self._self_check),
            "tasks": handler(Nothing, self._tasks),
            "start": handler(Start, self._start),
            "end": handler(Nothing, self._end),
            "lead": handler(Nothing, self._led.lead),
            "let_go": handler(Nothing, self._led.let_go),
            "clutch": handler(Nothing, self._led.clutch),
            "demonstrate": handler(Demonstrate, self._demonstrate),
            "drop": handler(Nothing, self._led.drop),
            "score": handler(Score, self._score),
            "skip": handler(Nothing, self._skip),
            "discard": handler(Discard, self._discard),
            "reset": handler(Reset, self._reset),
            "prepare": handler(Nothing, self._prepare),
            "picture": handler(Nothing, self._picture),
            "unseal": handler(Unseal, self._unseal),
            **episode_handlers(self._library, self._read),
        }

    async def _call(self, service: str, timeout: float = ANSWER, **fields: Any) -> dict[str, Any]:
        """Call a service; a refusal is an error with the node's own words."""
        return {"message": (await self._answer(service, timeout, **fields)).message}

    async def _answer(self, service: str, timeout: float = ANSWER, **fields: Any) -> Any:
        assert self._graph is not None, "the server lives as long"
        return await self._graph.answer(service, timeout, **fields)

    async def _self_check(self, _: Nothing) -> dict[str, Any]:
        assert self._graph is not None
        response = await self._graph.call("self_check", ANSWER)
        rows = zip(response.checks, response.passed, response.found, response.advice, strict=True)
        keys = ("check", "passed", "found", "advice")
        found = [dict(zip(keys, row, strict=True)) for row in rows]
        if self._trials is not None:
            found = [self._trials.trials.veil_check(row) for row in found]
        return {"rows": found}

    async def _tasks(self, _: Nothing) -> dict[str, Any]:
        """Return what a trial can be about."""

        def read() -> dict[str, Any]:
            found = {}
            kind = "sim" if self._simulated else "real"
            for name in task_names(config_folder("tasks")):
                try:
                    task = load_named_task(name).task
                except CosmosPolicyError as error:
                    self.get_logger().warning(str(error))
                    continue
                if kind in task.rigs:
                    found[name] = {"description": task.description, "prompts": list(task.prompts)}
            return found

        return {"tasks": await self._read(read)}

    async def _start(self, asked: Start) -> dict[str, Any]:
        """Record an episode and run the task; what cannot run is not kept."""
        if self._busy:
            raise CosmosPolicyError(f"another trial is being started: {self._busy}")
        if self._unscored is not None:
            raise CosmosPolicyError(self._unscored.first)
        graph, stops = self._graph, self._stops
        assert graph is not None
        goal = {"task": asked.task, "prompt": asked.prompt}
        episode = {**goal, "operator_name": asked.operator}

        def check() -> None:
            if self._stops > stops:
                raise CosmosPolicyError("stopped before the run had begun")

        try:
            if self._trials is not None:
                episode, goal = self._trials.fields(asked.operator)
                self._doing("The arms go to the start pose. Space stops")
                await graph.go_to_start()
                check()
            self._doing("Starting the recorder")
            if self._records:
                started = await self._answer("start_episode", EPISODE_ANSWER, **episode)
                self._begun = started.episode_id
            self._doing("Starting the run")
            try:
                check()
                await graph.begin_run(**goal)
            except CosmosPolicyError as error:
                if self._records:
                    reason = f"the run was refused: {error}"
                    await self._answer("discard_episode", EPISODE_ANSWER, reason=reason)
                raise
            if self._trials is not None:
                self._trials.begun()
        finally:
            self._doing("")
        return {"message": f"running {goal['task']}"}

    @property
    def _led(self) -> PanelTeleoperation:
        assert self._leading is not None, "the server lives as long"
        return self._leading

    async def _demonstrate(self, asked: Demonstrate) -> dict[str, Any]:
        """Record a demonstration; the last one may be scored any day."""
        if self._unscored is not None and self._unscored.episode == self._led.demonstrated:
            await self._skip(Nothing())
        return await self._led.demonstrate(asked)

    async def _stop(self, _: Nothing) -> dict[str, Any]:
        """Stop and disarm, and lead no arm; what was to follow does not."""
        self._stops += 1
        # Both at once: neither waits for a node that does not answer.
        stopping = [self._stop_policy()]
        if self._led.leading:
            stopping.append(self._led.let_go(None))
        begun = [asyncio.ensure_future(each) for each in stopping]
        await asyncio.wait(begun)
        return {"message": "; ".join(each.result()["message"] for each in begun)}

    async def _stop_policy(self) -> dict[str, Any]:
        try:
            return await self._call("stop", STOP_ANSWER)
        except CosmosPolicyError:
            # Between two contenders the policy node has no such service, and sends nothing.
            if self._trials is not None and self._trials.between:
                return {"message": "nothing moves: the policy node has no contender loaded"}
            raise

    async def _prepare(self, _: Nothing) -> dict[str, Any]:
        """Load the next trial's contender, and lay out the scene of a simulated rig."""
        if self._trials is None or self._graph is None:
            raise CosmosPolicyError("no protocol of trials was given: start with protocol:=NAME")
        if refusal := allowed(self._known(self._graph))["prepare"]:
            raise CosmosPolicyError(f"refused: {refusal}")
        await self._trials.prepare(lays_out=self._simulated)
        return {"message": "a contender is loaded: arm when the state matches"}

    async def _picture(self, _: Nothing) -> Images:
        """Return the picture of the next trial's state."""
        if self._trials is None:
            raise CosmosPolicyError("no protocol of trials was given")
        return Images({}, [await self._read(self._trials.trials.picture)])

    async def _unseal(self, asked: Unseal) -> dict[str, Any]:
        """Name the contenders, and return the tables."""
        if self._trials is None or self._graph is None:
            raise CosmosPolicyError("no protocol of trials was given")
        if refusal := allowed(self._known(self._graph))["unseal"]:
            raise CosmosPolicyError(f"refused: {refusal}")
        trials = self._trials.trials
        lines = await self._read(lambda: trials.unseal(before_the_end=asked.before_the_end))
        self._dirty = True
        return {"message": f"written to {trials.output}", "table": lines}

    async def _end(self, _: Nothing) -> dict[str, Any]:
        """End the run, if there is one, and by that its episode; else the episode alone."""
        graph = self._graph
        assert graph is not None
        if graph.policy is not None and graph.policy.run_id:
            goal = GoalInfo(goal_id=UUID(uuid=list(bytes.fromhex(graph.policy.run_id))))
            response = await graph.call("run_task/_action/cancel_goal", ANSWER, goal_info=goal)
            if not response.goals_canceling:
                raise CosmosPolicyError("the run has ended already")
            return {"message": "the run is being ended"}
        return await self._end_episode("ended by the operator")

    async def _end_episode(self, outcome: str) -> dict[str, Any]:
        try:
            return await self._call("stop_episode", EPISODE_ANSWER, reason=outcome)
        finally:
            self._doing("")
            if self._trials is not None:  # the next state is laid out by hand
                await self._call("arm", data=False)

    async def _score(self, score: Score) -> dict[str, Any]:
        """Score an episode; what does not fit its rubric is the recorder's to refuse."""
        response = await self._answer(
            "score_episode",
            episode_id=score.episode or (self._unscored.episode if self._unscored else ""),
            score=NOT_GIVEN if score.score is None else score.score,
            stages=list(score.stages),
            deductions=list(score.deductions),
            task_success=score.success,
            operator_name=score.operator,
            note=score.note,
        )
        await self._look_for_score()
        return {"message": response.message}

    async def _skip(self, _: Nothing) -> dict[str, Any]:
        """Go on without a score; the episode can be scored any day."""
        if self._unscored is None:
            raise CosmosPolicyError("no episode waits for a score")
        if self._unscored.trial:
            raise CosmosPolicyError("a trial is scored, or made again")
        self._skipped = self._unscored.episode
        await self._look_for_score()
        return {"message": f"episode {self._skipped} is left without a score"}

    async def _discard(self, discard: Discard) -> dict[str, Any]:
        found = await self._call(
            "discard_episode", EPISODE_ANSWER, episode_id=discard.episode, reason=discard.reason
        )
        await self._look_for_score()
        return found

    async def _reset(self, reset: Reset) -> dict[str, Any]:
        """Place the simulated rig's objects and arms anew; never under armed arms."""
        refusal = allowed(self._known(self._graph))["reset"] if self._graph else "no graph"
        if refusal:
            raise CosmosPolicyError(f"refused: {refusal}")
        return await self._call("reset", seed=reset.seed, prompt=reset.prompt)

    # ---------------------------------------------------------------- episodes

    async def _look_for_score(self) -> None:
        """Find out whether an episode waits for a score: a trial of the protocol, or the last."""
        recorder = self._graph.recorder if self._graph is not None else None
        trials, last = self._trials, None
        if recorder is not None and recorder.episode_id and recorder.phase != "recording":
            last = Path(recorder.path)

        def look() -> Unscored | None:
            if trials is not None and (waiting := trials.look()) is not None:
                return waiting
            found = _unscored(last, self._skipped) if last is not None else None
            # One that does not wait for its score does not count: a fault has ended it.
            if found is None or (trials is not None and trials.trials.owns(found.metadata)):
                return None
            return to_score(found)

        self._unscored, self._dirty = await self._read(look), True
        if self._leading is not None:
            await self._leading.count()
            self._dirty = True

    def _doing(self, what: str) -> None:
        self._busy, self._dirty = what, True

    async def _read(self, work: Callable[[], Any]) -> Any:
        """Return what a function finds on the disk."""
        return await asyncio.get_running_loop().run_in_executor(self._disk, work)


def _fields(message: Any, names: tuple[str, ...]) -> dict[str, Any] | None:
    if message is None:
        return None
    values = {name: getattr(message, name) for name in names}
    return {k: list(v) if isinstance(v, list | tuple) else v for k, v in values.items()}


def _unscored(path: Path, skipped: str) -> Episode | None:
    """Return the episode of a folder if it waits for a score."""
    try:
        episode = read_episode(path)
    except RolloutError:  # gone, or not readable: there is nothing to score
        return None
    if episode.discarded or episode.score is not None or episode.id == skipped:
        return None
    return episode


def _access(values: Mapping[str, Any]) -> Access:
    def file(name: str) -> Path | None:
        text = values[name]
        return None if text == NONE else Path(text).expanduser()

    secret = file("panel_password_file")
    return Access(
        address=values["panel_address"],
        password=read_password(secret) if secret is not None else "",
        certificate=file("panel_certificate"),
        key=file("panel_key"),
    )


def make_node() -> shell.ManagedNode:
    """Create the node and, with ``autostart``, bring it up."""
    return shell.bring_up(OperatorPanel())


def main() -> None:
    """Entry point of ``ros2 run cosmos_policy_ros operator_panel``."""
    shell.main(make_node)
