"""What ``cosmos recover`` does: episodes whose recorder died made whole, by hand."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cosmos_policy_ros.bags.writer import RECORDING
from cosmos_policy_ros.cli.shared import parse, run
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.episodes.store import RecordingInProgressError, recover


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``cosmos recover``; returns the exit code."""
    options = _parse(arguments)
    return run(lambda: _recover_all(options.folder.expanduser()))


def _recover_all(folder: Path) -> int:
    alone = folder.name.endswith(RECORDING)
    found = [folder] if alone else _unfinished_below(folder)
    failed = 0
    for each in found:
        try:
            recovered = recover(each)
        except RecordingInProgressError as error:
            print(f"left alone: {error}", flush=True)
            failed += alone
        except RolloutError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            failed += 1
        else:
            print(f"recovered {recovered.path}: {recovered.messages} messages", flush=True)
            print(f"  lost: {recovered.loss}", flush=True)
    if not found:
        print(f"{folder}: no unfinished episode below it")
    return int(failed > 0)


def _unfinished_below(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise RolloutError(f"{folder}: is no folder; give the folder of the episodes")
    return sorted(folder.rglob(f"*{RECORDING}"))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="cosmos recover",
        description="Make whole what a recorder that died has left. Nothing is deleted, and what a "
        "living recorder holds is left alone. Afterwards judge it: episodes verify --write ID.",
    )
    parser.add_argument(
        "folder",
        type=Path,
        nargs="?",
        default=Path("rollouts"),
        help=f"folder of the episodes, or one that ends in {RECORDING} (rollouts)",
    )
    return parse(parser, arguments)
