"""Files that others made: opened without waiting, read up to a size, their faults one clear error.

A name that an operator gives may lead to anything: a pipe, a device, ten gigabytes of holes, bytes
that make a parser loop or fail in an undocumented way.
"""

from __future__ import annotations

import json
import os
import reprlib
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from cosmos_policy_ros.core.errors import CosmosPolicyError

MAX_TEXT_BYTES = 1 << 20
"""Of a config file; the largest shipped one has 9 kB, a converted checkpoint's history 100 kB."""
MAX_YAML_NODES = 100_000
"""Keys and values, aliases counted as what they stand for; a bag's metadata has some thousand."""
MAX_DEPTH = 32
"""Of mappings and lists within each other; config files have six levels."""
MAX_NUMBER_CHARACTERS = 64
"""Of a number in YAML; reading one takes the square of its length."""
SHOWN_CHARACTERS = 60
"""Of a value in a message."""
_NO_FAULT = (KeyboardInterrupt, SystemExit, GeneratorExit)
# libyaml's, ten times as fast. Its events come without recursion, whatever the depth, as those of
# the Python parser do; and what was checked is what is then built.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_BRIEF = reprlib.Repr()
_BRIEF.maxstring = SHOWN_CHARACTERS


class UnreadableError(ValueError):
    """What is wrong with a file, in this package's words; :func:`reading` adds the file's name."""


@contextmanager
def reading(
    where: object, what: str, kind: type[CosmosPolicyError], advice: str = ""
) -> Iterator[None]:
    """Turn whatever a reader of foreign bytes raises into one error without the file's content.

    Args:
        where: the file, for the message.
        what: what it is read as, such as "a bag".
        kind: class of the error; a CosmosPolicyError raised within passes through.
        advice: what to do next.
    """
    after = f"; {advice}" if advice else ""
    try:
        yield
    except (CosmosPolicyError, *_NO_FAULT):
        raise
    except UnreadableError as error:
        raise kind(f"{where}: {error}{after}") from error
    # A parser fed damaged bytes may raise anything; torch's and Rust's errors are no Exception.
    except BaseException as error:
        if isinstance(error, OSError) and error.strerror:
            raise kind(f"{where}: cannot be read: {error.strerror}{after}") from error
        raise kind(f"{where}: cannot be read as {what} ({type(error).__name__}){after}") from error


def open_file(path: Path) -> BinaryIO:
    """Open a regular file; what else bears the name is neither opened nor waited for.

    Raises:
        UnreadableError: it is a folder, a pipe, a device or a socket.
        OSError: the system refuses.
    """
    _check_regular(path.stat().st_mode)  # to open a device may already set it off
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        _check_regular(os.fstat(descriptor).st_mode)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def check_file(path: Path) -> int:
    """Return the size [bytes] of a regular file that a library is going to open by itself."""
    with open_file(path) as file:
        return os.fstat(file.fileno()).st_size


def read_file(path: Path, limit: int = MAX_TEXT_BYTES) -> bytes:
    """Read a regular file of at most ``limit`` bytes whole; raises as :func:`open_file` does."""
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            return b""  # those that a kernel makes up while they are read say 0 as well
        content = file.read(limit + 1) if size <= limit else b""
    if size > limit or len(content) > limit:
        raise UnreadableError(f"has {max(size, len(content))} bytes, at most {limit} are read")
    return content


def read_text(path: Path, limit: int = MAX_TEXT_BYTES) -> str:
    """Read a regular file of at most ``limit`` bytes whole as UTF-8."""
    try:
        return read_file(path, limit).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UnreadableError(f"is not UTF-8 text: byte {error.start} is not") from None


def parse_json(text: str | bytes) -> Any:
    """Read JSON. Raises UnreadableError when it is none, or nested too deeply."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UnreadableError(
            f"cannot be read as JSON: line {error.lineno}, column {error.colno}"
        ) from None
    except (ValueError, RecursionError):  # bytes that are no text, a number of 5000 digits
        raise UnreadableError("cannot be read as JSON: no text, or nested too deeply") from None


def parse_yaml(text: str) -> Any:
    """Read YAML 1.1 of at most :data:`MAX_TEXT_BYTES` characters; raises as :func:`check_yaml`."""
    if len(text) > MAX_TEXT_BYTES:
        raise UnreadableError(f"has {len(text)} characters, at most {MAX_TEXT_BYTES} are read")
    check_yaml(text)
    try:
        return yaml.load(text, Loader=_LOADER)  # noqa: S506  both build plain values only
    except yaml.YAMLError as error:
        raise _no_yaml(error) from None


def check_yaml(text: str) -> None:
    """Refuse YAML that would grow or nest beyond what any file here needs, before it is built.

    Raises:
        UnreadableError: it is no YAML, has more than :data:`MAX_YAML_NODES` nodes with aliases
            taken for what they stand for, nests more than :data:`MAX_DEPTH` deep, or has an alias
            within itself, a number of absurd length or a tag.
    """
    nodes = 0
    inside: list[tuple[str | None, int]] = []  # anchor of what is open, and the nodes before it
    sizes: dict[str, int] = {}
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            if getattr(event, "tag", None) not in (None, "!"):
                raise UnreadableError(f"has a tag, which no file here needs, {_place(event)}")
            if isinstance(event, yaml.AliasEvent):
                if event.anchor not in sizes:
                    raise UnreadableError(f"has an alias of nothing whole, {_place(event)}")
                nodes += sizes[event.anchor]
            elif isinstance(event, yaml.ScalarEvent):
                nodes += 1
                value = event.value
                long = not event.style and len(value) > MAX_NUMBER_CHARACTERS
                # Text may begin with a digit as well; a number has no blanks in it.
                if long and value[0] in "+-.0123456789" and not any(map(str.isspace, value)):
                    raise UnreadableError(
                        f"has a number of {len(value)} characters, {_place(event)}"
                    )
                if event.anchor:
                    sizes[event.anchor] = 1
            elif isinstance(event, yaml.CollectionStartEvent):
                inside.append((event.anchor, nodes))
                nodes += 1
                if len(inside) > MAX_DEPTH:
                    raise UnreadableError(
                        f"nests more than {MAX_DEPTH} levels deep, {_place(event)}"
                    )
            elif isinstance(event, yaml.CollectionEndEvent):
                anchor, before = inside.pop()
                if anchor:
                    sizes[anchor] = nodes - before
            if nodes > MAX_YAML_NODES:
                raise UnreadableError(f"has more than {MAX_YAML_NODES} entries, {_place(event)}")
    except yaml.YAMLError as error:
        raise _no_yaml(error) from None


def shown(value: object, most: int = SHOWN_CHARACTERS) -> str:
    """Return a value for a message: printable, and of at most so many characters."""
    text = value if isinstance(value, str) else _BRIEF.repr(value)
    cut = escaped(text[: most + 1])
    return cut if len(cut) <= most else f"{cut[:most]}…"


def escaped(text: str, kept: str = "") -> str:
    """Return a text with every character that cannot be shown escaped, but those of ``kept``.

    A terminal obeys control characters, and half a character of a file's name cannot be printed.
    """
    return "".join(c if c.isprintable() or c in kept else repr(c)[1:-1] for c in text)


def _check_regular(mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    raise UnreadableError(f"is {kinds.get(stat.S_IFMT(mode), 'no file')}, expected a regular file")


def _place(event: Any) -> str:
    return f"line {event.start_mark.line + 1}, column {event.start_mark.column + 1}"


def _no_yaml(error: yaml.YAMLError) -> UnreadableError:
    """Say where, and leave out what stands there: it may be any file's content."""
    mark = getattr(error, "problem_mark", None)
    where = f": line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
    return UnreadableError(f"cannot be read as YAML{where}")
