"""The package's commands in processes that need not import torch first: that takes seconds each.

They are forked from one process that has imported everything and done nothing else, so they begin
as a fresh interpreter would. That the commands can be started as programs, and by ``torchrun``, is
for other tests to see.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Client, Listener
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from cosmos_policy_ros.inference import worker

CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "cosmos_policy_ros.cli.cosmos",
        "cosmos_policy_ros.cli.evaluate",
        "cosmos_policy_ros.cli.experiments",
        "cosmos_policy_ros.model.policy",
        "cosmos_policy_ros.training.autoencoder",
        "cosmos_policy_ros.training.trainer",
    ]
)


# px; the tiny models' own size, so that what a trial's bag is written from is not resized either.
CAMERA_SIZE = (64, 64)


def run_command(
    arguments: Sequence[str],
    folder: Path = Path(),
    processes: int = 1,
    file_limit: int | None = None,
) -> tuple[int, str]:
    """Run ``cosmos`` with arguments in a folder.

    Args:
        arguments: the subcommand and its own.
        folder: to run in.
        processes: more than one are told of each other as ``torchrun`` does.
        file_limit: bytes past which the kernel lets no file grow, as a full disk would.

    Returns:
        The exit code, the first that is not 0, and what was printed.
    """
    from cosmos_policy_ros.training.parallel import MEETING

    with TemporaryDirectory(prefix="forked_") as meeting:
        log = Path(meeting) / "log"
        running = []
        for rank in range(processes):
            world = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
            world |= {MEETING: f"{meeting}/processes", "GLOO_SOCKET_IFNAME": "lo"}
            environment = world if processes > 1 else {}
            running.append(begin_command(arguments, log, folder, environment, file_limit))
        for process in running:
            process.join()
        codes = [process.exitcode or 0 for process in running]
        return next(filter(None, codes), 0), log.read_text(errors="replace")


def begin_command(
    arguments: Sequence[str],
    log: Path,
    folder: Path = Path(),
    environment: Mapping[str, str] | None = None,
    file_limit: int | None = None,
) -> ForkServerProcess:
    """Begin what :func:`run_command` waits for, with what it prints added to a file."""
    given = (list(arguments), log, folder, environment or {}, file_limit)
    process = CONTEXT.Process(target=_run, args=given)
    process.start()
    return process


def _run(
    arguments: list[str],
    log: Path,
    folder: Path,
    environment: Mapping[str, str],
    file_limit: int | None,
) -> None:
    from cosmos_policy_ros.cli import cosmos
    from cosmos_policy_ros.evaluation import trial

    trial.CAMERA_SIZE = CAMERA_SIZE
    os.chdir(folder)
    os.environ.update(environment)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    if file_limit is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, hard))
    sys.exit(cosmos.main(arguments))


def prepare(*setting_up: Any) -> None:
    """Prepare a process of an evaluation as ``evaluate`` does, with small cameras."""
    from cosmos_policy_ros.evaluation import evaluate, trial

    trial.CAMERA_SIZE = CAMERA_SIZE
    evaluate._prepare(*setting_up)


@contextmanager
def forked_evaluations() -> Iterator[None]:
    """Have evaluations draw small images, and their processes forked instead of spawned."""
    from cosmos_policy_ros.evaluation import evaluate, trial

    with (
        patch.object(trial, "CAMERA_SIZE", CAMERA_SIZE),
        patch.object(evaluate, "get_context", lambda _: CONTEXT),
        patch.object(evaluate, "_prepare", prepare),
    ):
        yield


@contextmanager
def forked_workers() -> Iterator[None]:
    """Have inference workers forked, too, instead of spawned."""
    with patch.object(worker, "mp", SimpleNamespace(get_context=lambda _: CONTEXT)):
        yield


@contextmanager
def served() -> Iterator[str]:
    """Run commands for makefiles; yields the command line that stands in for ``cosmos`` there."""
    with TemporaryDirectory(prefix="forked_") as folder:
        address = f"{folder}/socket"
        listener = Listener(address)

        def serve() -> None:
            while True:
                with listener.accept() as connection:
                    words, place = connection.recv()
                    if not words:
                        return
                    more = words[words.index("--processes") + 1] if "--processes" in words else 1
                    connection.send(run_command(words, Path(place), int(more)))

        thread = Thread(target=serve)
        thread.start()
        yield f"{sys.executable} {Path(__file__).with_name('forked_client.py')} {address}"
        with Client(address) as connection:
            connection.send(([], ""))
        thread.join()
        listener.close()
