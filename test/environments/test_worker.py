"""Messages of the pipe: what is written is read, and nothing else is."""

from __future__ import annotations

import ast
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cosmos_policy_ros.environments import worker
from cosmos_policy_ros.environments.worker import HEAD, MAGIC, MessageError, encode, read_message


def reading(data: bytes) -> worker.Message:
    stream = io.BytesIO(data)

    def read(count: int) -> bytes:
        part = stream.read(count)
        if len(part) < count:
            raise EOFError
        return part

    return read_message(read)


def message(content: object, data: bytes = b"") -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return HEAD.pack(MAGIC, len(text), len(data)) + text + data


def test_arrays_and_values_come_back_as_they_were() -> None:
    arrays = {
        "rows": np.arange(12.0).reshape(4, 3)[::2],
        "image": np.arange(48, dtype=np.uint8).reshape(4, 4, 3)[::-1],
        "count": np.array([2**62]),
        "big_endian": np.array([1.5, -2.0], ">f4"),
    }
    got = reading(encode({"prompt": "π", "steps": 3}, arrays))
    assert got.values == {"prompt": "π", "steps": 3}
    assert {name: each.tolist() for name, each in got.arrays.items()} == {
        name: each.tolist() for name, each in arrays.items()
    }


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"Loading the kitchen...\n", "begins with"),
        (HEAD.pack(MAGIC, 2**31, 0), "announces 2147483648"),
        (HEAD.pack(MAGIC, 10, 2**31), "announces 10 and 2147483648"),
        (message(b"not JSON"), "JSON"),
        (message(b"[" * 5000 + b"]" * 5000), "JSON|deep"),
        (message({"values": {"a": [[[[[[[[[1]]]]]]]]]}, "arrays": []}), "deep"),
        (message([]), "other parts"),
        (message({"values": [], "arrays": []}), "no object"),
        (message({"values": {}, "arrays": [["a", "O", [1]]]}, b"12345678"), "another type"),
        (message({"values": {}, "arrays": [["a", "f8", [-1]]]}, b"12345678"), "shape"),
        (message({"values": {}, "arrays": [["a", "f8", [2**40, 2**40]]]}), "shape"),
        (message({"values": {}, "arrays": [["a", "f8", [True]]]}, b"12345678"), "shape"),
        (message({"values": {}, "arrays": [["a", "f8", [2]]]}, b"12345678"), "less data"),
        (message({"values": {}, "arrays": [["a", "u1", [2]]]}, b"12345678"), "more data"),
        (message({"values": {}, "arrays": [["a", "u1", [1]], ["a", "u1", [1]]]}, b"12"), "two"),
        (message({"values": {}, "arrays": [[]] * 17}), "17 arrays"),
    ],
)
def test_what_is_no_message_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(MessageError, match=words):
        reading(data)


def test_what_cannot_be_sent_is_refused() -> None:
    with pytest.raises(MessageError, match="object"):
        encode({}, {"a": np.array([None])})
    with pytest.raises(MessageError, match="limits"):
        encode({"a": "x" * worker.MAX_JSON})


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 200))
def test_no_bytes_break_the_reader(noise: bytes, cut: int) -> None:
    whole = encode({"steps": 16}, {"state": np.zeros(9)})
    for data in (noise, MAGIC + noise, whole[:cut] + noise, whole[:cut]):
        try:
            got = reading(data)
        except (MessageError, EOFError):
            continue
        assert isinstance(got.values, dict)


@pytest.mark.parametrize("name", ["worker", "libero_environment", "robocasa_environment"])
def test_the_other_interpreters_files_import_nothing_of_the_package(name: str) -> None:
    path = Path(worker.__file__).with_name(f"{name}.py")
    known = {*sys.stdlib_module_names, "numpy", "worker", "libero", "robosuite", "robocasa"}
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert {each.partition(".")[0] for each in names} <= known
