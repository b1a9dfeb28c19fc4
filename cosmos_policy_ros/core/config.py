"""YAML into frozen dataclasses, validated once.

A wrong key is refused by its full path with the nearest right one: a default that silently stays in
force costs hours.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from cosmos_policy_ros.core.errors import ConfigError
from cosmos_policy_ros.core.untrusted import UnreadableError, parse_yaml, read_text, reading, shown

T = TypeVar("T")
MESSAGE = 400  # characters of what a dataclass says; it may quote a value of a megabyte
COMPARED = 100  # characters of a wrong name; the time taken goes with their square
# YAML 1.1 takes 1e-4, without a point or a sign, for text.
EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


def did_you_mean(wrong: str, known: typing.Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` or, with nothing near, the list of what there is."""
    names = sorted(known)
    near = difflib.get_close_matches(wrong[:COMPARED], names, n=1)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; known: {', '.join(names)}" if names else ""


def read_config(path: Path) -> str:
    """Return the text of a config file, from a single read of bounded size.

    Raises:
        ConfigError: the file is missing, no regular file, too large, or no UTF-8 text.
    """
    try:
        with reading(path, "text", ConfigError):
            return read_text(path)
    except ConfigError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
    with reading(path.parent, "a folder", ConfigError):
        siblings = [p.stem for p in path.parent.glob("*.yaml")]
    raise ConfigError(f"{path}: no such file{did_you_mean(path.stem, siblings)}")


def named_file(name_or_path: str, folder: Path) -> Path:
    """Return ``folder/<name>.yaml``, or the path itself when it looks like one."""
    if name_or_path.endswith((".yaml", ".yml")) or "/" in name_or_path:
        return Path(name_or_path).expanduser()
    return folder / f"{name_or_path}.yaml"


def load_yaml(path: Path) -> dict[str, Any]:
    """Read one YAML mapping.

    Raises:
        ConfigError: the file is missing, is not YAML, or does not hold a mapping.
    """
    return _parse_mapping(read_config(path), str(path))


def _parse_mapping(text: str, where: str) -> dict[str, Any]:
    with reading(where, "YAML", ConfigError):
        content = parse_yaml(text)
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: holds {type(content).__name__}, expected a mapping of keys")
    return content


def load_config(cls: type[T], path: Path) -> T:
    """Read ``path`` into the frozen dataclass ``cls``.

    Raises:
        ConfigError: unreadable file, unknown or missing key, wrong type, or a value that the
            dataclass itself refuses (``ValueError`` in ``__post_init__``).
    """
    return parse_config(cls, read_config(path), str(path))


def parse_config(cls: type[T], text: str, where: str) -> T:
    """Read the text of a config file into ``cls``; ``where`` begins every message.

    Raises:
        ConfigError: as for :func:`load_config`.
    """
    return from_mapping(cls, _parse_mapping(text, where), where)


def load_changed(cls: type[T], path: Path, changes: Sequence[str]) -> T:
    """Read ``path`` into ``cls`` with single keys changed, such as ``run.steps=100``.

    Raises:
        ConfigError: as for :func:`load_config`, or a change that is none.
    """
    content = load_yaml(path)
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals:
            raise ConfigError(f"--set {change}: expected KEY=VALUE, such as run.steps=100")
        place = content
        *sections, last = key.split(".")
        for section in sections:
            inner = place.setdefault(section, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"--set {change}: '{section}' is no section of {path}")
            place = inner
        try:
            place[last] = parse_yaml(text)
        except UnreadableError as error:
            raise ConfigError(f"--set {change}: {error}") from error
    return from_mapping(cls, content, str(path))


def to_plain(value: Any) -> Any:
    """Return a config, or a part of one, as YAML has it: mappings and lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {key: to_plain(each) for key, each in value.items()}
    return [to_plain(each) for each in value] if isinstance(value, list | tuple) else value


def from_mapping(cls: type[T], content: Mapping[str, Any], where: str) -> T:
    """Build the dataclass ``cls`` from ``content``; ``where`` begins every message."""
    assert dataclasses.is_dataclass(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    for key in content:
        if key not in fields:
            name = shown(key)
            raise ConfigError(f"{where}: unknown key '{name}'{did_you_mean(name, fields)}")
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name in content:
            values[name] = _convert(hints[name], content[name], f"{where}: {name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{where}: key '{name}' is missing")
    try:
        return typing.cast(T, cls(**values))
    except ValueError as error:
        raise ConfigError(f"{where}: {shown(str(error), MESSAGE)}") from error
    except (ArithmeticError, TypeError) as error:  # of a number that no field is meant for
        raise ConfigError(f"{where}: a value is beyond what is reckoned with: {error}") from error


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Check ``value`` against the type ``hint`` and convert lists and mappings on the way."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        hints = [a for a in args if a is not type(None)]
        if len(hints) == 1:
            return _convert(hints[0], value, where)
        if type(value) in hints:
            return value
        expected = ", ".join(each.__name__ for each in hints)
        raise ConfigError(f"{where}: expected one of {expected}, found {_describe(value)}")
    if origin is typing.Literal:
        if value not in args:
            choices = did_you_mean(shown(value), map(str, args))
            raise ConfigError(f"{where}: '{shown(value)}' is not a choice{choices}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{where}: expected a list, found {_describe(value)}")
        if args[-1] is not Ellipsis and len(args) != len(value):
            raise ConfigError(f"{where}: expected {len(args)} entries, found {len(value)}")
        return tuple(_convert(args[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin in (dict, Mapping, typing.get_origin(Mapping[str, int])):
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: expected a mapping, found {_describe(value)}")
        return {str(k): _convert(args[1], v, f"{where}.{shown(k)}") for k, v in value.items()}
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: expected a mapping, found {_describe(value)}")
        return from_mapping(typing.cast(type, hint), value, where)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ConfigError(f"{where}: {shown(value)} is no number of 64 bits") from None
    if hint is float and isinstance(value, str) and EXPONENT.fullmatch(value):
        return float(value)
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint in (str, bool) and isinstance(value, hint):
        return value
    raise ConfigError(f"{where}: expected {hint.__name__}, found {_describe(value)}")


def _describe(value: object) -> str:
    spelt = f"'{shown(value)}'" if isinstance(value, str) else shown(value)
    return f"{type(value).__name__} ({spelt})"
