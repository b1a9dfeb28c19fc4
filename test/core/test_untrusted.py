"""Pins that a name of a pipe, a device or a bomb costs one clear error, at once, and no content."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from cosmos_policy_ros.core.config import (
    did_you_mean,
    from_mapping,
    load_config,
    load_yaml,
    parse_config,
)
from cosmos_policy_ros.core.errors import ConfigError, RolloutError
from cosmos_policy_ros.core.untrusted import (
    MAX_TEXT_BYTES,
    UnreadableError,
    parse_json,
    parse_yaml,
    read_file,
    reading,
)

CONTENT = "what-stands-in-the-file"


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def sparse(path: Path) -> Path:
    with path.open("wb") as file:
        file.truncate(10 << 30)
    return path


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def loop(path: Path) -> Path:
    path.symlink_to(path)
    return path


def listener(path: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
    return path


def to(target: str) -> Callable[[Path], Path]:
    def link(path: Path) -> Path:
        path.symlink_to(target)
        return path

    return link


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (pipe, "is a pipe"),
        (folder, "is a folder"),
        (sparse, f"has {10 << 30} bytes, at most {MAX_TEXT_BYTES}"),
        (loop, "cannot be read: Too many levels"),
        (listener, "is a socket"),
        (to("/dev/zero"), "is a device"),
        (to("/dev/tty"), "is a device"),
        (to("/proc/self/environ"), "holds NoneType"),
        (to("/proc/kmsg"), ""),
        (to("/proc/kcore"), ""),
    ],
)
def test_what_is_no_file_is_told_at_once(
    tmp_path: Path, make: Callable[[Path], Path], told: str
) -> None:
    path = make(tmp_path / "task.yaml")
    with pytest.raises(ConfigError) as caught:
        load_yaml(path)
    assert str(path) in str(caught.value) and told in str(caught.value)


def test_a_file_that_grows_while_it_is_read_is_read_no_further(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(11))
    with pytest.raises(UnreadableError, match="at most 10"):
        read_file(path, 10)
    assert read_file(path, 11) == bytes(11)


@pytest.mark.parametrize(
    "text",
    [
        f"a: [{CONTENT}",
        f"{CONTENT}:\n\t- x",
        f"password: *{CONTENT}",
        f"a: !{CONTENT} b",
        f"%{CONTENT}\na: 1",
        f"a: 'x\n{CONTENT}",
        f"{CONTENT}: x\n  {CONTENT}: y",
        f"'{CONTENT}'",
    ],
)
def test_an_error_says_where_and_not_what(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_yaml(path)
    assert CONTENT not in str(caught.value)


def laughs(levels: int, width: int = 10) -> str:
    lines = ["a0: &a0 [x]"]
    for level in range(1, levels):
        inner = ", ".join([f"*a{level - 1}"] * width)
        lines.append(f"a{level}: &a{level} [{inner}]")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (laughs(10), "has more than 100000 entries"),
        ("[" * 500, "nests more than 32"),
        # libyaml 0.2.6 gives up at 1000 by itself.
        ("[" * 100_000, "nests more than 32|cannot be read as YAML: line 1, column 1001"),
        ("{a: " * 100_000, "nests more than 32"),
        ("- " * 50_000, "nests more than 32"),
        ("a: &x [*x]", "alias of nothing whole"),
        ("a: " + "1:" * 5000 + "1", "a number of 10001 characters"),
        ("a: 0x" + "f" * 100_000, "a number of 100002 characters"),
        ("[" + "a," * 200_000 + "]", "has more than 100000 entries"),
        ("a: !!python/object/apply:os.system [x]", "has a tag"),
        ("a: 9999-99-99", "cannot be read as YAML"),
        ("? [a]\n: b", "cannot be read as YAML"),
    ],
)
def test_a_bomb_is_refused_before_it_is_built(text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        parse_config(Shape, text, "a.yaml")


def test_what_people_write_is_still_read() -> None:
    text = f"a: &x {{b: 1}}\nc: [*x, *x]\nd: {'9 lives ' * 30}\ne: 1e3\nf: '{'7' * 90}'"
    found = parse_yaml(text)
    assert found["c"] == [{"b": 1}] * 2 and found["f"] == "7" * 90


@dataclass(frozen=True)
class Shape:
    number: float = 0.0
    whole: int = 0
    word: str = ""


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f"number: 1{'0' * 60}{'0' * 300}", "a number of 361"),
        ("number: " + "9" * 64, None),
        ("whole: [[[[[[[[1]]]]]]]]", "whole: expected int, found list"),
        ("word: {a: b}", "word: expected str, found dict"),
        (f"{'k' * 1000}: 1", "unknown key 'kkk"),
        ('"a\\e[2Jb": 1', r"a\\x1b"),
        (f"whole: {'w' * 100_000}", "expected int, found str"),
    ],
)
def test_a_wrong_value_is_told_in_a_line(tmp_path: Path, text: str, told: str | None) -> None:
    path = tmp_path / "shape.yaml"
    path.write_text(text)
    if told is None:
        assert load_config(Shape, path).number == float("9" * 64)
        return
    with pytest.raises(ConfigError, match=told) as caught:
        load_config(Shape, path)
    assert len(str(caught.value)) < 500 and "\x1b" not in str(caught.value)


def test_an_integer_beyond_a_float_is_told() -> None:
    with pytest.raises(ConfigError, match=r"number: .* is no number of 64 bits"):
        from_mapping(Shape, {"number": 10**400}, "a")


@pytest.mark.parametrize("text", [b"[" * 100_000, b'{"a":' * 100_000, b"\xff", b"9" * 5000, b""])
def test_json_that_is_none_is_told(text: bytes) -> None:
    with pytest.raises(UnreadableError, match="cannot be read as JSON"):
        parse_json(text)


def test_nearest_names_cost_nothing_however_long_the_wrong_one() -> None:
    assert did_you_mean("x" * 50_000_000, ["ziploc"]) == "; known: ziploc"


class RustPanic(BaseException):
    """What Rust's libraries raise is no Exception."""


@pytest.mark.parametrize(
    "error",
    [
        ValueError(CONTENT),
        MemoryError(CONTENT),
        RecursionError(),
        OverflowError(),
        RustPanic(CONTENT),
    ],
)
def test_whatever_is_raised_becomes_one_error(error: BaseException) -> None:
    told = pytest.raises(RolloutError, match=r"^x: cannot be read as a bag \(\w+\); do y$")
    with told as caught, reading("x", "a bag", RolloutError, "do y"):
        raise error
    assert CONTENT not in str(caught.value)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), ConfigError("as it is")])
def test_what_is_no_fault_of_the_file_passes(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, reading("x", "a bag", RolloutError):
        raise error
    assert caught.value is error
