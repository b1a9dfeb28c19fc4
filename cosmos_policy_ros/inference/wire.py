"""What goes to a policy server and comes back: msgpack and JSON, with arrays in them.

Arrays travel as openpi and json_numpy mark them. The decoders build plain values and arrays of
numbers alone, and no more of them than the limits below, whatever the bytes say: a type that stands
for Python objects would have NumPy follow the sender's bytes as pointers, and a header of five
bytes can ask for gigabytes.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import msgpack
import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.core.untrusted import UnreadableError, parse_json, shown

MAX_BYTES = 64 << 20
"""Of a message; 50 rows of 14 numbers take 6 kB, a server's imagined images half a megabyte."""
MAX_ELEMENTS = 200_000
"""Values, keys and brackets of a message, an array counted as one."""
MAX_DEPTH = 16
"""Of mappings and lists within each other; a reply has three or four levels."""
MAX_DIMENSIONS = 8
"""Of an array."""
TYPES = {name: np.dtype(f"<{name}") for name in ("u1", "i4", "i8", "f4", "f8", "b1")}
"""Of arrays, by NumPy's short names; little-endian, as every server's machine is."""
_MSGPACK_MARK, _MSGPACK_NUMBER, _JSON_MARK = "__ndarray__", "__npgeneric__", "__numpy__"
# Bytes behind the first one of msgpack's values of a fixed size, by that byte.
_FIXED = {0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8}
_FIXED |= {0xCC + i: 2**i for i in range(4)} | {0xD0 + i: 2**i for i in range(4)}
# Bytes of the length behind the first one: of text and bytes, and of what holds other values.
_SIZED = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
_LISTS, _MAPS = {0xDC: 2, 0xDD: 4}, {0xDE: 2, 0xDF: 4}


def encode_msgpack(value: object) -> bytes:
    """Return a message for openpi's wire; arrays become its marked mappings."""

    def mark(array: object) -> dict[bytes, object]:
        assert isinstance(array, np.ndarray)
        return {
            b"__ndarray__": True,
            b"data": array.tobytes(),
            b"dtype": array.dtype.str,
            b"shape": array.shape,
        }

    packed: bytes = msgpack.packb(value, default=mark)
    return packed


def decode_msgpack(message: bytes) -> Any:
    """Return what a message of openpi's wire holds; keys are text.

    Raises:
        UnreadableError: it is no msgpack, over a limit, or has an array that is none.
    """
    _check_size(message)
    _check_msgpack(message)
    try:
        value = msgpack.unpackb(
            message,
            strict_map_key=True,
            max_str_len=MAX_BYTES,
            max_bin_len=MAX_BYTES,
            max_array_len=MAX_ELEMENTS,
            max_map_len=MAX_ELEMENTS,
            max_ext_len=0,
        )
    except ValueError as error:  # among them text that is no UTF-8
        raise UnreadableError(f"cannot be read as msgpack ({type(error).__name__})") from None
    return _Converter(_MSGPACK_MARK).convert(value)


def encode_json(value: object) -> bytes:
    """Return a message for ``/act``; arrays become json_numpy's marked mappings."""

    def mark(array: object) -> dict[str, object]:
        assert isinstance(array, np.ndarray)
        return {
            "__numpy__": base64.b64encode(array.tobytes()).decode("ascii"),
            "dtype": array.dtype.str,
            "shape": array.shape,
        }

    return json.dumps(value, default=mark).encode("utf-8")


def decode_json(message: bytes) -> Any:
    """Return what a message of ``/act`` holds.

    Raises:
        UnreadableError: it is no JSON, over a limit, or has an array that is none.
    """
    _check_size(message)
    # Before anything is built: every value but the first stands behind a comma or a bracket.
    if sum(message.count(mark) for mark in b",[{") > MAX_ELEMENTS:
        raise UnreadableError(f"has more than {MAX_ELEMENTS} elements")
    return _Converter(_JSON_MARK).convert(parse_json(message))


def as_rows(value: object, what: str) -> NDArray[np.float64]:
    """Return (n, m) numbers: an array, a list of arrays (m,), or a list of lists of numbers.

    ``what`` they are begins the messages.

    Raises:
        UnreadableError: it is none of them, or its rows differ in length.
    """
    if isinstance(value, np.ndarray):
        if value.ndim != 2 or value.dtype == np.bool_:
            raise UnreadableError(f"has {what} of shape {value.shape} and type {value.dtype}")
        return value.astype(np.float64)
    if not isinstance(value, list):
        raise UnreadableError(f"has {what} that are {_name(value)}, no list of rows")
    rows = [_row(row, what) for row in value]
    widths = sorted({len(row) for row in rows})
    if len(widths) > 1:
        raise UnreadableError(f"has {what} with rows of {widths[0]} and of {widths[-1]} numbers")
    return np.array(rows, np.float64).reshape(len(rows), widths[0] if widths else 0)


def as_number(value: object) -> float:
    """Return a finite number that a message holds, be it in an array of one; NaN for none."""
    if isinstance(value, np.ndarray):
        value = value.item() if value.size == 1 else None
    if isinstance(value, list) and len(value) == 1:
        (value,) = value
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value) if math.isfinite(value) else math.nan
    except OverflowError:
        return math.nan


def find(value: object, key: str) -> Any:
    """Return what stands under a key such as ``a/b`` in nested mappings; all for the empty key.

    Raises:
        UnreadableError: it is not there; names what is.
    """
    for part in key.split("/") if key else ():
        if not isinstance(value, Mapping):
            raise UnreadableError(f"has no '{key}': it is {_name(value)}, no mapping")
        if part not in value:
            there = ", ".join(shown(each) for each in list(value)[:10])
            raise UnreadableError(f"has no '{key}': it holds {there or 'nothing'}")
        value = value[part]
    return value


class _Converter:
    """Turns marked mappings into arrays, and counts on the way."""

    def __init__(self, mark: str) -> None:
        self._mark, self._elements = mark, 0

    def convert(self, value: Any, depth: int = 0) -> Any:
        self._elements += 1
        if depth > MAX_DEPTH:
            raise UnreadableError(f"nests more than {MAX_DEPTH} levels deep")
        if self._elements > MAX_ELEMENTS:
            raise UnreadableError(f"has more than {MAX_ELEMENTS} elements")
        if isinstance(value, list):
            return [self.convert(each, depth + 1) for each in value]
        if not isinstance(value, dict):
            return value
        known = {_text(key): each for key, each in value.items()}
        if self._mark in known:
            data = known["data"] if self._mark == _MSGPACK_MARK else known[self._mark]
            return _array(data, known.get("dtype"), known.get("shape"))
        if _MSGPACK_NUMBER in known and self._mark == _MSGPACK_MARK:
            return _scalar(known.get("data"), known.get("dtype"))
        return {key: self.convert(each, depth + 1) for key, each in known.items()}


def _array(data: object, type_name: object, shape: object) -> NDArray[Any]:
    dtype = _dtype(type_name)
    if not isinstance(shape, Sequence) or isinstance(shape, str | bytes):
        raise UnreadableError(f"has an array whose shape is {_name(shape)}, no list")
    if len(shape) > MAX_DIMENSIONS or not all(type(n) is int and n >= 0 for n in shape):
        raise UnreadableError(f"has an array of shape {shown(shape)}")
    # Of Python's whole numbers, which do not overflow.
    size = math.prod(shape) * dtype.itemsize
    if isinstance(data, str):
        # Before it is decoded: base64 makes 4 characters of 3 bytes.
        if len(data) != 4 * -(-size // 3):
            _wrong_size(f"{len(data)} characters", shape, dtype)
        try:
            data = base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError):
            raise UnreadableError("has an array whose data is no base64") from None
    if not isinstance(data, bytes):
        raise UnreadableError(f"has an array whose data is {_name(data)}, no bytes")
    if len(data) != size:
        _wrong_size(f"{len(data)} bytes", shape, dtype)
    if dtype == np.bool_ and data.translate(None, b"\0\1"):
        raise UnreadableError("has an array of truth values that are neither 0 nor 1")
    # An empty one may have sides that no array can have.
    if not size and math.prod(filter(None, shape)) > MAX_BYTES:
        raise UnreadableError(f"has an array of shape {shown(shape)}")
    return np.frombuffer(data, dtype).reshape(tuple(shape))


def _wrong_size(found: str, shape: Sequence[int], dtype: np.dtype[Any]) -> NoReturn:
    raise UnreadableError(f"has an array of shape {shown(shape)} and type {dtype} in {found}")


def _scalar(data: object, type_name: object) -> bool | int | float:
    _dtype(type_name)
    if not isinstance(data, bool | int | float):
        raise UnreadableError(f"has a number that is {_name(data)}")
    return data


def _dtype(name: object) -> np.dtype[Any]:
    text = _text(name)
    found = TYPES.get(text.lstrip("<|=")) if isinstance(text, str) else None
    if found is None:
        raise UnreadableError(
            f"has an array of type '{shown(text)}', and only {', '.join(TYPES)} are read"
        )
    return found


def _row(row: object, what: str) -> NDArray[np.float64] | list[int | float]:
    if isinstance(row, np.ndarray):
        if row.ndim != 1 or row.dtype == np.bool_:
            raise UnreadableError(f"has {what} with a row of shape {row.shape}, type {row.dtype}")
        return row.astype(np.float64)
    if not isinstance(row, list):
        raise UnreadableError(f"has {what} with a row that is {_name(row)}")
    for each in row:
        if isinstance(each, bool) or not isinstance(each, int | float):
            raise UnreadableError(f"has {what} with {_name(each)} for a number")
        if isinstance(each, int) and abs(each) > 2**63:
            raise UnreadableError(f"has {what} with a number of more than 64 bits")
    return row


def _text(value: object) -> Any:
    """Return bytes as text, which openpi's packer does not; anything else as it is."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _name(value: object) -> str:
    return "nothing" if value is None else type(value).__name__


def _check_size(message: bytes) -> None:
    if len(message) > MAX_BYTES:
        raise UnreadableError(f"has {len(message)} bytes, at most {MAX_BYTES} are read")


def _check_msgpack(message: bytes) -> None:
    """Walk over a message's values without building any.

    msgpack makes room for a list before it has seen its first entry: some hundred headers within
    each other would take gigabytes.
    """
    end, at, elements = len(message), 0, 0
    open_values = [1]  # still to come, of what is open
    while open_values:
        if not open_values[-1]:
            open_values.pop()
            continue
        open_values[-1] -= 1
        elements += 1
        if elements > MAX_ELEMENTS:
            raise UnreadableError(f"has more than {MAX_ELEMENTS} elements")
        if at >= end:
            raise UnreadableError("cannot be read as msgpack: it is cut off")
        first, at = message[at], at + 1

        def number(size: int, at: int = at) -> int:
            return int.from_bytes(message[at : at + size], "big")

        inner = -1
        if first < 0x80 or first >= 0xE0:
            pass
        elif first < 0x90:
            inner = 2 * (first & 0xF)
        elif first < 0xA0:
            inner = first & 0xF
        elif first < 0xC0:
            at += first & 0x1F
        elif first in _FIXED:
            at += _FIXED[first]
        elif first in _SIZED:
            at += _SIZED[first] + number(_SIZED[first])
        elif first in _LISTS:
            inner, at = number(_LISTS[first]), at + _LISTS[first]
        elif first in _MAPS:
            inner, at = 2 * number(_MAPS[first]), at + _MAPS[first]
        else:
            raise UnreadableError(f"has a value of msgpack's type 0x{first:02x}, which is not read")
        if inner >= 0:
            if inner > end - at:
                raise UnreadableError("cannot be read as msgpack: it is cut off")
            open_values.append(inner)
            if len(open_values) - 1 > MAX_DEPTH:
                raise UnreadableError(f"nests more than {MAX_DEPTH} levels deep")
    if at > end:
        raise UnreadableError("cannot be read as msgpack: it is cut off")
    if at < end:
        raise UnreadableError(f"cannot be read as msgpack: it ends at byte {at} of {end}")
