"""``cosmos``: the package's one command; ``cosmos --help`` is its map.

Each subcommand is a module beside this one with ``main(arguments) -> exit code``. It is imported
when it is chosen, so that listing episodes does not wait for torch, nor training for ROS.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

import argcomplete

from cosmos_policy_ros import __version__

COMMANDS = {
    "on a rig": {
        "run": "the whole graph on the simulated rig: episodes recorded and scored",
        "score": "score an episode stage by stage, one key per answer",
        "calibrate-grippers": "measure a gripper's open and closed, and write the rig file",
    },
    "episodes": {
        "episodes": "list, show, relabel, verify, discard, purge",
        "recover": "make whole what a recorder that died has left",
        "import": "HDF5 episodes of ALOHA, ACT and Cosmos into bags",
        "export-hdf5": "bags into HDF5 files, laid out as the released rollouts",
        "export-lerobot": "bags into a LeRobot v3 data set",
        "replay-gate": "what the safety gate says of recorded chunks",
        "replay-decision": "make recorded decisions again and compare",
    },
    "models": {
        "convert": "published or fine-tuned weights into a checkpoint folder",
        "embed-prompts": "add prompts to a checkpoint folder",
        "train": "fine-tune a checkpoint on episodes",
        "evaluate": "policies on the same scenes of the simulated rig, in one table",
        "improve": "the paper's loop: collect rollouts, train a world model, compare",
    },
    "the small checkpoint": {
        "train-autoencoder": "a small video autoencoder for images of your own",
        "reproduce-tiny": "make the checkpoint that ships with the package, from nothing",
        "ablate": "the paper's ablations at its size, in one table",
    },
}
HELP = {name: text for group in COMMANDS.values() for name, text in group.items()}
MODULES = {"import": "import_hdf5"}
ROS = ("rclpy", "cosmos_policy_ros.nodes", "cosmos_policy_ros.msg", "rcl_interfaces")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="cosmos",
        usage="cosmos COMMAND [...]",
        description="Cosmos Policy on the ALOHA bimanual rig.",
        epilog=_map(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("command", choices=HELP, metavar="COMMAND", help="one of those below")
    _complete(parser)
    given = list(sys.argv[1:] if arguments is None else arguments)
    name = parser.parse_args(given[:1] or ["--help"]).command
    try:
        command = import_module(f"cosmos_policy_ros.cli.{module_of(name)}")
    except ModuleNotFoundError as error:
        if not str(error.name).startswith(ROS):
            raise
        print(
            f"error: 'cosmos {name}' needs ROS 2 ({error.name} is not found): source it, or use "
            "scripts/setup and scripts/env.sh",
            file=sys.stderr,
        )
        return 1
    return int(command.main(given[1:]))


def module_of(name: str) -> str:
    """Return the module beside this one that is a subcommand's."""
    return MODULES.get(name, name.replace("-", "_"))


def _map() -> str:
    lines = []
    for group, commands in COMMANDS.items():
        lines += ["", f"{group}:", *(f"  {name:<20}{text}" for name, text in commands.items())]
    lines += ["", "'cosmos COMMAND --help' tells what each takes."]
    return "\n".join(lines).lstrip("\n")


def _complete(parser: argparse.ArgumentParser) -> None:
    """Answer a shell that asks for completions: of the command, or of its own options."""
    words = os.environ.get("COMP_LINE", "").split()
    if "_ARGCOMPLETE" not in os.environ or len(words) < 2 or words[1] not in HELP:
        argcomplete.autocomplete(parser)
        return
    if len(words) > 2 or os.environ["COMP_LINE"].endswith(" "):
        # The subcommand's own parser answers, and takes the first two words for its name.
        os.environ["_ARGCOMPLETE"] = "2"
        import_module(f"cosmos_policy_ros.cli.{module_of(words[1])}").main([])


if __name__ == "__main__":  # loading processes import this file once more
    sys.exit(main())
