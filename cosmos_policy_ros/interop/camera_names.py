"""Which of a file's cameras is which: roles of the policy by the names that recorders give."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cosmos_policy_ros.core.errors import ConfigError, RolloutError
from cosmos_policy_ros.core.untrusted import shown

ALOHA = {
    "left_wrist": "cam_left_wrist",
    "right_wrist": "cam_right_wrist",
    "primary": "cam_high",
}
"""ALOHA's name of a camera by its role."""
ROLES = tuple(ALOHA)
_ALOHA_2 = {
    "left_wrist": "camera_wrist_left",
    "right_wrist": "camera_wrist_right",
    "primary": "camera_high",
}
# Sets that are taken as a whole, whatever other cameras are beside them.
_SETS: tuple[Mapping[str, str], ...] = (
    ALOHA,
    _ALOHA_2,
    # RoboTwin's simulation, where cameras called left and right are at the wrists.
    {"left_wrist": "left_camera", "right_wrist": "right_camera", "primary": "head_camera"},
)
# Words of a name that tell nothing, and those that tell a role.
_FILLERS = {"cam", "camera", "image", "images", "img", "rgb", "color", "colour", "view", "0", ""}
_WRIST = {"wrist", "hand"}
_PRIMARY = {"high", "top", "head", "front", "overhead", "base", "main", "primary"}
_SHOWN_NAMES = 12


@dataclass(frozen=True)
class Cameras:
    """The file's name of each role's camera; ``notes`` tell of others and of doubts."""

    names: Mapping[str, str]
    notes: tuple[str, ...]


def parse_map(texts: Iterable[str]) -> dict[str, str]:
    """Return names by roles from texts such as ``primary=top``.

    Raises:
        ConfigError: another form, no such role, or a role or a camera twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        role, equals, name = text.partition("=")
        if not equals or not name or role not in ROLES:
            raise ConfigError(
                f"--camera {shown(text)}: expected ROLE=NAME with a role of {', '.join(ROLES)}, "
                f"such as --camera primary=top"
            )
        if role in found or name in found.values():
            raise ConfigError(
                f"--camera {shown(text)}: {role} or {shown(name)} is given twice; each role has "
                f"one camera of its own"
            )
        found[role] = name
    return found


def assign(names: Sequence[str], given: Mapping[str, str], where: str) -> Cameras:
    """Return which camera has which role.

    Args:
        names: of the file's cameras.
        given: names by roles that an operator has told; the other roles are recognised.
        where: file and group, for messages.

    Raises:
        RolloutError: a given camera is not there, or a role has no camera or several.
    """
    for role, name in given.items():
        if name not in names:
            raise RolloutError(
                f"{where}: has no camera {shown(name)} for {role}; it has {_listed(names)}"
            )
    chosen = dict(given)
    known = next((s for s in _SETS if set(s.values()) <= set(names)), None)
    if known is not None and all(known[role] == name for role, name in given.items()):
        chosen = dict(known)
    free = [name for name in names if name not in chosen.values()]
    for role in ROLES:
        if role in chosen:
            continue
        fitting = [name for name in free if role_of(name) == role]
        if len(fitting) != 1:
            found = f"{len(fitting)} cameras could be" if fitting else "no camera is known as"
            raise RolloutError(
                f"{where}: {found} {role}; there is {_listed(names)}: say which is which, "
                f"such as {_example(names, chosen)}"
            )
        chosen[role] = fitting[0]
    unused = [name for name in names if name not in chosen.values()]
    notes = []
    if unused:
        notes.append(f"not taken: {'cameras' if len(unused) > 1 else 'camera'} {_listed(unused)}")
    if chosen == _ALOHA_2:
        notes.append(
            "cameras are named as on Interbotix' ALOHA 2.0, whose recorder puts the right arm "
            "first: see in an image whether the left arm is the left one"
        )
    return Cameras({role: chosen[role] for role in ROLES}, tuple(notes))


def role_of(name: str) -> str | None:
    """Return the role that a camera's name tells, such as "primary" for ``cam_high``."""
    words = set(re.split(r"[^a-z0-9]+", name.lower())) - _FILLERS
    for side in ("left", "right"):
        if side in words and words & _WRIST and words <= {side, *_WRIST}:
            return f"{side}_wrist"
    return "primary" if words and words <= _PRIMARY else None


def _example(names: Sequence[str], chosen: Mapping[str, str]) -> str:
    """Return the options that an operator could have meant, for those to be corrected."""
    free = [name for name in names if name not in chosen.values()]
    example = dict(chosen)
    for role in ROLES:
        if role not in example:
            near = [name for name in free if role_of(name) == role or role[:4] in name] or free
            example[role] = near[0] if near else "NAME"
            free = [name for name in free if name != example[role]]
    return " ".join(f"--camera {role}={shown(name)}" for role, name in example.items())


def _listed(names: Sequence[str]) -> str:
    texts = [shown(name) for name in names[:_SHOWN_NAMES]]
    return ", ".join([*texts, "…"] if len(names) > _SHOWN_NAMES else texts) or "none"
