"""Whether an episode is good enough to learn from: GO, or NO-GO with every reason.

The monitor looks at receive stamp, header stamp and size of each message alone, so that it costs
microseconds a message.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace

from cosmos_policy_ros.bags.messages import header_stamp
from cosmos_policy_ros.core.config import from_mapping, load_config
from cosmos_policy_ros.core.errors import ConfigError
from cosmos_policy_ros.core.paths import package_share
from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.core.untrusted import parse_json
from cosmos_policy_ros.rig.spec import RigSpec

GIGABYTE = 1e9
NOISE_AS_JPEG = 0.4  # of its raw bytes; no image has more. One of a room has an eighth
PRIMARY = "primary"
IMAGES_KEPT = 32  # stamps per camera, a second of them, among which the nearest is looked for
MOST = 2.0**63  # of any number in a report: nanoseconds and bytes have 64 bits
SHORTEST = 2.0  # s; a rate over less is that of a start, not of a sensor
WINDOW = 2 * NS_PER_S  # ns over which the present rate is taken
# A computer without a battery for its clock wakes up in 1970 or on the day its image was made.
CLOCK_IS_SET = 1_704_067_200 * NS_PER_S  # 2024-01-01


@dataclass(frozen=True)
class QualityLimits:
    """``config/quality.yaml``."""

    least_rate: float  # fraction of a sensor's own rate
    longest_gap: float  # s between two messages of a sensor, and to the episode's ends
    most_lost: float  # fraction of a topic's messages lost on the way to the disk
    # Fraction of primary images whose wrist images are farther away than the rig's camera_skew.
    most_skewed: float
    clock_offset: float  # s between a message's stamp and its receipt
    least_free: float  # GB left on the disk
    stop_free: float  # GB left on the disk below which an episode is ended

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"{name}: {value} must be above 0")


def load_limits() -> QualityLimits:
    """Read the package's ``quality.yaml``. Raises ConfigError when it is wrong."""
    return load_config(QualityLimits, package_share() / "config" / "quality.yaml")


@dataclass(frozen=True)
class Sensor:
    """A sensor's topic in the bag, its rate [Hz], and a camera's role."""

    topic: str
    rate: float
    role: str = ""


def sensors_of(rig: RigSpec, resolve: Callable[[str], str]) -> tuple[Sensor, ...]:
    """Return a rig's cameras and arms; ``resolve`` makes a rig's topic the bag's."""
    states = dict.fromkeys(arm.joint_states for arm in rig.arms.values())
    return (
        *(Sensor(resolve(c.topic), rig.rates.cameras, c.role) for c in rig.cameras),
        *(Sensor(resolve(topic), rig.rates.joint_states) for topic in states),
    )


@dataclass
class TopicHealth:
    """The messages of one topic, counted and timed."""

    count: int = 0  # written
    lost: int = 0  # on the way here, as the middleware reports
    dropped: int = 0  # since the writer's queue was full
    unreadable: int = 0  # images that could not become JPEG
    longest_gap: float = 0.0  # s between two receipts
    offset: float = 0.0  # largest distance of a header stamp from its receipt, s; of sensors only
    first_ns: int = 0  # receipts
    last_ns: int = 0

    @property
    def rate(self) -> float:
        """Messages per second between the first and the last; 0 for fewer than two."""
        span = self.last_ns - self.first_ns
        return (self.count - 1) * NS_PER_S / span if span > 0 else 0.0

    def add(self, received_ns: int) -> None:
        """Count one message."""
        if self.count:
            self.longest_gap = max(self.longest_gap, (received_ns - self.last_ns) / NS_PER_S)
        else:
            self.first_ns = received_ns
        self.count += 1
        self.last_ns = received_ns


@dataclass(frozen=True)
class QualityReport:
    """Whether to learn from an episode, and all reasons not to, each with value and limit."""

    go: bool
    reasons: tuple[str, ...]
    topics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # of TopicHealth
    waited_bytes: int = 0  # most that ever waited for the disk
    skewed: float = 0.0  # fraction of primary images too far from the wrists' in time
    free_gb: float = 0.0  # left on the disk at the end

    @property
    def text(self) -> str:
        """One line for people."""
        return "GO" if self.go else f"NO-GO: {'; '.join(self.reasons)}"

    def to_json(self) -> str:
        """Return it for the bag's metadata."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> QualityReport:
        """Read it back. Raises ValueError when it is none."""
        try:
            values = parse_json(text)
            # Nanoseconds are whole numbers, which a float does not hold.
            report = replace(from_mapping(cls, values, "verdict"), topics=values.get("topics", {}))
        except (ConfigError, AttributeError, TypeError) as error:
            raise ValueError(str(error)) from error
        numbers = [n for health in report.topics.values() for n in health.values()]
        numbers += [report.waited_bytes, report.skewed, report.free_gb]
        if not all(math.isfinite(n) and 0 <= n < MOST for n in numbers):
            raise ValueError(f"a number in it is not from 0 to {MOST:g}")
        return report


class QualityMonitor:
    """Watches one episode. Not thread-safe: its owner takes turns."""

    def __init__(self, sensors: Iterable[Sensor], camera_skew: float, limits: QualityLimits):
        """Begin; ``camera_skew`` is the rig's limit [s]."""
        self._sensors = {sensor.topic: sensor for sensor in sensors}
        self._health = {topic: TopicHealth() for topic in self._sensors}
        self._limits = limits
        self._skew_ns = int(camera_skew * NS_PER_S)
        roles = [sensor.role for sensor in self._sensors.values() if sensor.role]
        self._stamps = {role: deque[int](maxlen=IMAGES_KEPT) for role in roles}
        self._unpaired: deque[int] = deque(maxlen=IMAGES_KEPT)
        self._primaries = self._skewed = 0
        self._newest_ns = self._first_ns = 0
        self._went_back = 0.0

    def add(self, topic: str, received_ns: int, cdr: bytes) -> None:
        """Note a message that was written."""
        health = self._health.setdefault(topic, TopicHealth())
        health.add(received_ns)
        self._first_ns = self._first_ns or received_ns
        self._went_back = max(self._went_back, (self._newest_ns - received_ns) / NS_PER_S)
        self._newest_ns = max(self._newest_ns, received_ns)
        sensor = self._sensors.get(topic)
        if sensor is None:
            return
        stamp_ns = header_stamp(cdr)
        health.offset = max(health.offset, abs(received_ns - stamp_ns) / NS_PER_S)
        if not sensor.role:
            return
        self._stamps[sensor.role].append(stamp_ns)
        if sensor.role == PRIMARY:
            self._unpaired.append(stamp_ns)
        others = [stamps for name, stamps in self._stamps.items() if name != PRIMARY]
        # Images of one moment come one after the other: wait for those that may be nearer.
        while self._unpaired and all(o and o[-1] >= self._unpaired[0] for o in others):
            primary = self._unpaired.popleft()
            nearest = [min(abs(primary - stamp) for stamp in stamps) for stamps in others]
            self._primaries += 1
            self._skewed += max(nearest, default=0) > self._skew_ns

    def lost(self, topic: str, count: int) -> None:
        """Note messages that the middleware lost."""
        self._health.setdefault(topic, TopicHealth()).lost += count

    def dropped(self, topic: str, count: int = 1) -> None:
        """Note messages that did not fit into the writer's queue."""
        self._health.setdefault(topic, TopicHealth()).dropped += count

    def unreadable(self, topic: str, count: int = 1) -> None:
        """Note images that could not become JPEG."""
        self._health.setdefault(topic, TopicHealth()).unreadable += count

    def report(self, now_ns: int, free_bytes: int, waited_bytes: int = 0) -> QualityReport:
        """Judge the episode, which ends at ``now_ns`` by the clock of the receipts."""
        limits, free_gb = self._limits, free_bytes / GIGABYTE
        skewed = self._skewed / self._primaries if self._primaries else 0.0
        reasons = [r for sensor in self._sensors.values() for r in self._of_sensor(sensor, now_ns)]
        for topic, health in self._health.items():
            for fate, lost in (
                ("lost on the way here", health.lost),
                ("dropped, the disk is too slow", health.dropped),
                ("no readable images and left out", health.unreadable),
            ):
                fraction = lost / (health.count + lost) if lost else 0.0
                if fraction > limits.most_lost:
                    reasons.append(f"{lost} messages of {topic} were {fate} ({fraction:.1%})")
        if skewed > limits.most_skewed:
            reasons.append(
                f"{skewed:.0%} of the primary images are more than "
                f"{self._skew_ns / NS_PER_S:g} s from the wrists' "
                f"(at most {limits.most_skewed:.0%})"
            )
        if self._went_back > limits.clock_offset:
            reasons.append(f"the recorder's clock was set back by {self._went_back:.1f} s")
        if free_gb < limits.least_free:
            reasons.append(
                f"{free_gb:.2f} GB are left on the disk (at least {limits.least_free:g})"
            )
        topics = {topic: {**asdict(h), "rate": h.rate} for topic, h in self._health.items()}
        return QualityReport(not reasons, tuple(reasons), topics, waited_bytes, skewed, free_gb)

    def _of_sensor(self, sensor: Sensor, now_ns: int) -> Iterator[str]:
        health, limits = self._health[sensor.topic], self._limits
        seconds = max(now_ns - self._first_ns, 0) / NS_PER_S if self._first_ns else 0.0
        if not health.count:
            yield f"{sensor.topic} never came"
            return
        ends = (health.first_ns - self._first_ns, now_ns - health.last_ns)
        gap = max(health.longest_gap, *(end / NS_PER_S for end in ends))
        if gap > limits.longest_gap:
            yield f"{sensor.topic} was silent for {gap:.2f} s (at most {limits.longest_gap:g})"
        least = limits.least_rate * sensor.rate
        if seconds > SHORTEST and health.rate < least:
            yield f"{sensor.topic} came at {health.rate:.1f} Hz (at least {least:.1f})"
        if health.offset > limits.clock_offset:
            yield (
                f"{sensor.topic} is stamped {health.offset:.1f} s away from its receipt (at most "
                f"{limits.clock_offset:g}): clocks disagree, or one jumped"
            )


class Traffic:
    """The recent messages, recorded or not, by which an episode may begin or not."""

    def __init__(self, on_disk: Mapping[str, float] | None = None) -> None:
        """Begin; ``on_disk`` says which part of a topic's bytes reaches the disk, else all do."""
        self._on_disk = on_disk or {}
        self._recent: deque[tuple[int, int]] = deque()  # receipt [ns] and bytes on the disk
        self._received: dict[str, int] = {}
        self._offset: dict[str, float] = {}  # s from the newest message's stamp to its receipt

    def add(self, topic: str, received_ns: int, cdr: bytes, *, stamped: bool) -> None:
        """Note a message; ``stamped`` when it begins with a header."""
        self._received[topic] = received_ns
        if stamped:
            self._offset[topic] = (received_ns - header_stamp(cdr)) / NS_PER_S
        self._recent.append((received_ns, round(len(cdr) * self._on_disk.get(topic, 1.0))))
        while self._recent[0][0] < received_ns - WINDOW:
            self._recent.popleft()

    def bytes_per_second(self, now_ns: int) -> float:
        """Return the present rate on the disk of all topics together, at most."""
        return sum(size for at, size in self._recent if at > now_ns - WINDOW) * NS_PER_S / WINDOW

    def problems(
        self,
        sensors: Iterable[str],
        now_ns: int,
        free_bytes: int,
        seconds: float,
        limits: QualityLimits,
    ) -> tuple[str, ...]:
        """Return why no episode of so many seconds should begin now, and what to do about each.

        ``now_ns`` is the recorder's clock, which must be the wall's.
        """
        found = []
        if now_ns < CLOCK_IS_SET:
            found.append("the clock is not set (it is before 2024): set it, or start chrony")
        since = now_ns - int(limits.longest_gap * NS_PER_S)
        found += [
            f"{topic} has been silent for {limits.longest_gap:g} s: is its driver running?"
            for topic in sensors
            if self._received.get(topic, since - 1) < since
        ]
        for topic, offset in self._offset.items():
            if abs(offset) > limits.clock_offset:
                found.append(
                    f"{topic} is stamped {offset:.1f} s away from now (at most "
                    f"{limits.clock_offset:g}): set both machines' clocks by the same server"
                )
        rate = self.bytes_per_second(now_ns)
        needed = rate * seconds / GIGABYTE + limits.least_free
        if free_bytes / GIGABYTE < needed:
            smaller = "" if self._on_disk else ", or record with images:=jpeg"
            found.append(
                f"{free_bytes / GIGABYTE:.1f} GB are left on the disk, and {seconds:g} s at "
                f"{rate / 1e6:.0f} MB/s need {needed:.1f}: free some{smaller}"
            )
        return tuple(found)
