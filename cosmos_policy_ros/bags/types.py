"""Message types without ROS: the standard ones and those of a package's msg folder.

A bag stores each topic's definition and its RIHS01 hash, the fingerprint by which ROS 2 tells that
two sides mean the same type, so both have to be what ``rosidl`` would have made of the same files.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from rosbags.interfaces import Nodetype
from rosbags.interfaces.typing import Typesdict
from rosbags.typesys import Stores, TypesysError, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.core.untrusted import UnreadableError, reading, shown

PACKAGE = "cosmos_policy_ros"
MAX_DEFINITION = 1 << 18  # characters; an image's, with all it is made of, has 6000
MAX_TYPE_DEPTH = 32  # of types within types; ROS's own have five levels

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
    where = f"the bag's own definition of {shown(msgtype)} is unreadable"
    with reading(where, "a message definition", RolloutError):
        if len(definition) > MAX_DEFINITION:
            raise UnreadableError(f"has {len(definition)} characters, at most {MAX_DEFINITION}")
        found = get_types_from_msg(definition, msgtype)
        sizes: dict[str, int] = {}
        for name in found:
            _least_bytes(name, found, sizes, 0)
        store = get_typestore(Stores.EMPTY)
        store.register(found)
        return store


def _least_bytes(name: str, types: Typesdict, sizes: dict[str, int], depth: int) -> int:
    """Return the fewest bytes that a message of a type has, and refuse lists of what has none.

    A length of four billion costs nothing to write and is read to its end where an entry takes no
    byte of the message; elsewhere the message's own length ends it.
    """
    if name in sizes:
        return sizes[name]
    if depth > MAX_TYPE_DEPTH:
        raise UnreadableError(f"nests types more than {MAX_TYPE_DEPTH} deep, or within themselves")
    total = 0
    for _, (kind, detail) in types[name][1]:
        total += _least_of(kind, detail, types, sizes, depth)
    sizes[name] = total
    return total


def _least_of(
    kind: Nodetype, detail: Any, types: Typesdict, sizes: dict[str, int], depth: int
) -> int:
    if kind == Nodetype.NAME:
        return _least_bytes(detail, types, sizes, depth + 1)
    if kind == Nodetype.BASE:
        return 1
    (inner_kind, inner), count = detail
    entry = _least_of(inner_kind, inner, types, sizes, depth + 1)
    if not entry:
        raise UnreadableError("has a list of messages without content")
    return count * entry if kind == Nodetype.ARRAY else 4
