"""The house's floors: imports run downwards only, and heavy packages stay in their rooms.

Also what a bare machine with a GPU can import: ``rig.images`` asked for OpenCV where no camera is,
and a loss for the bags' library where no bag is.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "cosmos_policy_ros"
ROOMS = (
    "core",
    "rig",
    "environments",
    "model",
    "sim",
    "bags",
    "episodes",
    "inference",
    "dataset",
    "interop",
    "planning",
    "training",
    "evaluation",
    "panel",
    "nodes",
    "cli",
)
MAY_IMPORT = {
    "torch": {"model", "inference", "planning", "training"},
    "rclpy": {"nodes", "cli"},
    "ray": {"inference"},
    "tornado": {"panel", "inference"},
    "msgpack": {"inference"},
}

# What works beside torch, numpy, safetensors and diffusers alone, and what is then not there.
BARE = (
    "cli.cosmos",
    "cli.gpu_check",
    "inference.cosmos_engine",
    "inference.gpu_bench",
    "inference.gpu_numbers",
    "inference.gpu_speed",
    "inference.gpu_steadiness",
    "inference.worker",
    "model.convert",
    "model.policy",
    "model.random_checkpoint",
    "model.straightforward",
    "training.config",
    "training.loss",
    "training.optimisers",
    "training.parallel",
    "training.start",
    "training.step_speed",
    "training.targets",
)
ABSENT = ("apsw", "argcomplete", "cv2", "h5py", "lz4", "matplotlib", "mcap", "mujoco", "ray")
ABSENT += ("av", "pyarrow", "rclpy", "rosbags", "ruamel", "tensorboard")


def imported(source: str) -> Iterator[str]:
    """Yield the modules that a module imports, within functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "the package's modules are named in full"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def offences(room: str, source: str) -> list[str]:
    found = []
    for name in imported(source):
        package, *inner = name.split(".")
        if room not in MAY_IMPORT.get(package, {room}):
            found.append(name)
        if package == PACKAGE.name and inner and inner[0] in ROOMS:
            found += [name] if ROOMS.index(inner[0]) > ROOMS.index(room) else []
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_nothing_from_above(room: str) -> None:
    modules = sorted((PACKAGE / room).rglob("*.py"))
    assert modules
    found = {module.name: offences(room, module.read_text()) for module in modules}
    assert not {name: imports for name, imports in found.items() if imports}


def test_no_imports_run_in_a_circle() -> None:
    """Imports run downwards inside a room, too: one order of all modules has them below."""
    modules = {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path
        for path in PACKAGE.rglob("*.py")
    }
    below = {
        name: {found for found in imported(path.read_text()) if found in modules} - {name}
        for name, path in modules.items()
    }
    tuple(TopologicalSorter(below).static_order())  # raises CycleError, which names the circle


def test_every_folder_is_a_room() -> None:
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(ROOMS)


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("evaluation", "from torch import Tensor"),
        ("training", "def f():\n    import rclpy.node"),
        ("rig", "from cosmos_policy_ros.sim.rig import SimRig"),
    ],
)
def test_an_offence_is_seen(room: str, source: str) -> None:
    assert offences(room, source)


def test_what_a_bare_machine_needs_asks_for_no_more_than_torch_and_diffusers() -> None:
    # None in there is a package that is not installed, for whoever only looks for it, too.
    script = f"""
import sys
from importlib import import_module

sys.modules.update(dict.fromkeys({ABSENT!r}))
failed = {{}}
for name in {BARE!r}:
    try:
        import_module("{PACKAGE.name}." + name)
    except ModuleNotFoundError as error:
        failed[name] = str(error)
assert not failed, failed
import_module("{PACKAGE.name}.cli.cosmos").main(["--help"])
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("usage: cosmos")
