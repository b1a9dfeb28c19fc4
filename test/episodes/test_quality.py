"""Pins what makes an episode unfit to learn from, each fault alone, and that nothing else does."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import replace

import pytest

from cosmos_policy_ros.bags.messages import header_stamp
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.episodes.quality import (
    QualityMonitor,
    QualityReport,
    Sensor,
    Traffic,
    load_limits,
    sensors_of,
)
from cosmos_policy_ros.rig.spec import load_rig

START = 1_790_000_000 * NS_PER_S
SENSORS = (
    Sensor("/wrist", 25.0, "left_wrist"),
    Sensor("/high", 25.0, "primary"),
    Sensor("/left/joint_states", 100.0),
)
LIMITS = load_limits()
SKEW = 0.05
PLENTY = 50_000_000_000
Message = tuple[str, int, bytes]


def message(stamp_ns: int, little: bool = True) -> bytes:
    sec, nanosec = divmod(stamp_ns, NS_PER_S)
    order = "<" if little else ">"
    return bytes([0, int(little), 0, 0]) + struct.pack(f"{order}iI", sec, nanosec) + b"rest"


def sound(seconds: float = 10.0) -> Iterator[Message]:
    """Yield (topic, receipt, message) of a rig without a fault, in order of receipt."""
    found: list[Message] = []
    for sensor in SENSORS:
        period = int(NS_PER_S / sensor.rate)
        stamps = range(START, START + int(seconds * NS_PER_S), period)
        found += [(sensor.topic, stamp + 5_000_000, message(stamp)) for stamp in stamps]
    yield from sorted(found, key=lambda m: m[1])


def judge(messages: Iterator[Message], now_ns: int = START + 10 * NS_PER_S) -> QualityReport:
    watch = QualityMonitor(SENSORS, SKEW, LIMITS)
    for each in messages:
        watch.add(*each)
    return watch.report(now_ns, PLENTY)


def test_a_sound_episode_is_go() -> None:
    verdict = judge(sound())
    assert verdict.go and verdict.reasons == () and verdict.text == "GO"
    assert verdict.topics["/high"]["count"] == 250
    assert verdict.topics["/left/joint_states"]["rate"] == pytest.approx(100.0)
    assert verdict.topics["/high"]["offset"] == pytest.approx(0.005)


def without(topic: str, first: float, last: float) -> Iterator[Message]:
    for each in sound():
        if not (each[0] == topic and first <= (each[1] - START) / NS_PER_S < last):
            yield each


@pytest.mark.parametrize(
    ("topic", "first", "last", "reason"),
    [
        ("/high", 0.0, 99.0, "/high never came"),
        ("/high", 4.0, 4.7, r"/high was silent for 0\.7\d s \(at most 0\.5\)"),
        ("/left/joint_states", 0.0, 0.8, r"/left/joint_states was silent for 0\.\d+"),
        ("/left/joint_states", 9.0, 99.0, r"/left/joint_states was silent for 1\.\d+ s"),
    ],
)
def test_silence(topic: str, first: float, last: float, reason: str) -> None:
    (found,) = judge(without(topic, first, last)).reasons
    assert re.fullmatch(rf"{reason}.*", found), found


def test_a_slow_sensor() -> None:
    period = NS_PER_S // 25
    thinned = (m for m in sound() if m[0] != "/high" or (m[1] - START) // period % 3)
    (reason,) = judge(thinned).reasons
    assert reason.startswith("/high came at ") and reason.endswith("Hz (at least 22.5)")


def test_the_rate_of_a_short_episode_says_nothing() -> None:
    few = [m for m in sound(1.0) if m[0] != "/high" or (m[1] - START) % (120_000_000) < 10_000_000]
    assert judge(iter(few), START + NS_PER_S).go


@pytest.mark.parametrize("deed", ["lost", "dropped"])
@pytest.mark.parametrize(("count", "go"), [(2, True), (3, False)])
def test_losses_beyond_a_hundredth(deed: str, count: int, go: bool) -> None:
    watch = QualityMonitor(SENSORS, SKEW, LIMITS)
    for each in sound():
        watch.add(*each)
    if deed == "lost":
        watch.lost("/high", count)
    else:
        for _ in range(count):
            watch.dropped("/high")
    verdict = watch.report(START + 10 * NS_PER_S, PLENTY)
    assert verdict.go == go
    assert go or f"{count} messages of /high were {deed}" in verdict.text


def test_cameras_that_drift_apart() -> None:
    def every_fifth_wrist() -> Iterator[Message]:
        for topic, at, cdr in sound():
            if topic != "/wrist" or (header_stamp(cdr) - START) // (NS_PER_S // 25) % 5 == 0:
                yield topic, at, cdr

    reason = judge(every_fifth_wrist()).reasons[-1]
    assert "of the primary images are more than 0.05 s from the wrists'" in reason


def test_images_of_one_moment_may_come_in_any_order() -> None:
    """And one of them late: its stamp counts, not its arrival."""
    late = [
        (topic, at + (70_000_000 if topic == "/wrist" else 0), cdr) for topic, at, cdr in sound()
    ]
    assert judge(iter(sorted(late, key=lambda m: m[1])), START + 10 * NS_PER_S + 80_000_000).go


@pytest.mark.parametrize("jump", [10, -10])
def test_a_clock_that_jumps(jump: int) -> None:
    """Drivers and recorder share it: stamps and receipts jump together."""
    middle = START + 5 * NS_PER_S

    def jumping() -> Iterator[Message]:
        for topic, at, cdr in sound():
            by = jump * NS_PER_S if at > middle else 0
            yield topic, at + by, message(header_stamp(cdr) + by)

    verdict = judge(jumping(), START + (10 + max(jump, 0)) * NS_PER_S)
    assert not verdict.go
    assert ("was silent for 10" if jump > 0 else "clock was set back by 10") in verdict.text


def test_stamps_of_another_clock() -> None:
    off = ((topic, at, message(header_stamp(cdr) - 3 * NS_PER_S)) for topic, at, cdr in sound())
    verdict = judge(off)
    assert len(verdict.reasons) == 3
    assert "is stamped 3.0 s away from its receipt (at most 1)" in verdict.reasons[0]


def test_a_disk_nearly_full() -> None:
    watch = QualityMonitor(SENSORS, SKEW, LIMITS)
    for each in sound():
        watch.add(*each)
    verdict = watch.report(START + 10 * NS_PER_S, 300_000_000, waited_bytes=7)
    assert verdict.reasons == ("0.30 GB are left on the disk (at least 1)",)
    assert QualityReport.from_json(verdict.to_json()) == verdict


def test_stamps_are_read_in_both_byte_orders() -> None:
    assert header_stamp(message(START + 7)) == header_stamp(message(START + 7, False)) == START + 7


def test_sensors_of_a_rig_have_its_rates() -> None:
    rig = load_rig("sim", config_folder("rigs"))
    sensors = sensors_of(rig, lambda topic: f"/ns/{topic}")
    assert [s.role for s in sensors] == ["left_wrist", "right_wrist", "primary", "", ""]
    assert {s.rate for s in sensors if s.role} == {25.0}
    assert sensors[3].topic == "/ns/follower_left/joint_states"


# ---------------------------------------------------------------- before the episode

TOPICS = [sensor.topic for sensor in SENSORS]


@pytest.fixture
def traffic() -> Traffic:
    traffic = Traffic()
    for topic, at, cdr in sound(3.0):
        traffic.add(topic, at, cdr + bytes(1000 - len(cdr)), stamped=True)
    return traffic


NOW = START + 3 * NS_PER_S


def test_nothing_speaks_against_a_living_rig(traffic: Traffic) -> None:
    assert traffic.problems(TOPICS, NOW, PLENTY, 44.0, LIMITS) == ()
    assert traffic.bytes_per_second(NOW) == pytest.approx(150_000, rel=0.02)


def test_a_silent_sensor_is_named(traffic: Traffic) -> None:
    (found,) = traffic.problems([*TOPICS, "/right/joint_states"], NOW, PLENTY, 44.0, LIMITS)
    assert found == "/right/joint_states has been silent for 0.5 s: is its driver running?"
    assert len(traffic.problems(TOPICS, NOW + NS_PER_S, PLENTY, 44.0, LIMITS)) == 3


def test_a_disk_without_room_for_the_whole_trial(traffic: Traffic) -> None:
    (found,) = traffic.problems(TOPICS, NOW, 1_900_000_000, 7000.0, LIMITS)
    assert found.startswith("1.9 GB are left on the disk, and 7000 s at 0 MB/s need 2.0")
    assert traffic.problems(TOPICS, NOW, 2_200_000_000, 7000.0, LIMITS) == ()


def test_another_machines_clock(traffic: Traffic) -> None:
    traffic.add("/high", NOW, message(NOW + 2 * NS_PER_S), stamped=True)
    (found,) = traffic.problems(TOPICS, NOW, PLENTY, 44.0, LIMITS)
    assert found.startswith("/high is stamped -2.0 s away from now (at most 1)")


def test_a_clock_that_was_never_set() -> None:
    traffic = Traffic()
    for topic in TOPICS:
        traffic.add(topic, NS_PER_S, message(NS_PER_S), stamped=True)
    (found,) = traffic.problems(TOPICS, NS_PER_S, PLENTY, 44.0, LIMITS)
    assert "the clock is not set" in found


def test_limits_must_be_positive() -> None:
    with pytest.raises(ValueError, match="longest_gap: 0 must be above 0"):
        replace(LIMITS, longest_gap=0)
