"""``cosmos replay-gate``, ``replay-decision`` and ``compare-searches``: the recorded, once more."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cosmos_policy_ros.cli.shared import say_count
from cosmos_policy_ros.core.config import load_config, named_file
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.core.untrusted import escaped
from cosmos_policy_ros.dataset.gate_replay import Checked, check_episode
from cosmos_policy_ros.episodes.episode import read_episode
from cosmos_policy_ros.episodes.folders import ORIGINAL, PURGED
from cosmos_policy_ros.episodes.topics import find_rig
from cosmos_policy_ros.rig.safety_gate import SafetyGate
from cosmos_policy_ros.rig.spec import load_rig

if TYPE_CHECKING:
    from cosmos_policy_ros.inference.spec import Engine

# Exit codes; 2 is a wrong command line.
AS_RECORDED, UNREADABLE, OTHERWISE = 0, 1, 3
NEAREST = 3  # of all pairs of links, told


def add_replay_gate(parser: argparse.ArgumentParser) -> None:
    """Judge what episodes decided, or demonstrated, by the gate that judges live.

    The exit code is 3 when a demonstration would be refused, or a verdict is not the recorded one,
    and otherwise 1 when an episode cannot be read.
    """
    parser.add_argument("bags", type=Path, nargs="+", help="folders of episodes")
    parser.add_argument(
        "--rig", help="judge by another rig's limits: a name in config/rigs or a file"
    )
    parser.set_defaults(run=_replay_gate)


def _replay_gate(options: argparse.Namespace) -> int:
    rig = load_rig(options.rig, config_folder("rigs")) if options.rig else None
    code = AS_RECORDED
    for bag in options.bags:
        if bag.name.endswith((ORIGINAL, PURGED)):  # of rollouts/*; not meant
            continue
        try:
            found = check_episode(bag.expanduser(), rig)
        except RolloutError as error:  # the others are looked at all the same
            print(f"error: {escaped(str(error))}", file=sys.stderr)
            code = code or UNREADABLE
            continue
        _print_checked(found)
        # What was refused live, and is again, is as it should be.
        news = found.refused and (rig is not None or not found.decided)
        if found.changed or news:
            code = OTHERWISE
    return code


def _print_checked(found: Checked) -> None:
    what = "decision" if found.decided else "demonstrated chunk"
    refused = ", ".join(f"{count} by {rule}" for rule, count in found.refused.items())
    print(
        f"{escaped(found.path.name)}: {say_count(found.judged, what)}, refused: {refused or 'none'}"
    )
    if found.first:
        print(f"  the first: {found.first}")
    if found.closest:
        nearest = sorted(found.closest.items(), key=lambda each: each[1])[:NEAREST]
        near = ", ".join(f"{' and '.join(names)} {1000 * d:.0f} mm" for names, d in nearest)
        print(f"  closest: {near}")
    if found.skipped:
        print(f"  {found.skipped} not judged: an arm had not reported")
    for each in found.changed:
        print(f"  not as recorded: {each}")


def add_replay_decision(parser: argparse.ArgumentParser) -> None:
    """Make a recorded decision once more from its bag, and compare.

    The exit code is 3 when another chunk is chosen.
    """
    parser.add_argument("bag", type=Path, help="folder of an episode")
    parser.add_argument("--index", type=int, default=0, help="which decision, from 0 (0)")
    _add_engine(parser)
    parser.set_defaults(run=_replay_decision)


def _replay_decision(options: argparse.Namespace) -> int:
    from cosmos_policy_ros.planning import replay

    recorded, seen = replay.recorded_decision(options.bag, options.index)
    engine, policy = _load_engine(options, options.bag, recorded)
    print(f"decision {options.index}, chunk {recorded.chunk_id}, checkpoint {policy}")
    rig = find_rig(read_episode(options.bag)).rig
    difference = replay.replay(recorded, seen, engine, SafetyGate(rig).foresee)
    print("\n".join(replay.lines(difference)))
    return AS_RECORDED if difference.same_choice else OTHERWISE


def add_compare_searches(parser: argparse.ArgumentParser) -> None:
    """Do other searches in the place of recorded ones: what they cost, and what they would choose.

    Each is done from the recorded observations with the recorded seeds. What it chooses counts as
    much as the recorded search found it to be worth.
    """
    parser.add_argument("bags", type=Path, nargs="+", help="folders of episodes, of one search")
    parser.add_argument(
        "--searches",
        nargs="+",
        required=True,
        metavar="SEARCH",
        help="names in config/planning, or files",
    )
    _add_engine(parser)
    parser.set_defaults(run=_compare_searches)


def _compare_searches(options: argparse.Namespace) -> int:
    from cosmos_policy_ros.evaluation import search_comparison
    from cosmos_policy_ros.inference.spec import SearchConfig

    folder = config_folder("planning")
    searches = {
        name: load_config(SearchConfig, named_file(name, folder)) for name in options.searches
    }
    bags = [bag for bag in options.bags if not bag.name.endswith((ORIGINAL, PURGED))]
    recorded = search_comparison.read_searches(bags)
    engine, _ = _load_engine(options, recorded[0].path, recorded[0].message)
    found = list(search_comparison.choices(recorded, engine, searches))
    lines = search_comparison.table(recorded, found)
    signals = search_comparison.signals(recorded, engine)
    lines += ["", "Where it mattered, by what an adaptive search goes by (of two proposals):", ""]
    print("\n".join([*lines, *search_comparison.signal_table(recorded, signals)]))
    return AS_RECORDED


def _add_engine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint", default="", help="folder of the policy (as the episode tells)"
    )
    parser.add_argument(
        "--world-model", default="", help="folder of the world model (the policy's)"
    )
    parser.add_argument("--device", default="auto", help="torch device (auto)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (1)")


def _load_engine(options: argparse.Namespace, bag: Path, recorded: Any) -> tuple[Engine, str]:
    """Return the engine that made a recorded decision, and the folder of its policy."""
    # The gate needs no network.
    from cosmos_policy_ros.inference.cosmos_engine import load_cosmos
    from cosmos_policy_ros.inference.spec import EngineSpec, parse_search
    from cosmos_policy_ros.inference.worker import MemoryBudget
    from cosmos_policy_ros.planning.replay import find_checkpoint

    wanted, other = str(recorded.checkpoint_digest), str(recorded.world_model_digest)
    policy = find_checkpoint(bag, wanted, options.checkpoint, "--checkpoint")
    world_model = None
    if other not in ("", wanted):
        world_model = find_checkpoint(bag, other, options.world_model, "--world-model")
    search = str(recorded.search)
    spec = EngineSpec(
        "cosmos",
        policy,
        device=options.device,
        threads=options.threads,
        numerics=recorded.numerics,
        # As many as it took: of the released code's two steps that is one, which is the same.
        denoising_steps=int(recorded.denoising_steps),
        search=parse_search(search, f"{bag}: search") if search else None,
        world_model=world_model,
    )
    return load_cosmos(spec, lambda footprint: MemoryBudget().admit(spec, footprint)), policy
