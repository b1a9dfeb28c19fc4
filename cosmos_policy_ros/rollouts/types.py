"""Message types without ROS: the standard ones and those of a package's msg folder.

A bag stores each topic's definition and its RIHS01 hash, the fingerprint by which ROS 2 tells that
two sides mean the same type, so both have to be what ``rosidl`` would have made of the same files.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from rosbags.typesys import Stores, TypesysError, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.errors import RolloutError

PACKAGE = "cosmos_policy_ros"

# The definitions this package records (std, sensor, trajectory, diagnostic messages) are the same
# from Humble to Lyrical but for sensor_msgs/Range; Kilted is the release it is built against.
_STANDARD = Stores.ROS2_KILTED


def load_types(msg_folder: Path, others: Mapping[str, Path] | None = None) -> Typestore:
    """Return the types of ROS 2 and of this package.

    Args:
        msg_folder: this package's ``msg`` folder, in the source tree or in the installed share.
        others: the ``msg`` folders of further packages to record, by package name.

    Raises:
        RolloutError: a folder holds no ``.msg`` file, or a definition cannot be read or names a
            type that is not there.
    """
    store = get_typestore(_STANDARD)
    for package, folder in {PACKAGE: msg_folder, **(others or {})}.items():
        _register(store, package, folder)
    return store


def _register(store: Typestore, package: str, folder: Path) -> None:
    files = sorted(folder.glob("*.msg"))
    if not files:
        raise RolloutError(
            f"{folder}: holds no .msg file; give the msg folder of package '{package}'"
        )
    names = []
    for file in files:
        name = f"{package}/msg/{file.stem}"
        try:
            store.register(get_types_from_msg(file.read_text(encoding="utf-8"), name))
        except (OSError, UnicodeDecodeError, TypesysError) as error:
            raise RolloutError(f"{file}: cannot be read as a message: {error}") from error
        names.append(name)
    for name in names:
        _resolve(store, name, folder)


def _resolve(store: Typestore, name: str, folder: Path) -> None:
    """Follow every type that ``name`` uses: a missing one would only show at the first message."""
    try:
        store.hash_rihs01(name)
    except KeyError as error:
        raise RolloutError(
            f"{folder}: {name} uses the unknown type {error}; give that package's msg folder too"
        ) from None


@lru_cache(maxsize=32)
def types_of_definition(msgtype: str, definition: str) -> Typestore:
    """Return the types in a definition that a bag carries, so that old bags stay readable.

    Raises:
        RolloutError: the text is not a ROS 2 message definition.
    """
    store = get_typestore(Stores.EMPTY)
    try:
        store.register(get_types_from_msg(definition, msgtype))
    except TypesysError as error:
        raise RolloutError(
            f"the bag's own definition of {msgtype} is unreadable: {error}"
        ) from error
    return store
