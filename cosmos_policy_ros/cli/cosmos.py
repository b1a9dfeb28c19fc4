"""``cosmos``: the package's one command; ``cosmos --help`` is its map.

Each subcommand is a function ``add_NAME(parser)`` of a module beside this one: its docstring is the
help text, and the default ``run`` that it sets does the work and returns the exit code. Only the
module of the chosen command is imported: listing episodes waits for no torch, training for no ROS.
"""

from __future__ import annotations

import argparse
import inspect
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from io import TextIOWrapper

from cosmos_policy_ros import __version__
from cosmos_policy_ros.core.errors import CosmosPolicyError
from cosmos_policy_ros.core.untrusted import escaped

COMMANDS = {
    "on a rig": {
        "doctor": "look over this machine: what is missing, and what to do",
        "gpu-check": "measure the GPU: are its numbers right, how fast is it, does it stay so",
        "run": "the whole graph on the simulated rig: episodes recorded and scored",
        "score": "score an episode stage by stage, one key per answer",
        "protocol": "photograph the initial states of an evaluation, once",
        "trials": "compare policies at the rig: blind, state by state, over days",
        "calibrate-grippers": "measure a gripper's open and closed, and write the rig file",
    },
    "episodes": {
        "episodes": "list, show, relabel, verify, discard, purge",
        "recover": "make episodes readable that are cut, compressed, or lost a part",
        "dataset": "check: what would be learnt, judged episode by episode, before any training",
        "import": "HDF5 files of ALOHA, ACT and Cosmos, and bags of others, into episodes",
        "export-hdf5": "bags into HDF5 files, laid out as the released rollouts",
        "export-lerobot": "bags into a LeRobot v3 data set",
        "replay-gate": "what the safety gate says of recorded chunks",
        "replay-decision": "make recorded decisions again and compare",
        "compare-searches": "what cheaper searches would have chosen in the place of recorded ones",
    },
    "models": {
        "convert": "published or fine-tuned weights into a checkpoint folder",
        "embed-prompts": "add prompts to a checkpoint folder",
        "train": "fine-tune a checkpoint on episodes",
        "evaluate": "policies on the same scenes of the simulated rig or a benchmark, in one table",
        "held-out": "trained checkpoints on demonstrations that were held out, in one table",
        "round": "a trained checkpoint in half precision, with its own prompts",
        "improve": "the paper's loop: collect rollouts, train a world model, compare",
        "report": "whether planning can help, measured, beside a comparison",
    },
    "the small checkpoint": {
        "train-autoencoder": "a small video autoencoder for images of your own",
        "reproduce-tiny": "make the checkpoint that ships with the package, from nothing",
        "ablate": "the paper's ablations at its size, in one table",
        "compare-planners": "planners of fewer rollouts and other value functions, in one table",
    },
}
HELP = {name: text for group in COMMANDS.values() for name, text in group.items()}
# Where it is not the module of the command's own name.
MODULES = {
    "protocol": "trials",
    "recover": "episodes",
    "import": "import_episodes",
    "export-hdf5": "export",
    "export-lerobot": "export",
    "replay-gate": "replay",
    "replay-decision": "replay",
    "compare-searches": "replay",
    "convert": "checkpoints",
    "embed-prompts": "checkpoints",
    "train-autoencoder": "train",
    "held-out": "experiments",
    "round": "experiments",
    "improve": "experiments",
    "report": "experiments",
    "reproduce-tiny": "experiments",
    "ablate": "experiments",
    "compare-planners": "experiments",
}
ROS = ("rclpy", "cosmos_policy_ros.nodes", "cosmos_policy_ros.msg", "rcl_interfaces")
LINE_ENDS = "\n\t"  # that a message of ours may have
INTERRUPTED, PIPE_CLOSED = 130, 141  # exit codes, as a shell reports SIGINT and SIGPIPE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    # A shell that asks for completions gives the line so far in the environment.
    line = os.environ["COMP_LINE"].split()[1:] if "_ARGCOMPLETE" in os.environ else given
    map_of_commands = "\n\n".join(
        "\n".join([f"{group}:", *(f"  {name:<20}{text}" for name, text in commands.items())])
        for group, commands in COMMANDS.items()
    )
    parser = argparse.ArgumentParser(
        prog="cosmos",
        usage="cosmos COMMAND [...]",
        description="Cosmos Policy on the ALOHA bimanual rig.",
        epilog=f"{map_of_commands}\n\n'cosmos COMMAND --help' tells what each takes.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.set_defaults(arguments=given, interrupted="interrupted: nothing further was written")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, prog="cosmos")
    for name in HELP:
        command = commands.add_parser(name)
        if line[:1] != [name]:
            continue
        try:
            module = import_module(f"cosmos_policy_ros.cli.{module_of(name)}")
        except ModuleNotFoundError as error:
            if not str(error.name).startswith(ROS):
                raise
            print(
                f"error: 'cosmos {name}' needs ROS 2 ({error.name} is not found): source it, or "
                "use scripts/setup and scripts/env.sh",
                file=sys.stderr,
            )
            return 1
        add = getattr(module, f"add_{name.replace('-', '_')}")
        command.description = inspect.getdoc(add)
        add(command)
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser)
    return _run(parser.parse_args(given))


def module_of(name: str) -> str:
    """Return the module beside this one that has a subcommand."""
    return MODULES.get(name, name.replace("-", "_"))


def _run(options: argparse.Namespace) -> int:
    """Run a command and return its exit code; no traceback for what an operator can meet."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # half a character of a file's name ends nothing
            stream.reconfigure(errors="backslashreplace")
    try:
        code = int(options.run(options))
        sys.stdout.flush()
    except CosmosPolicyError as error:
        if os.environ.get("RANK", "0") == "0":  # one of torchrun's processes speaks for all
            print(f"error: {escaped(str(error), LINE_ENDS)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\n{options.interrupted}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes once more at its end, and would complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    return code


if __name__ == "__main__":  # loading processes import this file once more
    sys.exit(main())
