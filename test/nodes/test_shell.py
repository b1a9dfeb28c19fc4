"""A node takes down what it has set up, also when that failed half way, and can be set up again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
from cosmos_policy_ros.action import RunTask
from rclpy.action import ActionServer
from rclpy.lifecycle import TransitionCallbackReturn
from std_msgs.msg import Header
from std_srvs.srv import Trigger

from cosmos_policy_ros.core.errors import ConfigError
from cosmos_policy_ros.nodes.options import Option
from cosmos_policy_ros.nodes.shell import ManagedNode, value_of

OPTIONS = (Option("steps", int, "left to something else", 1, 9), Option("name", "x", "a text"))


class Managed(ManagedNode):
    """Makes one entity of every kind, and fails in between if it is told to."""

    def __init__(self) -> None:
        super().__init__("managed", OPTIONS)
        self.error: Exception | None = None
        self.done: list[str] = []

    def set_up(self) -> None:
        self.create_publisher(Header, "~/plain", 1)
        self.create_lifecycle_publisher(Header, "~/managed", 1)
        self.create_subscription(Header, "~/heard", lambda _: None, 1)
        self.create_timer(1.0, lambda: None)
        if self.error is not None:
            raise self.error
        self.create_service(Trigger, "~/asked", lambda _, response: response)
        self.create_client(Trigger, "~/asks")
        self.create_guard_condition(lambda: None)
        ActionServer(self, RunTask, "~/acts", lambda _: RunTask.Result())

    def tear_down(self) -> None:
        self.done.append("torn down")

    def come_to_rest(self, reason: str) -> None:
        self.done.append(reason)

    def entities(self) -> Counter[str]:
        return Counter(type(each).__name__ for each in self._entities())


@pytest.fixture
def node() -> Iterator[Managed]:
    node = Managed()
    yield node
    node.destroy_node()


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (ConfigError("no such rig"), TransitionCallbackReturn.FAILURE),
        (ZeroDivisionError(), TransitionCallbackReturn.ERROR),
    ],
)
def test_a_set_up_that_fails_half_way_leaves_nothing(
    node: Managed, error: Exception, result: TransitionCallbackReturn
) -> None:
    before, node.error = node.entities(), error
    assert node.trigger_configure() == result
    assert node.entities() == before
    assert node.done == ["torn down"]
    node.close()
    assert node.done == ["torn down"], "what is not set up has nothing to bring to rest"


def test_it_can_be_set_up_again_after_it_was_cleaned_up(node: Managed) -> None:
    before = node.entities()
    assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS
    made = node.entities()
    assert sum(made.values()) == sum(before.values()) + 8
    assert node.trigger_activate() == TransitionCallbackReturn.SUCCESS and node.active
    assert node.trigger_deactivate() == TransitionCallbackReturn.SUCCESS and not node.active
    assert node.trigger_cleanup() == TransitionCallbackReturn.SUCCESS
    assert node.entities() == before
    assert node.done == ["the managed was deactivated", "torn down"]
    assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS
    assert node.entities() == made


def test_a_parameter_that_something_else_decides_is_not_set(node: Managed) -> None:
    assert value_of(node, "steps") is None
    assert value_of(node, "name") == "x"
