"""A stepped rig runs faster than real time, but in a test not ahead of the policy node."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

from helpers.graph import CHUNK, Graph

STOPPED, RUNNING = 0.2, 0.15  # wall s; a step of the rig takes some 0.01


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
