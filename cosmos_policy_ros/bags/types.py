"""Message types without ROS: the standard ones and those of this package's msg folder.

A bag stores each topic's definition and its RIHS01 hash, the fingerprint by which ROS 2 tells that
two sides mean the same type, so both have to be what ``rosidl`` would have made of the same files.
"""

from __future__ import annotations

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
_BUILTIN = ("builtin_interfaces/msg/Time", "builtin_interfaces/msg/Duration")
MAX_TYPE_DEPTH = 32  # of types within types; ROS's own have five levels


def load_types(msg_folder: Path) -> Typestore:
    """Return the types of ROS 2 and of this package.

    Args:
        msg_folder: this package's ``msg`` folder, in the source tree or in the installed share.

    Raises:
        RolloutError: the folder holds no ``.msg`` file, or a definition cannot be read or names a
            type that is not there.
    """
    # The definitions this package records (std, sensor, trajectory, diagnostic messages) are the
    # same from Humble to Lyrical but for sensor_msgs/Range.
    store = get_typestore(Stores.ROS2_KILTED)
    files = sorted(msg_folder.glob("*.msg"))
    if not files:
        raise RolloutError(
            f"{msg_folder}: holds no .msg file; give the msg folder of package '{PACKAGE}'"
        )
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
            store.register(get_types_from_msg(text, f"{PACKAGE}/msg/{file.stem}"))
        except (OSError, UnicodeDecodeError, TypesysError) as error:
            raise RolloutError(f"{file}: cannot be read as a message: {error}") from error
    for file in files:
        try:
            # Follows every type it uses: a missing one would only show at the first message.
            store.hash_rihs01(f"{PACKAGE}/msg/{file.stem}")
        except KeyError as error:
            raise RolloutError(f"{file}: uses the unknown type {error}; correct its name") from None
    return store


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
        sizes = dict.fromkeys(_BUILTIN, 8)  # those of ROS 1 are in no definition
        for name in found:
            _least_bytes((Nodetype.NAME, name), found, sizes, 0)
        store = get_typestore(Stores.EMPTY)
        store.register(found)
        return store


def _least_bytes(field: Any, types: Typesdict, sizes: dict[str, int], depth: int) -> int:
    """Return the fewest bytes that a field takes, and refuse lists of what takes none.

    A length of four billion costs nothing to write and is read to its end where an entry takes no
    byte of the message; elsewhere the message's own length ends it.

    Args:
        field: rosbags' (kind, detail).
        types: of the definition.
        sizes: of the types known so far, by name; added to.
        depth: of types within types.
    """
    kind, detail = field
    if depth > MAX_TYPE_DEPTH:
        raise UnreadableError(f"nests types more than {MAX_TYPE_DEPTH} deep, or within themselves")
    if kind == Nodetype.BASE:
        return 1
    if kind == Nodetype.NAME:
        if detail not in sizes:
            fields = (inner for _, inner in types[detail][1])
            sizes[detail] = sum(_least_bytes(inner, types, sizes, depth + 1) for inner in fields)
        return sizes[detail]
    inner, count = detail
    entry = _least_bytes(inner, types, sizes, depth)
    if not entry:
        raise UnreadableError("has a list of messages without content")
    return int(count) * entry if kind == Nodetype.ARRAY else 4
