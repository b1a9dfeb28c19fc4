"""The policy node moves nothing while its watchdog is silent, holds the arms or took over."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from cosmos_policy_ros.msg import ArmInterfaceState

from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.nodes import policy_watchdog
from cosmos_policy_ros.nodes.policy_watchdog import WatchdogMonitor
from cosmos_policy_ros.rig.spec import load_rig

WATCHDOG = "arm_interface_node"


class Bench:
    """A watch, its clock, and its watchdog's voice."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, watchdog: str | None, dry: bool) -> None:
        self.now = 100.0
        self.topics: list[str] = []
        self.speak: Callable[[Any], None] = lambda _: None
        monkeypatch.setattr(policy_watchdog, "time", SimpleNamespace(monotonic=lambda: self.now))
        node: Any = SimpleNamespace(create_subscription=self._subscribe)
        spec = load_rig("interbotix_2", config_folder("rigs"))
        self.watch = WatchdogMonitor(node, spec, watchdog, dry=dry)

    def _subscribe(self, kind: type, topic: str, hear: Callable[[Any], None], qos: Any) -> None:
        self.topics.append(topic)
        self.speak = hear

    def run(self, seconds: float, *, armed: bool = True, reason: str = "") -> None:
        for _ in range(round(seconds / 0.05)):
            self.now += 0.05
            self.speak(ArmInterfaceState(reason=reason))
            self.watch.wake(armed)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(monkeypatch, WATCHDOG, dry=False)


@pytest.mark.parametrize(
    ("watchdog", "dry", "topics"),
    [
        (WATCHDOG, False, ["arm_interface_node/state"]),
        ("lab/watchdog", False, ["lab/watchdog/state"]),
        (None, False, []),
        (WATCHDOG, True, []),
    ],
)
def test_whom_it_listens_to(
    monkeypatch: pytest.MonkeyPatch, watchdog: str | None, dry: bool, topics: list[str]
) -> None:
    bench = Bench(monkeypatch, watchdog, dry)
    assert bench.topics == topics
    assert bench.watch.needed == bool(topics)
    if not topics:
        bench.now += 1000.0
        assert bench.watch.problem() == bench.watch.silence() == ""


def test_a_watchdog_must_be_heard_of_and_go_on_speaking(bench: Bench) -> None:
    assert "has not been heard of on arm_interface_node/state" in bench.watch.problem()
    bench.run(1.0)
    assert not bench.watch.problem()
    for _ in range(7):
        bench.now += 0.05
        bench.watch.wake(True)
    assert "the arm interface was last heard of 0.35 s ago" in bench.watch.problem()
    assert not bench.watch.held(), "nobody holds the arms: a brake of ours does"


def test_what_it_holds_is_not_moved_until_it_says_otherwise(bench: Bench) -> None:
    bench.run(1.0, reason="the policy node was last heard of 0.31 s ago")
    assert bench.watch.held() == (
        "the arm interface holds the arms: the policy node was last heard of 0.31 s ago"
    )
    bench.run(0.1)
    assert not bench.watch.held()


def test_a_node_that_slept_moves_nothing_before_it_has_heard_what_happened(bench: Bench) -> None:
    bench.run(1.0)
    bench.now += 0.5
    assert "kept waiting for 0.50 s, and the arm interface holds the arms" in bench.watch.held()
    # The first poll comes before the watchdog's word: it stays so until somebody disarms.
    bench.watch.wake(True)
    bench.run(2.0)
    assert "kept waiting for 0.50 s" in bench.watch.problem()
    bench.watch.wake(False)
    assert not bench.watch.problem()


def test_a_disarmed_node_may_sleep(bench: Bench) -> None:
    bench.run(1.0, armed=False)
    bench.now += 5.0
    bench.watch.wake(False)
    bench.run(0.1)
    assert not bench.watch.problem()


def test_arms_that_a_person_leads_are_not_moved_and_are_where_they_were_led(bench: Bench) -> None:
    bench.run(1.0)
    for phase in ("matching", "following", "clutched", "held", "stopping"):
        bench.speak(ArmInterfaceState(teleoperation=phase, led_to=[0.1] * 14))
        assert "a person leads the arms; end that first" in bench.watch.led, phase
    assert not bench.watch.problem(), "they are not held: the node that lends them goes on"
    bench.speak(ArmInterfaceState(teleoperation="off", led_to=[0.2] * 14))
    assert not bench.watch.led
    assert bench.watch.led_to is not None
    assert bench.watch.led_to.tolist() == [0.2] * 14, "the last word of where they are"
    bench.watch.led_to = None
    bench.speak(ArmInterfaceState(teleoperation="off", led_to=[0.2] * 14))
    assert bench.watch.led_to is None, "taken once"


def test_where_a_person_led_the_arms_of_a_node_that_is_disarmed_counts_no_more(
    bench: Bench,
) -> None:
    bench.run(1.0)
    bench.speak(ArmInterfaceState(teleoperation="following", led_to=[0.1] * 14))
    bench.watch.wake(False)
    assert bench.watch.led_to is None
