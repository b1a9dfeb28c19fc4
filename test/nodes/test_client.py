"""The operator's client calls nobody that has not found it: such an answer would be dropped."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from rcl_interfaces.srv import GetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from std_srvs.srv import Trigger

from cosmos_policy_ros.core.errors import CosmosPolicyError
from cosmos_policy_ros.nodes.client import GraphClient


def test_a_service_is_called_once_and_only_when_its_node_has_answered_us() -> None:
    server, client = Node("server", start_parameter_services=False), GraphClient("operator")
    order: list[str] = []

    def keep(name: str) -> Any:
        return lambda _request, response: (order.append(name), response)[1]

    server.create_service(Trigger, "server/go", keep("go"))
    executor, ending = SingleThreadedExecutor(), threading.Event()
    executor.add_node(server)

    def spin() -> None:
        while not ending.is_set():
            executor.spin_once(timeout_sec=0.02)

    thread = threading.Thread(target=spin)
    thread.start()
    try:
        with pytest.raises(CosmosPolicyError, match="service /server/get_parameters"):
            client.call(Trigger, "server/go", timeout=0.5)
        assert order == []
        server.create_service(GetParameters, "server/get_parameters", keep("parameters"))
        client.call(Trigger, "server/go")
        client.call(Trigger, "server/go")
    finally:
        ending.set()
        thread.join()
        executor.shutdown()
        client.close()
        server.destroy_node()
    assert order == ["parameters", "go", "go"]
