"""An engine in an actor of a Ray cluster, on whichever machine has a GPU left.

Ray is an optional extra, imported only when it is asked for.
"""

from __future__ import annotations

import os
import platform
import socket
from typing import Any

from cosmos_policy_ros.core.errors import ConfigError, CosmosPolicyError, WorkerError
from cosmos_policy_ros.inference.spec import EngineLoader, EngineSpec, Task
from cosmos_policy_ros.inference.worker import Host, MemoryBudget, as_answer
from cosmos_policy_ros.rig.decision import EngineInfo

REACH = 5.0  # s for the head of a cluster to be reached


def connect(address: str) -> Any:
    """Return the module ``ray``, connected to a running cluster or to one started here.

    The address "auto" means the cluster that this machine is part of, "local" starts one on this
    machine alone. Ray's processes listen on the machine's network, not on loopback only, and admit
    all that have the cluster's token. Raises ConfigError: no Ray, or no such cluster.
    """
    try:
        import ray
    except ImportError as error:
        raise ConfigError(f"ray:={address} needs Ray ({error}): pip install ray") from error
    if ray.is_initialized():
        return ray
    try:
        if address == "local":
            # Ray's own default is the priority 15: beside two busy programs on two cores a decision
            # of half a second took more than a minute.
            ray.init(include_dashboard=False, _system_config={"worker_niceness": 0})
        else:
            host, colon, port = address.rpartition(":")
            if colon and port.isdecimal():  # by itself Ray would try for minutes
                socket.create_connection((host, int(port)), timeout=REACH).close()
            ray.init(address=address)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"no Ray cluster at '{address}' ({reason}); start one with `ray start --head`, or "
            "give ray:=local"
        ) from error
    return ray


class RayHost(Host):
    """An actor, which Ray places.

    A device "cuda" stands for one GPU that Ray chooses and gives to no other; "cpu" for as many
    cores as the engine has threads.
    """

    def __init__(self, ray: Any, spec: EngineSpec, load: EngineLoader) -> None:
        """Start nothing yet; ``ray`` is what :func:`connect` returned."""
        super().__init__()
        if spec.device not in ("cuda", "cpu"):
            raise ConfigError(
                f"device '{spec.device}': which GPU it will be is Ray's to choose; give cuda or "
                "cpu once per worker"
            )
        self.title, self.name = f"engine {spec.engine} on Ray ({spec.device})", "actor"
        self._ray, self._spec, self._load = ray, spec, load
        self._actor: Any = None

    def start(self, seconds: float) -> EngineInfo:
        """Have an actor placed and its engine loaded; a cluster without a free place hangs."""
        gpus = 1 if self._spec.device == "cuda" else 0
        kind = self._ray.remote(num_cpus=self._spec.threads, num_gpus=gpus, max_restarts=0)(_Actor)
        self._actor = kind.remote(self._spec, self._load)
        self.name, info = self._receive(self._actor.load.remote(), seconds, "start-up")
        assert isinstance(info, EngineInfo)
        return info

    def ask(self, task: Task, seconds: float) -> object:
        """Have a task done and wait for the answer."""
        return self._receive(self._actor.answer.remote(task), seconds, task.what)

    def stop(self) -> None:
        """End the actor, whatever it does."""
        if self._actor is not None and self._ray.is_initialized():
            self._ray.kill(self._actor, no_restart=True)
        self._actor = None

    def _receive(self, asked: Any, seconds: float, during: str) -> Any:
        self.wait_until(lambda left: self._ray.wait([asked], timeout=left)[0], seconds, during)
        try:
            answer = self._ray.get(asked)
        except self._ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[0]
            raise WorkerError(f"{self.name} was lost during {during}: {reason}") from error
        if isinstance(answer, CosmosPolicyError):
            raise answer
        return answer


class _Actor:
    """The engine, over there. Errors are returned, since raised they would lose their class."""

    def __init__(self, spec: EngineSpec, load: EngineLoader) -> None:
        self._spec, self._load = spec, load

    def load(self) -> tuple[str, EngineInfo] | CosmosPolicyError:
        """Load the engine; return this actor's name, and the engine's info."""
        try:
            # Its device is its own: Ray gives it to no other actor.
            self._engine = self._load(self._spec, lambda f: MemoryBudget().admit(self, f))
        except Exception as error:
            return as_answer(error)
        return f"actor {os.getpid()} on {platform.node()}", self._engine.info

    def answer(self, task: Task) -> object:
        """Do a task."""
        try:
            return self._engine.answer(task)
        except Exception as error:
            return as_answer(error)
