"""Who answers: one worker for a policy asked directly, a world model over a pool for a search."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, Protocol

from cosmos_policy_ros.core.errors import ConfigError
from cosmos_policy_ros.inference.engines import load_engine
from cosmos_policy_ros.inference.ray_host import RayHost, connect
from cosmos_policy_ros.inference.spec import EngineLoader, EngineSpec, MemoryBudget
from cosmos_policy_ros.inference.tasks import Task
from cosmos_policy_ros.inference.worker import Host, ProcessHost, Worker, WorkerLimits
from cosmos_policy_ros.planning.scheduler import SearchScheduler
from cosmos_policy_ros.rig.decision import EngineInfo

AUTO = "auto"


class Inference(Protocol):
    """What the policy node talks to: a :class:`Worker` or a :class:`SearchScheduler`."""

    @property
    def status(self) -> str:
        """One of "starting", "ready", "restarting", "failed" and "closed"."""
        ...

    @property
    def message(self) -> str:
        """The last thing that happened, for people."""
        ...

    @property
    def restarts(self) -> int:
        """Of all inference processes."""
        ...

    @property
    def info(self) -> EngineInfo:
        """What the engine says of itself; empty before it is loaded."""
        ...

    @property
    def workers(self) -> Sequence[Worker]:
        """One per inference process."""
        ...

    def submit(self, task: Task, seconds: float | None = None) -> Future[Any]:
        """Ask; the future raises CosmosPolicyError."""
        ...

    def close(self) -> None:
        """End it; what is under way fails."""
        ...


def parse_devices(text: str) -> tuple[str, ...]:
    """Return the devices of a list like "cuda:0,cuda:1" or "cpu,cpu": one worker each.

    Raises:
        ConfigError: an empty entry.
    """
    devices = tuple(part.strip() for part in text.split(","))
    if not all(devices):
        raise ConfigError(
            f"devices '{text}' has an empty entry; give auto, or a list like cuda:0,cuda:1"
        )
    return devices


def start_inference(
    spec: EngineSpec,
    devices: Sequence[str],
    limits: WorkerLimits,
    on_change: Callable[[], None] = lambda: None,
    load: EngineLoader = load_engine,
    ray: str = "",
) -> Inference:
    """Start loading in the background.

    Args:
        spec: the engine; with a search it runs on every device.
        devices: torch devices, a worker each; "auto" alone means every GPU, or one CPU worker.
        limits: patience with each of them.
        on_change: called from threads when something is to be told.
        load: builds the engine.
        ray: address of a Ray cluster to search on, "local" to start one; "" for processes here.

    Raises:
        ConfigError: no such Ray cluster, or devices that it does not know.
    """
    search = spec.search
    if search is None:
        return Worker(ProcessHost(replace(spec, device=devices[0]), load), limits, on_change)
    cluster, budget = connect(ray) if ray else None, MemoryBudget()
    if list(devices) == [AUTO]:
        devices = _all_devices(cluster)

    def host(device: str) -> Host:
        own = replace(spec, device=device)
        return RayHost(cluster, own, load) if ray else ProcessHost(own, load, budget)

    hosts = [host(device) for device in devices]
    return SearchScheduler(
        lambda changed: [Worker(h, limits, changed) for h in hosts], search, limits, on_change
    )


def _all_devices(cluster: Any) -> tuple[str, ...]:
    """Return every GPU there is, or one CPU worker."""
    if cluster is not None:
        return ("cuda",) * int(cluster.cluster_resources().get("GPU", 0)) or ("cpu",)
    # In a process of its own: this one does without torch.
    count = "import torch; print(torch.cuda.device_count())"
    found = subprocess.run([sys.executable, "-c", count], capture_output=True, text=True)
    gpus = int(found.stdout) if found.returncode == 0 else 0
    return tuple(f"cuda:{i}" for i in range(gpus)) or ("cpu",)
