"""Starts the graph's nodes as processes, and ends them so that nothing is left behind."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from cosmos_policy_ros.errors import CosmosPolicyError
from cosmos_policy_ros.nodes.graph import NodeProcess, environment
from cosmos_policy_ros.rig.share import executable

_PR_SET_PDEATHSIG = 1
PATIENCE = 15.0  # s for a node to finish its bag or its model after SIGINT


class NodeProcesses:
    """The running nodes; a context manager that ends them whatever happens."""

    def __init__(self, nodes: Sequence[NodeProcess], logs: Path) -> None:
        """Start every node, its output in ``logs/<node>.log``."""
        logs.mkdir(parents=True, exist_ok=True)
        self._logs = logs
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        try:
            for node in nodes:
                self._running[node.executable] = _start(node, logs)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> NodeProcesses:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def pid(self, name: str) -> int:
        """Return the process id of a node."""
        return self._running[name].pid

    def exit_code(self, name: str) -> int | None:
        """Return a node's exit code, negative for a signal; None while it runs."""
        return self._running[name].poll()

    def log(self, name: str) -> str:
        """Return what a node has printed so far."""
        return (self._logs / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    def check(self) -> None:
        """Raise CosmosPolicyError, with its last words, when a node has ended by itself."""
        for name, process in self._running.items():
            if process.poll() is not None:
                words = self.log(name).strip().splitlines()[-5:]
                raise CosmosPolicyError(
                    f"{name} ended with exit code {process.returncode}: " + " / ".join(words)
                )

    def close(self) -> None:
        """Ask every node to finish, then make sure; safe to call twice."""
        for process in self._running.values():
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + PATIENCE
        for process in self._running.values():
            try:
                process.wait(timeout=max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _start(node: NodeProcess, logs: Path) -> subprocess.Popen[bytes]:
    arguments = [sys.executable, str(executable(node.executable)), "--ros-args"]
    arguments += ["--enclave", node.enclave, "--params-file", str(node.parameter_file)]
    for name, value in node.parameters.items():
        arguments += ["-p", f"{name}:={json.dumps(value)}"]
    with (logs / f"{node.executable}.log").open("wb") as output:
        return subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | environment(node.profile) | {"PYTHONUNBUFFERED": "1"},
            start_new_session=True,  # Ctrl-C in the terminal is ours to pass on, in order
            preexec_fn=_end_with_parent,
        )


def _end_with_parent() -> None:
    """Have the kernel interrupt this node when its starter dies, even by SIGKILL."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGINT)
