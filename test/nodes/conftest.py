"""ROS for the tests' own process, in a domain that no other graph is in."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest
import rclpy
from helpers.graph import isolate
from rclpy.signals import SignalHandlerOptions

from cosmos_policy_ros.nodes.graph import environment


@pytest.fixture(scope="session", autouse=True)
def ros() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        apart = isolate()
        for name, value in (apart | environment(variables=os.environ | apart)).items():
            patch.setenv(name, value)
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
        yield
        rclpy.shutdown()


@pytest.fixture(scope="module", autouse=True)
def collected() -> None:
    """Collect the nodes of the file before: until then they keep their names in the graph.

    A client that looks for the node of that name would find one of them.
    """
    gc.collect()
