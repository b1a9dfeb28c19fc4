"""Where the package's config files and interface definitions are."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from cosmos_policy_ros.core.errors import ConfigError


def package_share() -> Path:
    """Return the folder that holds ``config/`` and ``msg/``.

    Looks in the source tree (also through a symlink install), then along AMENT_PREFIX_PATH, then
    in the interpreter's prefix (a plain ``pip install``).

    Raises:
        ConfigError: found nowhere; names the places.
    """
    prefixes = [p for p in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if p]
    places = [Path(__file__).resolve().parents[2]]
    places += [Path(p) / "share" / "cosmos_policy_ros" for p in [*prefixes, sys.prefix]]
    for place in places:
        if (place / "config" / "rigs").is_dir():
            return place
    searched = ", ".join(map(str, places))
    raise ConfigError(f"config/rigs is in none of {searched}; install the package again")


def executable(name: str) -> Path:
    """Return the program that ``ros2 run cosmos_policy_ros <name>`` starts.

    Raises:
        ConfigError: neither the source tree nor an installation has it.
    """
    share = package_share()
    places = [share / "scripts" / name, share.parents[1] / "lib" / "cosmos_policy_ros" / name]
    for place in places:
        if place.is_file():
            return place
    raise ConfigError(f"'{name}' is in none of {', '.join(map(str, places))}")


def config_folder(name: str) -> Path:
    """Return ``config/<name>``: rigs, tasks, models, params."""
    return package_share() / "config" / name
