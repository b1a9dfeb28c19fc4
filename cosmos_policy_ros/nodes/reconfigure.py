"""A lifecycle node given other parameters while the graph runs: the calls, in order.

They are made by the operator's programs, each in its own way: a plain thread (``nodes.client``), or
an event loop beside an executor (``nodes.operator_panel_graph``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.srv import SetParametersAtomically
from rclpy.parameter import Parameter

from cosmos_policy_ros.nodes.options import Value


class Step(NamedTuple):
    """One call.

    Attributes:
        service: its name below the node's.
        kind: its type.
        request: to be sent.
        title: what it does, for people.
        may_fail: it does where there is nothing to do, such as to deactivate an inactive node.
    """

    service: str
    kind: Any
    request: Any
    title: str
    may_fail: bool

    def problem(self, node: str, response: Any) -> str:
        """Return what went wrong and what to do, empty if nothing did."""
        if self.service == "set_parameters_atomically":
            reason = "" if response.result.successful else response.result.reason
            return reason and f"{node} does not take its parameters: {reason}"
        if response.success or self.may_fail:
            return ""
        return f"{node} could not {self.title} with its new parameters: its log says why"


def reconfiguration(values: Mapping[str, Value]) -> list[Step]:
    """Return the calls that give an active node other parameters and activate it again."""

    def change(transition: int, title: str, *, may_fail: bool = False) -> Step:
        request = ChangeState.Request(transition=Transition(id=transition))
        return Step("change_state", ChangeState, request, title, may_fail)

    given = [Parameter(name, value=value).to_parameter_msg() for name, value in values.items()]
    return [
        change(Transition.TRANSITION_DEACTIVATE, "be deactivated", may_fail=True),
        change(Transition.TRANSITION_CLEANUP, "be cleaned up", may_fail=True),
        Step(
            "set_parameters_atomically",
            SetParametersAtomically,
            SetParametersAtomically.Request(parameters=given),
            "be given parameters",
            may_fail=False,
        ),
        change(Transition.TRANSITION_CONFIGURE, "be configured"),
        change(Transition.TRANSITION_ACTIVATE, "be activated"),
    ]
