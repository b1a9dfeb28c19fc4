"""The wires' decoders take what servers send, and nothing that reaches beyond it.

openpi's own reader makes an array of Python objects of a server's bytes, and crashes.
"""

from __future__ import annotations

import json
import math
import resource
import struct
from typing import Any

import msgpack
import numpy as np
import pytest
from helpers.policy_servers import dump, load, marked, pack, unpack
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cosmos_policy_ros.core.untrusted import UnreadableError
from cosmos_policy_ros.inference import wire

ARRAYS = st.sampled_from([*wire.TYPES.values()]).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0, max_side=5))
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | ARRAYS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)
GOOD = {"actions": np.zeros((50, 14), np.float32), "server_timing": {"infer_ms": 81.5}}
CHANGES = st.tuples(
    st.floats(0, 1, exclude_max=True),
    st.sampled_from(["set", "cut", "insert"]),
    st.binary(min_size=1, max_size=5),
)
SPOILING = st.lists(CHANGES, min_size=1, max_size=4)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and bool(one == other)


def plain(value: Any) -> bool:
    """Whether a value has nothing in it but numbers, text and arrays of numbers."""
    if isinstance(value, np.ndarray):
        return value.dtype in wire.TYPES.values()
    if isinstance(value, dict):
        return all(isinstance(key, str) and plain(each) for key, each in value.items())
    if isinstance(value, list):
        return all(map(plain, value))
    return value is None or type(value) in (bool, int, float, str, bytes)


@given(VALUES)
def test_what_others_write_is_read_and_what_is_written_others_read(value: Any) -> None:
    assert same(wire.decode_msgpack(pack(value)), value)
    assert same(unpack(wire.encode_msgpack(value)), value)
    assert same(wire.decode_json(dump(value)), value)
    assert same(load(wire.encode_json(value)), value)


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_plain_values_or_one_error(message: bytes, text: bool) -> None:
    decode = wire.decode_json if text else wire.decode_msgpack
    try:
        assert plain(decode(message))
    except UnreadableError as error:
        assert str(error).isprintable()


@given(SPOILING, st.booleans())
def test_a_spoilt_reply_is_plain_values_or_one_error(changes: Any, text: bool) -> None:
    message = dump(GOOD) if text else pack(GOOD)
    for where, kind, data in changes:
        at = int(where * len(message))
        if kind == "cut":
            message = message[:at]
        else:
            message = message[:at] + data + message[at + len(data) * (kind == "set") :]
    decode = wire.decode_json if text else wire.decode_msgpack
    try:
        assert plain(decode(message))
    except UnreadableError as error:
        assert str(error).isprintable()


@given(ARRAYS, st.lists(st.integers(0, 5) | st.integers(-(2**70), 2**70), max_size=4))
def test_no_shape_but_the_datas_own_is_taken(array: np.ndarray, shape: list[int]) -> None:
    data, dtype = array.tobytes(), array.dtype.str
    fits = all(n >= 0 for n in shape) and math.prod(shape) == array.size
    text = json.loads(dump(array)) | {"shape": shape}
    packable = [min(max(n, -(2**63)), 2**64 - 1) for n in shape]
    for decode, sent in (
        (wire.decode_json, json.dumps(text).encode()),
        (wire.decode_msgpack, msgpack.packb(marked(data, dtype, packable))),
    ):
        try:
            found = decode(sent)
        except UnreadableError:
            assert not fits or math.prod(filter(None, shape)) > wire.MAX_BYTES
        else:
            assert found.shape == tuple(shape) and found.tobytes() == data


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (marked(bytes(8), "|O", [1]), "of type '|O', and only u1, i4, i8, f4, f8, b1 are read"),
        (marked(bytes(8), "O", [1]), "of type 'O'"),
        (marked(bytes(8), [["a", "<f8"]], [1]), "of type '[['a', '<f8']]'"),
        (marked(bytes(8), "<M8[s]", [1]), "of type '<M8[s]'"),
        (marked(bytes(8), ">f8", [1]), "of type '>f8'"),
        (marked(bytes(8), "V8", [1]), "of type 'V8'"),
        (marked(bytes(8), "(1000000000,)f8", [1]), "of type '(1000000000,)f8'"),
        (marked(bytes(8), None, [1]), "of type 'None'"),
        (marked(bytes(8), "<f8", [2]), "shape [2] and type float64 in 8 bytes"),
        (marked(bytes(16), "<f8", [1]), "in 16 bytes"),
        (marked(bytes(8), "<f8", [-1]), "shape [-1]"),
        (marked(bytes(8), "<f8", [True]), "shape [True]"),
        (marked(bytes(8), "<f8", [1.0]), "shape [1.0]"),
        (marked(bytes(8), "<f8", [2**63, 2]), "shape [9223372036854775808, 2]"),
        (marked(b"", "<f8", [0, 2**62]), "shape [0, 4611686018427387904]"),
        (marked(b"", "<f8", [0, 2**25, 2**25, 2**25]), "shape [0, 33554432"),
        (marked(bytes(8), "<f8", [1] * 9), "shape [1, 1, 1"),
        (marked(bytes(8), "<f8", "11"), "whose shape is str"),
        (marked(bytes(8), "<f8", None), "whose shape is nothing"),
        (marked([1.0], "<f8", [1]), "whose data is list"),
        (marked("aaaaaaaa", "<f8", [1]), "in 8 characters"),
        (marked(b"\x02", "|b1", [1]), "neither 0 nor 1"),
        ({b"__npgeneric__": True, b"data": 1.0, b"dtype": "|O"}, "of type '|O'"),
        ({b"__npgeneric__": True, b"data": b"x", b"dtype": "<f8"}, "a number that is bytes"),
    ],
)
def test_what_is_no_array_of_numbers_is_refused_by_name(array: dict, words: str) -> None:
    with pytest.raises(UnreadableError) as refused:
        wire.decode_msgpack(msgpack.packb({"actions": array}))
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        ({"__numpy__": "AAAAAAAAAAA=", "dtype": "|O", "shape": [1]}, "of type '|O'"),
        ({"__numpy__": "AAAAAAAAAAA=", "dtype": [["a", "|O"]], "shape": [1]}, "of type '[['a'"),
        ({"__numpy__": "AAAAAAAAAAA=", "dtype": "<f8", "shape": [10**30]}, "in 12 characters"),
        ({"__numpy__": "AAAA AAAAAA=", "dtype": "<f8", "shape": [1]}, "no base64"),
        ({"__numpy__": "AAAAAAA=AAA=", "dtype": "<f8", "shape": [1]}, "no base64"),
        ({"__numpy__": 5, "dtype": "<f8", "shape": [1]}, "whose data is int"),
        ({"__numpy__": ""}, "of type 'None'"),
    ],
)
def test_json_as_well(array: dict, words: str) -> None:
    with pytest.raises(UnreadableError) as refused:
        wire.decode_json(json.dumps(array).encode())
    assert words in str(refused.value)


LISTS = b"\xdd" + struct.pack(">I", 2**27)  # a list's header that asks for a gigabyte


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (b"\x91" * 40 + b"\x01", "more than 16 levels"),
        (LISTS * 900, "cut off"),
        ((b"\xdc\x0f\xff" + b"\x01" * 4) * 9000, "levels deep"),
        (b"\xdd" + struct.pack(">I", 10**6) + b"\x90" * 10**6, "more than 200000 elements"),
        (b"\xdf" + struct.pack(">I", 10**6) + b"\xa1a\x90" * 10**6, "more than 200000 elements"),
        (b"\xc6" + struct.pack(">I", 2**32 - 1) + b"x", "cut off"),
        (b"\xd4\x00x", "type 0xd4"),
        (b"\xd7\xff" + bytes(8), "type 0xd7"),
        (b"\xc1", "type 0xc1"),
        (b"\x81\x90\x01", "as msgpack"),
        (b"\x81\x01\x01", "as msgpack"),
        (b"\xa1\xff", "as msgpack"),
        (b"\x01\x01", "ends at byte 1 of 2"),
        (b"", "cut off"),
        (bytes(wire.MAX_BYTES + 1), "at most 67108864 are read"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_msgpack_that_would_grow_is_refused_before_it_does(message: bytes, words: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UnreadableError, match=words):
        wire.decode_msgpack(message)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "kB"


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (b"[" * 17 + b"1" + b"]" * 17, "more than 16 levels"),
        (b"[" * 100_000, "as JSON"),
        (b"[" + b"[]," * 10**6 + b"1]", "more than 200000 elements"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "as JSON"),
        (b"[" + b"9" * 5000 + b"]", "as JSON"),
        (b'"\xff"', "as JSON"),
        (b"error", "as JSON"),
        (b"", "as JSON"),
        (b" " * (wire.MAX_BYTES + 1), "at most 67108864 are read"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_json_that_would_grow_is_refused_before_it_does(message: bytes, words: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UnreadableError, match=words):
        wire.decode_json(message)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "kB"


ROWS = np.arange(6.0).reshape(3, 2)


@pytest.mark.parametrize("rows", [ROWS, ROWS.astype("f4"), list(ROWS), ROWS.tolist()])
def test_rows_come_in_three_forms(rows: object) -> None:
    found = wire.as_rows(rows, "actions")
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, ROWS)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (None, "that are nothing, no list"),
        ("error", "that are str"),
        (ROWS[0], r"of shape \(2,\)"),
        (ROWS > 1, "type bool"),
        ([[1.0], [1.0, 2.0]], "rows of 1 and of 2"),
        ([[1.0, "2"]], "str for a number"),
        ([[1.0, True]], "bool for a number"),
        ([[1.0, 10**400]], "more than 64 bits"),
        ([1.0, 2.0], "a row that is float"),
        ([ROWS], r"a row of shape \(3, 2\)"),
    ],
)
def test_what_is_no_rows_is_refused(rows: object, words: str) -> None:
    with pytest.raises(UnreadableError, match=words):
        wire.as_rows(rows, "actions")


@pytest.mark.parametrize(
    ("value", "number"),
    [(0.5, 0.5), (1, 1.0), ([0.5], 0.5), (np.array([0.5]), 0.5), (np.array(0.5), 0.5)]
    + [(each, math.nan) for each in (None, True, "1", [1, 2], [], math.inf, 10**400, np.zeros(2))],
)
def test_a_number_is_one_and_finite(value: object, number: float) -> None:
    assert wire.as_number(value) == pytest.approx(number, nan_ok=True)
