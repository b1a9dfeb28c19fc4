"""A stepped rig runs faster than real time, but in a test not ahead of the policy node."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
from builtin_interfaces.msg import Time
from helpers.graph import CHUNK, Graph
from rosgraph_msgs.msg import Clock

STOPPED, RUNNING = 0.2, 0.15  # wall s; a step of the rig takes some 0.01


def test_a_second_clock_holds_the_arms(tmp_path: Path) -> None:
    """One foreign message on /clock, 0.6 s ahead, flung the arms there."""
    with Graph(tmp_path) as graph:
        graph.settle()
        assert graph.client.arm().success
        graph.client.start_run(chunk_limit=3)
        graph.until_executing(1)
        graph.step(10)
        foreign = graph.client.node.create_publisher(Clock, "/clock", 10)
        graph.wait(lambda: foreign.get_subscription_count() >= 2, "it to be found")
        stamp = graph.client.step(0).header.stamp
        foreign.publish(Clock(clock=Time(sec=stamp.sec + 1, nanosec=stamp.nanosec)))
        graph.until_said("/clock", "disarm, then arm, to go on")
        (left, _) = graph.until_sent("/brake")
        chunk = graph.sent()[0][-2]
        rows = np.array([point.positions for point in chunk.points])
        first = np.array(left.points[0].positions)
        assert np.abs(rows[9:14] - first).max(axis=1).min() < 0.05, "it begins where the arm is"
        graph.step(30)
        assert graph.client.finish_run(graph.client.start_run(), 60.0).outcome == "refused"


def test_a_policy_node_that_is_kept_waiting_loses_no_source(tmp_path: Path) -> None:
    with Graph(tmp_path, size=(240, 320)) as graph:
        graph.settle()
        assert graph.client.arm().success
        policy, ended = graph.processes.pid("policy_node"), threading.Event()

        def stutter() -> None:
            while not ended.wait(RUNNING):
                os.kill(policy, signal.SIGSTOP)
                time.sleep(STOPPED)
                os.kill(policy, signal.SIGCONT)

        thread = threading.Thread(target=stutter)
        thread.start()
        try:
            result = graph.run_chunks(2)
        finally:
            ended.set()
            thread.join()
        assert (result.outcome, result.chunks) == ("chunk_limit", 2), result.message
        start = time.monotonic()
        graph.step(CHUNK)
        print(f"\na chunk's 2 s in {time.monotonic() - start:.2f} s undisturbed")
