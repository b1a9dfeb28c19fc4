"""Set-up beside a distro's ROS, and programs that find their environment from any shell.

pip put NumPy 2 beside compiled modules that cannot load it and replaced a GPU's torch,
``ros2 launch`` took a Python that had none, and a pin had dropped Python 3.10.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]
CHOOSE = ROOT / "scripts/requirements/choose.py"
PINS = ("core", "dev", "numpy1", "numpy2", "torch")
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
PROGRAMS = ("arm_interface_node", "cosmos", "policy_node", "recorder_node", "sim_rig_node")


def interpreter(folder: Path, **modules: str) -> str:
    """Return a Python that has these modules, with this content, and no other of ours."""
    for name, content in modules.items():
        (folder / f"{name}.py").write_text(content)
    program = folder / "python"
    program.write_text(f'#!/bin/sh\ncd {folder} && exec {sys.executable} -S "$@"\n')
    program.chmod(0o755)
    return str(program)


def torch(version: str, cuda: str | None, hip: str | None = None) -> str:
    return f"__version__ = {version!r}\nclass version:\n    cuda = {cuda!r}\n    hip = {hip!r}\n"


@pytest.mark.parametrize(
    ("numpy", "chosen"),
    [
        ('__version__ = "1.21.5"', "numpy1.txt"),
        ('__version__ = "1.26.4"', "numpy1.txt"),
        ('__version__ = "2.2.4"', "numpy2.txt"),
        ('raise ImportError("a broken one")', "numpy2.txt"),
    ],
)
def test_numpy_is_the_one_that_the_distros_extensions_can_load(
    tmp_path: Path, numpy: str, chosen: str
) -> None:
    python = interpreter(tmp_path, numpy=numpy)
    assert choose(python, python) == [chosen, "torch.txt"]


@pytest.mark.parametrize(
    ("found", "chosen"),
    [
        (torch("2.9.1+cu128", "12.8"), "torch==2.9.1+cu128"),
        (torch("2.6.0a0+nv24.12", "12.6"), "torch==2.6.0a0+nv24.12"),
        (torch("2.10.0+rocm6.4", None, "6.4"), "torch==2.10.0+rocm6.4"),
        (torch("2.9.1+cpu", None), "torch.txt"),
        (torch("2.5.1+cu121", "12.1"), "torch.txt"),
        ("raise OSError('libcudart.so.12: cannot open shared object file')", "torch.txt"),
    ],
)
def test_a_torch_for_a_gpu_is_kept(tmp_path: Path, found: str, chosen: str) -> None:
    (tmp_path / "system").mkdir()
    (tmp_path / "own").mkdir()
    system = interpreter(tmp_path / "system")
    assert choose(system, interpreter(tmp_path / "own", torch=found)) == ["numpy2.txt", chosen]


def choose(system: str, own: str) -> list[str]:
    command = [sys.executable, str(CHOOSE), system, own]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")
    assert lines.pop() == ""
    files = [line.removeprefix(f"--requirement={CHOOSE.parent}/") for line in lines]
    assert all((CHOOSE.parent / name).is_file() for name in files if name.endswith(".txt"))
    return files


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_names_the_interpreter_of_its_environment(name: str) -> None:
    line = installed(name).read_text().splitlines()[0]
    assert line == f"#!{ROOT}/.venv/bin/python"


def test_a_program_runs_where_nothing_is_activated(tmp_path: Path) -> None:
    """As systemd does: with ROS's variables, and another python3 first in PATH."""
    other = tmp_path / "python3"
    other.write_text("#!/bin/sh\necho not this one; exit 3\n")
    other.chmod(0o755)
    kept = ("AMENT_PREFIX_PATH", "PYTHONPATH", "LD_LIBRARY_PATH")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    environment["PATH"] = f"{tmp_path}:/usr/bin:/bin"
    command = [str(installed("cosmos")), "train", "--help"]
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: cosmos train" in done.stdout


def test_every_pinned_package_runs_on_each_python_that_it_is_pinned_for() -> None:
    """As far as the packages that are installed here tell."""
    lines = "\n".join((CHOOSE.parent / f"{name}.txt").read_text() for name in PINS).splitlines()
    told = []
    for line in lines:
        if not (text := line.partition("#")[0].strip()):
            continue
        pin = Requirement(text)
        if "==" not in text:  # of a range pip takes what runs
            continue
        try:
            package = metadata(pin.name)
        except PackageNotFoundError:
            continue
        if package["Version"] in pin.specifier and package["Requires-Python"]:
            told.append(pin.name)
            for python in PYTHONS:
                pinned = pin.marker is None or pin.marker.evaluate({"python_version": python})
                runs = f"{python}.99" in SpecifierSet(package["Requires-Python"])
                assert runs or not pinned, f"'{text}' does not run on Python {python}"
    assert "pytest" in told


def installed(name: str) -> Path:
    """Return a program as the build installed it."""
    prefixes = map(Path, os.environ["AMENT_PREFIX_PATH"].split(os.pathsep))
    places = [prefix / "lib/cosmos_policy_ros" / name for prefix in prefixes]
    found = [place for place in places if place.is_file()]
    assert found, f"{name} is in none of {places}; run scripts/setup"
    return found[0]


@pytest.mark.parametrize("argument", ["--help", "--remvoe"])
def test_an_unknown_option_of_setup_changes_nothing(argument: str) -> None:
    done = subprocess.run(
        [ROOT / "scripts/setup", argument], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "there are --tests and --remove" in done.stderr


def test_a_python_that_the_sourced_ros_was_not_built_for_is_named(tmp_path: Path) -> None:
    """Of a version manager, say, that comes before the distro's in PATH."""
    python = interpreter(tmp_path)
    environment = {"PATH": os.environ["PATH"], "ROS_DISTRO": "jazzy", "PYTHON": python}
    done = subprocess.run(
        [ROOT / "scripts/setup"], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{python}, Python 3." in done.stderr and "PYTHON=/usr/bin/python3" in done.stderr
    assert "Traceback" not in done.stderr


def test_remove_takes_what_setup_made_and_nothing_else(tmp_path: Path) -> None:
    package = tmp_path / "src/lab/cosmos_policy_ros"
    (package / "scripts").mkdir(parents=True)
    (package / "scripts/setup").write_bytes((ROOT / "scripts/setup").read_bytes())
    ours = [
        tmp_path / "build/cosmos_policy_ros",
        tmp_path / "install/cosmos_policy_ros",
        package / ".venv",
    ]
    others = [tmp_path / "build/other", tmp_path / "install/other", package / "rollouts"]
    for folder in ours + others:
        folder.mkdir(parents=True)
    subprocess.run(["bash", package / "scripts/setup", "--remove"], check=True)
    assert not any(folder.exists() for folder in ours)
    assert all(folder.exists() for folder in others)
