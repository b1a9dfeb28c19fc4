"""What ``cosmos replay-decision`` does: makes recorded decisions again and compares."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from cosmos_policy_ros.cli.shared import parse, run
from cosmos_policy_ros.inference.cosmos_engine import load_cosmos
from cosmos_policy_ros.inference.spec import EngineSpec, parse_search
from cosmos_policy_ros.inference.worker import MemoryBudget
from cosmos_policy_ros.planning import replay

SAME, ANOTHER = 0, 3  # exit codes; 1 is an error, 2 a wrong command line


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``cosmos replay-decision``; returns the exit code, 3 for another choice."""
    options = _parse(arguments)
    return run(lambda: _replay(options))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="cosmos replay-decision",
        description="Make a recorded decision once more from its bag, and compare.",
    )
    parser.add_argument("bag", type=Path, help="folder of an episode")
    parser.add_argument("--index", type=int, default=0, help="which decision, from 0 (0)")
    parser.add_argument(
        "--checkpoint", default="", help="folder of the policy (as the episode tells)"
    )
    parser.add_argument(
        "--world-model", default="", help="folder of the world model (the policy's)"
    )
    parser.add_argument("--device", default="auto", help="torch device (auto)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (1)")
    return parse(parser, arguments)


def _replay(options: argparse.Namespace) -> int:
    recorded, seen = replay.recorded_decision(options.bag, options.index)
    wanted, other = str(recorded.checkpoint_digest), str(recorded.world_model_digest)
    policy = replay.find_checkpoint(options.bag, wanted, options.checkpoint, "--checkpoint")
    world_model = ""
    if other not in ("", wanted):
        world_model = replay.find_checkpoint(
            options.bag, other, options.world_model, "--world-model"
        )
    search = str(recorded.search)
    spec = EngineSpec(
        "cosmos",
        policy,
        device=options.device,
        threads=options.threads,
        numerics=recorded.numerics,
        # As many as it took: of the released code's two steps that is one, which is the same.
        denoising_steps=int(recorded.denoising_steps),
        search=parse_search(search, f"{options.bag}: search") if search else None,
        world_model=world_model,
    )
    engine = load_cosmos(spec, lambda footprint: MemoryBudget().admit(spec, footprint))
    print(f"decision {options.index}, chunk {recorded.chunk_id}, checkpoint {policy}")
    difference = replay.replay(recorded, seen, engine)
    print("\n".join(replay.lines(difference)))
    return SAME if difference.same_choice else ANOTHER
