"""``cosmos replay-gate``: what the safety gate says of episodes that are over."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cosmos_policy_ros.cli.shared import parse, run, say_count
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.dataset.gate_replay import Checked, check_episode
from cosmos_policy_ros.rig.spec import load_rig

FINE, UNREADABLE, OTHERWISE = 0, 1, 3  # exit codes; 2 is a wrong command line
NEAREST = 3  # of all pairs of links, told


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``cosmos replay-gate``; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="cosmos replay-gate",
        description="Judge what episodes decided, or demonstrated, by the gate that judges live. "
        "The exit code is 3 when a demonstration would be refused, or a verdict is not the "
        "recorded one, and otherwise 1 when an episode cannot be read.",
    )
    parser.add_argument("bags", type=Path, nargs="+", help="folders of episodes")
    parser.add_argument(
        "--rig", default="", help="judge by another rig's limits: a name in config/rigs or a file"
    )
    options = parse(parser, arguments)
    return run(lambda: _check(options))


def _check(options: argparse.Namespace) -> int:
    rig = load_rig(options.rig, config_folder("rigs")) if options.rig else None
    code = FINE
    for bag in options.bags:
        try:
            found = check_episode(bag.expanduser(), rig)
        except RolloutError as error:
            print(f"error: {error}", file=sys.stderr)  # the others are looked at all the same
            code = code or UNREADABLE
            continue
        print("\n".join(lines(found)))
        # What was refused live, and is again, is as it should be.
        news = found.refused and (rig is not None or not found.decided)
        if found.changed or news:
            code = OTHERWISE
    return code


def lines(found: Checked) -> list[str]:
    """Return what to tell of one episode."""
    what = "decision" if found.decided else "demonstrated chunk"
    refused = ", ".join(f"{count} by {rule}" for rule, count in found.refused.items())
    told = [f"{found.path.name}: {say_count(found.judged, what)}, refused: {refused or 'none'}"]
    if found.first:
        told.append(f"  the first: {found.first}")
    nearest = sorted(found.closest.items(), key=lambda each: each[1])[:NEAREST]
    if nearest:
        near = ", ".join(f"{' and '.join(names)} {1000 * d:.0f} mm" for names, d in nearest)
        told.append(f"  closest: {near}")
    if found.skipped:
        told.append(f"  {found.skipped} not judged: an arm had not reported")
    return told + [f"  not as recorded: {each}" for each in found.changed]
