"""The package's commands in processes that need not import torch first: that takes seconds each.

They are forked from one process that has imported everything and done nothing else, so they begin
as a fresh interpreter would. That the commands can be started as programs, and by ``torchrun``, is
for other tests to see.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from unittest.mock import patch

from cosmos_policy_ros.inference import worker
from cosmos_policy_ros.training.parallel import MEETING

CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "cosmos_policy_ros.cli.evaluate",
        "cosmos_policy_ros.model.policy",
        "cosmos_policy_ros.cli.train_autoencoder",
        "cosmos_policy_ros.training.trainer",
    ]
)


@contextmanager
def forked_workers() -> Iterator[None]:
    """Have inference workers forked, too, instead of spawned."""
    with patch.object(worker, "mp", SimpleNamespace(get_context=lambda _: CONTEXT)):
        yield


def run_command(
    module: str, arguments: Sequence[str], folder: Path = Path(), processes: int = 1
) -> tuple[int, str]:
    """Run ``python -m module``.

    Args:
        module: of a command.
        arguments: of the command line.
        folder: to run in.
        processes: more than one are told of each other as ``torchrun`` does.

    Returns:
        The exit code, the first that is not 0, and what was printed.
    """
    with TemporaryDirectory(prefix="forked_") as meeting:
        log = Path(meeting) / "log"
        running = []
        for rank in range(processes):
            world = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
            world |= {MEETING: f"{meeting}/processes", "GLOO_SOCKET_IFNAME": "lo"}
            given = (module, list(arguments), folder, log, world if processes > 1 else {})
            running.append(CONTEXT.Process(target=_run, args=given))
            running[-1].start()
        for process in running:
            process.join()
        codes = [process.exitcode or 0 for process in running]
        return next(filter(None, codes), 0), log.read_text(errors="replace")


def run_stage(arguments: Sequence[str], folder: Path) -> int:
    """Stand in for ``cli.stages._run``: ``python -m module`` and its arguments."""
    _, dash_m, module, *rest = arguments
    assert dash_m == "-m"
    processes = int(rest[rest.index("--processes") + 1]) if "--processes" in rest else 1
    code, printed = run_command(module, rest, folder, processes)
    print(printed)
    return code


def _run(
    module: str, arguments: list[str], folder: Path, log: Path, environment: Mapping[str, str]
) -> None:
    os.chdir(folder)
    os.environ.update(environment)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    sys.exit(import_module(module).main(arguments))
