"""The recorder node: one bag per episode, messages as they came, scores by service.

A thin shell over ``episodes.store``. Every subscription hands over serialised bytes, and these go
to the disk; only a raw camera's images become JPEG on the way, the very ones that the policy node
looks at.

Services and the watch over the episode are coroutines: what a disk or a late rig keeps waiting is
awaited, and messages are taken meanwhile.
"""

from __future__ import annotations

import shutil
import time
import traceback
from array import array
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from rclpy.node import Node
from rclpy.qos import QoSCompatibility, QoSDurabilityPolicy, QoSProfile, qos_check_compatible
from rclpy.qos_overriding_options import QoSOverridingOptions

from cosmos_policy_ros import __version__
from cosmos_policy_ros.bags.jpeg import IMAGE, rig_of_bag
from cosmos_policy_ros.bags.mcap_file import Topic, to_yaml
from cosmos_policy_ros.bags.messages import EpisodeMetadata
from cosmos_policy_ros.bags.types import load_types
from cosmos_policy_ros.core.config import load_yaml, named_file, read_config, to_plain
from cosmos_policy_ros.core.errors import CosmosPolicyError, RolloutError
from cosmos_policy_ros.core.paths import config_folder, package_share
from cosmos_policy_ros.core.task import choose_prompt, load_named_task
from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.episodes.labels import OperatorScore
from cosmos_policy_ros.episodes.quality import (
    NOISE_AS_JPEG,
    QualityMonitor,
    Traffic,
    load_limits,
    sensors_of,
)
from cosmos_policy_ros.episodes.recording import Options, Recording
from cosmos_policy_ros.episodes.store import EpisodeStore
from cosmos_policy_ros.episodes.topics import POLICY_NODE, episode_topics
from cosmos_policy_ros.episodes.trial_info import parse_trial, sealed_metadata
from cosmos_policy_ros.msg import Label as LabelMsg
from cosmos_policy_ros.msg import PolicyState, RecorderState
from cosmos_policy_ros.nodes import shell
from cosmos_policy_ros.nodes.background import Background
from cosmos_policy_ros.nodes.compaction import BackgroundCompaction
from cosmos_policy_ros.nodes.convert import label_to_message
from cosmos_policy_ros.nodes.options import DEFAULT, RECORDER
from cosmos_policy_ros.rig.spec import RigSpec, load_rig
from cosmos_policy_ros.rig.teleoperation import TELEOPERATION
from cosmos_policy_ros.srv import EndEpisode, ScoreEpisode, StartEpisode

try:
    from rclpy.event_handler import SubscriptionEventCallbacks
except ImportError:  # Humble
    from rclpy.qos_event import SubscriptionEventCallbacks

# Deep enough for two seconds of a 100 Hz topic while the disk hesitates.
QUEUE_DEPTH = 200

Keep = Callable[[str, int, bytes], None]
Lost = Callable[[str, int], None]


class RecorderInputs:
    """Hands over every message as it came; nothing is decoded or encoded again on its way.

    Attributes:
        traffic: what came lately, whether it was recorded or not.
    """

    def __init__(
        self,
        node: Node,
        topics: Sequence[Topic],
        sensors: Iterable[str],
        clock: Callable[[], int],
        keep: Keep,
        lost: Lost,
        traffic: Traffic,
    ) -> None:
        """Subscribe to absolute topics.

        Args:
            node: whose executor brings the messages.
            topics: absolute names.
            sensors: those of them whose headers are looked at.
            clock: nanoseconds now, the stamp of a receipt.
            keep: takes topic, stamp and message.
            lost: takes a topic and how many of its messages the middleware lost.
            traffic: is told of every message.
        """
        self.traffic = traffic
        self._node, self._clock, self._keep, self._lost = node, clock, keep, lost
        self._sensors = frozenset(sensors)
        self._subscriptions = {topic.name: self._subscribe(topic) for topic in topics}

    def take_all_waiting(self) -> None:
        """Hand over what was sent before the end was asked for: a service call overtakes it."""
        for topic in self._subscriptions:
            self._take_waiting(topic)

    def missing(self) -> tuple[str, ...]:
        """Return the sensors without a publisher."""
        return tuple(t for t in sorted(self._sensors) if not self._node.count_publishers(t))

    def incompatible(self) -> tuple[str, ...]:
        """Return what a publisher offers that this recorder cannot take, for people."""
        found = []
        for topic in sorted(self._sensors):
            asked = self._subscriptions[topic].qos_profile
            for publisher in self._node.get_publishers_info_by_topic(topic):
                compatible, reason = qos_check_compatible(publisher.qos_profile, asked)
                if compatible == QoSCompatibility.ERROR:
                    found.append(
                        f"{topic} from {publisher.node_name} does not reach the recorder "
                        f"({reason.strip()}): set qos_overrides in its parameter file"
                    )
        return tuple(found)

    def _subscribe(self, topic: Topic) -> Any:
        package, _, name = topic.msgtype.split("/")
        qos = QoSProfile(depth=QUEUE_DEPTH)
        if topic.msgtype.endswith(("/PolicyState", "/RigState")):
            qos.durability = QoSDurabilityPolicy.TRANSIENT_LOCAL

        def receive(message: bytes) -> None:
            self._receive(topic.name, message)
            # An executor hands over one message per topic and turn, too few for a busy machine.
            self._take_waiting(topic.name)

        def lose(event: Any) -> None:
            self._lost(topic.name, event.total_count_change)

        return self._node.create_subscription(
            getattr(import_module(f"{package}.msg"), name),
            topic.name,
            receive,
            qos,
            raw=True,
            event_callbacks=SubscriptionEventCallbacks(
                message_lost=lose, use_default_callbacks=False
            ),
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )

    def _receive(self, topic: str, message: bytes) -> None:
        now_ns = self._clock()
        self.traffic.add(topic, now_ns, message, stamped=topic in self._sensors)
        self._keep(topic, now_ns, message)

    def _take_waiting(self, topic: str) -> None:
        """Hand over what has come on a topic and waits its turn."""
        for _ in range(QUEUE_DEPTH):
            message = shell.take(self._subscriptions[topic])
            if message is None:
                return
            self._receive(topic, message)


# Nodes that missed each other's greeting say hello again after 3 s.
DISCOVERY_PATIENCE = 10.0  # wall s
WATCH_PERIOD = 1.0  # wall s between two looks at the episode, and reports of it
RETRY = 0.05  # wall s between two looks at what still speaks against an episode
# Ctrl-C reaches all nodes at once: the policy node's last trajectory, a brake, comes after it.
FAREWELL = 0.5  # wall s

NOT_GIVEN = -1.0  # a score in a request, see ScoreEpisode.srv


class RecorderNode(shell.ManagedNode):
    """Lifecycle node ``recorder_node``."""

    def __init__(self, **options: Any) -> None:
        """Declare the parameters; everything else happens when it is configured.

        Args:
            options: of rclpy's node, such as ``parameter_overrides``.
        """
        super().__init__("recorder_node", RECORDER, **options)
        self._store: EpisodeStore | None = None
        self._policy = PolicyState()
        self._last: Recording | None = None
        self._starting, self._ending, self._unanswered = False, False, 0
        self._started_ns = self._ended_ns = 0
        self._message = "no episode yet"
        self._phase = ""

    # ---------------------------------------------------------------- lifecycle

    def set_up(self) -> None:
        """Read the rig, open the folder, subscribe to everything an episode consists of."""
        rig_file = named_file(self.get_parameter("rig").value, config_folder("rigs"))
        values = self._read_values()
        self._rig, self._rig_yaml = _read_rig(rig_file, values["images"])
        root = Path(self.get_parameter("root").value).expanduser()
        types = load_types(package_share() / "msg")
        self._store = EpisodeStore(root, types, clock=self._now_ns)
        self._recover(self._store)
        self._topics = tuple(
            replace(topic, name=self.resolve_topic_name(topic.name))
            for topic in episode_topics(self._rig)
        )
        self._sensors = sensors_of(self._rig, self.resolve_topic_name)
        self._limits = load_limits()
        wanted, cameras = self._rig.recording, {s.topic for s in self._sensors if s.role}
        raw = tuple(t for t in self._topics if t.name in cameras and t.msgtype == IMAGE)
        jpegs = raw if wanted.images == "jpeg" else ()
        self._options = Options(jpegs, wanted.jpeg_quality, values["compression"])
        self._inputs = RecorderInputs(
            self,
            self._topics,
            [sensor.topic for sensor in self._sensors],
            self._now_ns,
            self._keep,
            self._lose,
            Traffic({topic.name: NOISE_AS_JPEG for topic in jpegs}),
        )
        self.create_subscription(
            PolicyState, f"{POLICY_NODE}/state", self._keep_policy_state, shell.LATCHED
        )
        self._states = self.create_publisher(RecorderState, "~/state", shell.LATCHED)
        self._scores = self.create_publisher(LabelMsg, "~/score", shell.LATCHED)
        self._background = Background(self)
        self._compaction = BackgroundCompaction(root.absolute(), self.get_logger())
        self._serve(StartEpisode, "~/start_episode", self._start)
        self._serve(EndEpisode, "~/stop_episode", self._stop)
        self._serve(EndEpisode, "~/discard_episode", self._discard)
        self._serve(ScoreEpisode, "~/score_episode", self._score)
        self.create_timer(
            WATCH_PERIOD,
            self._watch_episode,  # type: ignore[arg-type]  # rclpy awaits it
            callback_group=self._background.group,
            clock=Clock(clock_type=ClockType.STEADY_TIME),
        )
        self.create_timer(
            WATCH_PERIOD, self._compact_if_idle, clock=Clock(clock_type=ClockType.STEADY_TIME)
        )
        self.report()

    def come_to_rest(self, reason: str) -> None:
        """End the episode being recorded: an inactive recorder records nothing."""
        self.active = False
        self._compaction.stop()
        self._end_recording(reason)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Disconnect, unless a service is still being answered."""
        if self._unanswered:
            self.get_logger().error("a service is still being answered; clean up when it is")
            return TransitionCallbackReturn.FAILURE
        return super().on_cleanup(state)

    def close(self) -> None:
        """Finish the bag and answer waiting services; called before the ROS context ends."""
        self.active = False
        if self._store is not None:
            self._compaction.stop()
        if self._store is not None and self._store.recording is not None:
            deadline = time.monotonic() + FAREWELL
            while time.monotonic() < deadline:
                self._inputs.take_all_waiting()
                time.sleep(0.01)
        super().close()
        deadline = time.monotonic() + FAREWELL
        while self._unanswered and self.executor is not None and time.monotonic() < deadline:
            self.executor.spin_once(timeout_sec=0.01)

    def _end_recording(self, outcome: str) -> None:
        """End an episode, if there is one, before this returns."""
        if self._store is None or (recording := self._store.recording) is None:
            return
        self._inputs.take_all_waiting()
        try:
            recording.finish(outcome)
        except RolloutError as error:
            if not self._ending:  # by a service that came first, which has this very outcome
                self._message = str(error)
                self.get_logger().error(self._message)
        else:
            self._note_end(recording, outcome)
        self.report()

    def _recover(self, store: EpisodeStore) -> None:
        """Make whole what a recorder that died has left; nothing in there keeps this one away."""
        try:
            results = store.recover()
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
            self.get_logger().error(
                f"{store.root}: what an earlier recorder left is not recovered and stays as it is: "
                f"{told}"
            )
            return
        for result in results:
            if isinstance(result, RolloutError):
                self.get_logger().error(str(result))
            else:
                self._message = f"recovered {result.path.name}: {result.messages} messages"
                self.get_logger().warning(f"{self._message}; {result.loss}")

    # ---------------------------------------------------------------- messages

    def _keep(self, topic: str, stamp_ns: int, message: bytes) -> None:
        if self._store is not None and (recording := self._store.recording) is not None:
            recording.write(topic, stamp_ns, message)

    def _lose(self, topic: str, count: int) -> None:
        if self._store is not None and (recording := self._store.recording) is not None:
            recording.lost(topic, count)

    def _keep_policy_state(self, message: PolicyState) -> None:
        self._policy = message

    def _now_ns(self) -> int:
        return int(self.get_clock().now().nanoseconds)

    # ---------------------------------------------------------------- services

    def _serve(self, kind: Any, name: str, act: Callable[[Any, Any], Awaitable[None]]) -> Any:
        """Offer a service: a refusal is an answer with its reason, and nothing has changed."""

        async def answer(request: Any, response: Any) -> Any:
            self._unanswered += 1
            try:
                await act(request, response)
                response.success = True
                self.get_logger().info(response.message)
            except CosmosPolicyError as error:
                response.message = str(error)
                self.get_logger().error(f"refused: {error}")
            # A recorder that ended here would take the episode being recorded with it.
            except Exception as error:
                response.message = f"a bug in {name}: {type(error).__name__}: {error}"
                self.get_logger().error(f"{response.message}\n{traceback.format_exc()}")
            finally:
                self._unanswered -= 1
            self.report()
            return response

        return self.create_service(kind, name, answer, callback_group=self._background.group)

    @property
    def _open_store(self) -> EpisodeStore:
        assert self._store is not None, "services exist only when configured"
        return self._store

    async def _start(self, request: StartEpisode.Request, response: StartEpisode.Response) -> None:
        if self._starting:
            raise RolloutError(
                "an episode is being started by another call; wait for its answer, at most "
                f"{DISCOVERY_PATIENCE:g} s"
            )
        self._starting = True
        self._compaction.stop()  # an episode has the machine to itself
        try:
            recording = await self._begin(request)
        finally:
            self._starting = False
        self._last = recording
        self._started_ns = time.monotonic_ns()
        self._message = f"recording episode {recording.id}"
        response.message = self._message
        response.episode_id, response.path = recording.id, str(recording.path)

    async def _begin(self, request: StartEpisode.Request) -> Recording:
        self._refuse_inactive()
        name = request.task or self._policy.task
        if not name:
            raise RolloutError("task: name one, since there is no policy node that has one")
        task, text = await self._background.run(load_named_task, name)
        metadata = EpisodeMetadata(
            task=task.name,
            prompt=choose_prompt(task, request.prompt),
            rig=self._rig.name,
            engine=TELEOPERATION if request.demonstration else self._policy.engine,
            checkpoint="" if request.demonstration else self._policy.checkpoint,
            checkpoint_digest="" if request.demonstration else self._policy.checkpoint_digest,
            operator_name=request.operator_name,
            package_version=__version__,
            seed=request.seed,
            rig_yaml=self._rig_yaml,
            task_yaml=text,
            trial=parse_trial(request.trial).text() if request.trial else "",
        )
        metadata = sealed_metadata(metadata)
        store = self._open_store
        if (other := store.recording) is not None:
            raise RolloutError(f"episode '{other.id}' is being recorded; stop or discard it first")
        seen, recorded = self._policy.images, self._rig.recording.text
        if seen not in ("", recorded):
            raise RolloutError(
                f"the policy node sees images as '{seen}', this recorder would write '{recorded}', "
                f"and no decision could be found again: give both nodes the same rig and images"
            )
        await self._preflight(task.time_limit)
        recording: Recording = await self._background.run(
            store.begin, metadata, self._topics, self._quality(), self._options
        )
        if not self.active:
            await self._background.run(recording.finish, "the recorder node was deactivated")
            self._refuse_inactive()
        return recording

    def _refuse_inactive(self) -> None:
        if not self.active:
            raise RolloutError("the recorder is not active; activate it first")

    def _read_values(self) -> dict[str, Any]:
        values = {option.name: self.get_parameter(option.name).value for option in RECORDER}
        for option in RECORDER:
            option.check(values[option.name])
        return values

    def _quality(self) -> QualityMonitor:
        rig = rig_of_bag(self._rig, bool(self._options.jpegs))
        sensors = sensors_of(rig, self.resolve_topic_name)
        return QualityMonitor(sensors, self._rig.observation.camera_skew, self._limits)

    async def _preflight(self, seconds: float) -> None:
        """Wait until nothing speaks against an episode; what the rig sends before is lost.

        Raises:
            RolloutError: something still does; names every cause.
        """
        deadline = time.monotonic() + DISCOVERY_PATIENCE
        while True:
            free = await self._background.run(_free_bytes, self._open_store.root)
            self._refuse_inactive()
            reasons = self._problems(seconds, free)
            if not reasons:
                return
            if time.monotonic() > deadline:
                raise RolloutError("; ".join(reasons))
            await self._background.pause(RETRY)
            self._refuse_inactive()

    def _problems(self, seconds: float, free_bytes: int) -> tuple[str, ...]:
        self._inputs.take_all_waiting()
        if missing := self._inputs.missing():
            return (
                f"nobody publishes {', '.join(missing)}: is the driver running, and the topic as "
                f"in rig '{self._rig.name}'?",
            )
        found = self._inputs.incompatible()
        # A simulated clock may stand still, and a rig that stands with it sends nothing.
        if found or self.get_parameter("use_sim_time").value:
            return found
        return self._inputs.traffic.problems(
            [sensor.topic for sensor in self._sensors],
            self._now_ns(),
            free_bytes,
            seconds,
            self._limits,
        )

    async def _stop(self, request: EndEpisode.Request, response: EndEpisode.Response) -> None:
        recording = self._open_store.recording
        if recording is None:
            if self._last is not None and self._last.failed:
                raise RolloutError(f"episode {self._last.id} ended too early: {self._last.failure}")
            raise RolloutError("no episode is being recorded; start one first")
        if request.episode_id not in ("", recording.id):
            raise RolloutError(
                f"episode '{request.episode_id}' is not being recorded, '{recording.id}' is"
            )
        path = await self._finish(recording, request.reason or "stopped")
        response.message = self._message
        response.episode_id, response.path = recording.id, str(path)
        response.bytes = sum(recording.sizes.values())

    async def _discard(self, request: EndEpisode.Request, response: EndEpisode.Response) -> None:
        reason = request.reason or "discarded by the operator"
        discard, store = self._open_store.discard, self._open_store
        if store.recording is None:
            path = await self._background.run(discard, reason, episode=request.episode_id)
        else:
            path = await self._end(discard, reason, episode=request.episode_id)
        self._message = f"episode {path.stem} is marked as discarded; its files stay"
        response.message, response.path = self._message, str(path)
        response.episode_id = path.stem

    async def _score(self, request: ScoreEpisode.Request, response: ScoreEpisode.Response) -> None:
        operator_score = OperatorScore(
            score=None if request.score == NOT_GIVEN else request.score,
            success=request.task_success,
            stages=tuple(request.stages),
            deductions=tuple(request.deductions),
            operator_name=request.operator_name,
            note=request.note,
        )
        score, episode = self._open_store.score, request.episode_id
        *_, label = await self._background.run(score, operator_score, episode=episode)
        self._scores.publish(label_to_message(label))
        if self.get_parameter("compact_after_score").value:
            self._compaction.add(label.episode_id)
        self._message = f"episode {label.episode_id} scored {label.points:g} of 100"
        response.message = f"{self._message} (revision {label.revision})"
        response.revision, response.score = label.revision, label.points

    def _compact_if_idle(self) -> None:
        """Compact what was scored; not while an episode is recorded, begun or ended."""
        recording = self._store is not None and self._store.recording is not None
        if self.active and not (recording or self._starting or self._ending):
            self._compaction.look()

    async def _finish(self, recording: Recording, outcome: str) -> Path:
        path: Path = await self._end(recording.finish, outcome)
        self._note_end(recording, outcome)
        return path

    async def _end(self, end: Callable[..., Path], reason: str, **options: str) -> Path:
        """End an episode, which waits until its last byte is on the disk."""
        if self._ending:
            raise RolloutError("the episode is being ended by another call; wait for its answer")
        self._inputs.take_all_waiting()
        self._ending = True
        try:
            path: Path = await self._background.run(end, reason, **options)
        finally:
            self._ending = False
            self._ended_ns = time.monotonic_ns()
        return path

    def _note_end(self, recording: Recording, outcome: str) -> None:
        self._ended_ns = time.monotonic_ns()
        quality = recording.quality()
        if recording.refused:
            self.get_logger().error(f"left out of episode {recording.id}: {recording.refused}")
        self._message = f"episode {recording.id} is complete ({outcome}), {quality.text}"

    # ---------------------------------------------------------------- reports

    async def _watch_episode(self) -> None:
        """Once a second: tell how it goes, and end it before the disk is full."""
        if self._last is None or self._phase != "recording":
            return
        if self._ending:
            pass
        elif not self._last.open:
            self._ended_ns = time.monotonic_ns()
            self._message = f"episode {self._last.id} ended too early: {self._last.failure}"
            self.get_logger().error(self._message)
        elif self._last.quality().free_gb < self._limits.stop_free:
            least = self._limits.stop_free
            try:
                await self._finish(self._last, f"less than {least:g} GB were left on the disk")
            except RolloutError as error:
                self._message = str(error)
            self.get_logger().error(self._message)
        self.report()

    def report(self) -> None:
        """Publish how the episode goes, or how the last one went."""
        state = RecorderState(phase="idle", message=self._message)
        state.header.stamp = self.get_clock().now().to_msg()
        if (recording := self._last) is not None:
            if recording.open or self._ending:  # until its bag is whole, and can be read
                state.phase = "recording"
            ended = time.monotonic_ns() if recording.open else self._ended_ns
            state.episode_id, state.path = recording.id, str(recording.path)
            state.seconds = (ended - self._started_ns) / NS_PER_S
            state.bytes = sum(recording.sizes.values())
            quality = recording.quality()
            state.topics = list(quality.topics)
            found = quality.topics.values()
            state.counts = array("Q", [int(topic["count"]) for topic in found])
            state.rates = array("f", [topic["rate"] for topic in found])
            state.lost = sum(
                int(topic["lost"] + topic["dropped"] + topic["unreadable"]) for topic in found
            )
            state.waiting_bytes, state.free_gb = quality.waited_bytes, quality.free_gb
            state.go, state.reasons = quality.go, list(quality.reasons)
        self._phase = state.phase
        self._states.publish(state)


def _read_rig(file: Path, images: str) -> tuple[RigSpec, str]:
    """Return the rig in force and its file's text, with the parameter ``images`` in both."""
    rig, text = load_rig(str(file), file.parent), read_config(file)
    if images == DEFAULT:
        return rig, text
    rig = rig.with_images("raw" if images == "raw" else "jpeg")
    return rig, to_yaml({**load_yaml(file), "recording": to_plain(rig.recording)})


def _free_bytes(root: Path) -> int:
    """Return what is left on the disk of the episodes' folder, which is made if it is gone."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        return shutil.disk_usage(root).free
    except OSError as error:
        raise RolloutError(f"{root}: cannot be the folder of episodes: {error}") from error


def make_node() -> shell.ManagedNode:
    """Create the node and, with ``autostart``, bring it up."""
    return shell.bring_up(RecorderNode())


def main() -> None:
    """Entry point of ``ros2 run cosmos_policy_ros recorder_node``."""
    shell.main(make_node)
