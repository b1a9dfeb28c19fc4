"""A person who leads the arms of a graph in real time."""

from __future__ import annotations

from typing import Any

from cosmos_policy_ros.srv import LeadArms
from helpers.realtime import RealTimeGraph
from helpers.waiting import PATIENCE
from std_srvs.srv import SetBool

TASK, PROMPT = "either_cube", "hand over the blue cube"  # that the small checkpoint knows


def at_rest(graph: RealTimeGraph) -> None:
    graph.faults()
    graph.client.stop()
    assert teleoperate(graph, False).success
    graph.wait(lambda: phase(graph) == "off", "teleoperation to end")
    assert graph.client.reset_rig(TASK, 3).success
    assert lead(graph, rest=True).success
    graph.wait(lambda: not graph.moving(), "the arms to rest")


def teleoperate(graph: RealTimeGraph, on: bool) -> Any:
    return graph.client.call(SetBool, "arm_interface_node/teleoperate", data=on)


def clutch(graph: RealTimeGraph, on: bool) -> Any:
    return graph.client.call(SetBool, "arm_interface_node/clutch", data=on)


def lead(graph: RealTimeGraph, **fields: Any) -> Any:
    return graph.client.call(LeadArms, "sim_rig_node/lead", timeout=PATIENCE, **fields)


def phase(graph: RealTimeGraph) -> str:
    return str(graph.watchdog.teleoperation)
