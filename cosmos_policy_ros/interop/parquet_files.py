"""Rows of a Parquet file that others made: read by columns, up to a size, faults named."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.core.untrusted import UnreadableError, open_file, reading, shown
from cosmos_policy_ros.interop.row_episode import Floats

MAX_FILE_ROWS = 10_000_000
"""Of a file; LeRobot's own end at 100 MB, a million rows of two arms."""
MAX_COLUMN_BYTES = 1 << 30
"""Of what is read together of one column, unpacked."""
_MAX_THRIFT = 64 << 20  # of a text, and of a list's entries, in the description of a file
_MAGIC = b"PAR1"
_LFS = b"version https://git-lfs"
_IMAGES_TOGETHER = 8


class ParquetFile:
    """An open file; a context that closes it.

    Attributes:
        path: of the file.
        names: of its columns.
        rows: how many it has.
    """

    def __init__(self, path: Path) -> None:
        """Open it and read its description.

        Raises:
            RolloutError: not there, no Parquet file, cut off, or it claims more rows than any has.
        """
        self.path = path
        with reading(path, "Parquet", RolloutError, "copy it again"):
            check_begin(path, _MAGIC, "Parquet")
            self._source = pa.OSFile(str(path))
        with self._reading():
            # Not read ahead: a column of images has gigabytes.
            self._file = pq.ParquetFile(
                self._source,
                pre_buffer=False,
                buffer_size=1 << 20,
                thrift_string_size_limit=_MAX_THRIFT,
                thrift_container_size_limit=_MAX_THRIFT,
            )
            self.names: list[str] = list(self._file.schema_arrow.names)
            self.rows: int = self._file.metadata.num_rows
            if not 0 <= self.rows <= MAX_FILE_ROWS:
                raise UnreadableError(f"claims {self.rows} rows, at most {MAX_FILE_ROWS} are read")

    def __enter__(self) -> ParquetFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._source.close()

    def numbers(self, key: str, rows: range | None = None) -> Floats:
        """Return a column as (T, D) float64, D being 1 for a column of single numbers.

        Raises:
            RolloutError: it is not there, holds no numbers or not as many in each row, or has rows
                without a value.
        """
        column = self._column(key, rows)
        with self._reading():
            return _as_rows(column, key)

    def integers(self, key: str, rows: range | None = None) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return a column of single whole numbers, (T,). Raises as :meth:`numbers` does."""
        values = self.numbers(key, rows)
        whole = values.shape[1] == 1 and bool((values == np.floor(values)).all())
        if not whole or not bool((np.abs(values) < 2**53).all()):
            raise RolloutError(f"{self.path}: {shown(key)}: expected one whole number in each row")
        return values[:, 0].astype(np.int64)

    def texts(self, key: str) -> list[bytes]:
        """Return a column of texts as bytes, which need not be UTF-8. Raises RolloutError."""
        column = self._column(key, None)
        with self._reading():
            if not _is_text(column.type) or column.null_count:
                raise UnreadableError(
                    f"{shown(key)}: is {column.type}, expected a text in each row"
                )
            return [bytes(each) for each in column.cast(pa.large_binary()).to_pylist()]

    def is_text(self, key: str) -> bool:
        """Return whether a column holds texts."""
        return _is_text(self._file.schema_arrow.field(key).type)

    def images(self, key: str, rows: range) -> Iterator[bytes]:
        """Yield the files that a column of images holds, without keeping more than a few.

        LeRobot's images are structures of the file's bytes and its path.

        Raises:
            RolloutError: a row has no bytes, or the file is damaged.
        """
        with self._reading():
            self._check(key)
            kind = self._file.schema_arrow.field(key).type
            if not pa.types.is_struct(kind) and not pa.types.is_binary(kind):
                raise UnreadableError(f"{shown(key)}: is {kind}, expected image files")
            groups, first = self._groups(rows)
            batches = self._file.iter_batches(_IMAGES_TOGETHER, row_groups=groups, columns=[key])
        row = first
        while row < rows.stop:
            with self._reading():
                batch = next(batches, None)
                if batch is None:
                    raise UnreadableError(f"{shown(key)}: ends at row {row} of {rows.stop}")
                found = batch.column(key)
                if pa.types.is_struct(kind):
                    found = pc.struct_field(found, "bytes")
                wanted = range(max(rows.start - row, 0), min(len(found), rows.stop - row))
                values = found[wanted.start : wanted.stop].to_pylist() if wanted else []
            for index, value in zip(wanted, values, strict=True):
                if not isinstance(value, bytes):
                    raise RolloutError(
                        f"{self.path}: {shown(key)}: row {row + index} has no image's bytes; the "
                        f"images must be embedded in the Parquet file"
                    )
                yield value
            row += len(found)

    def _column(self, key: str, rows: range | None) -> pa.ChunkedArray:
        rows = range(self.rows) if rows is None else rows
        with self._reading():
            self._check(key)
            groups, first = self._groups(rows)
            claimed = sum(self._claim(group, key) for group in groups)
            if claimed > MAX_COLUMN_BYTES:
                raise UnreadableError(
                    f"{shown(key)}: has {claimed} bytes, at most {MAX_COLUMN_BYTES} are read "
                    f"together"
                )
            column = self._file.read_row_groups(groups, columns=[key]).column(key)
            column = column.slice(rows.start - first, len(rows))
            if len(column) != len(rows):
                raise UnreadableError(f"{shown(key)}: has not the rows that the file claims")
            return column

    def _check(self, key: str) -> None:
        if self.names.count(key) != 1:
            have = ", ".join(shown(name) for name in self.names[:20])
            raise UnreadableError(f"has no column {shown(key)}, or two; it has {have}")

    def _groups(self, rows: range) -> tuple[list[int], int]:
        """Return the row groups that have these rows, and the first of their rows."""
        groups: list[int] = []
        first, begin = rows.start, 0
        for group in range(self._file.num_row_groups):
            end = begin + self._file.metadata.row_group(group).num_rows
            if begin < rows.stop and end > rows.start:
                if not groups:
                    first = begin
                groups.append(group)
            begin = end
        return groups, first

    def _claim(self, group: int, key: str) -> int:
        """Return how many bytes a column has in a group, unpacked."""
        described = self._file.metadata.row_group(group)
        columns = (described.column(index) for index in range(described.num_columns))
        return sum(
            column.total_uncompressed_size
            for column in columns
            if column.path_in_schema == key or column.path_in_schema.startswith(f"{key}.")
        )

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with reading(self.path, "Parquet", RolloutError, "the file may be damaged"):
            yield


def check_begin(path: Path, begin: bytes, what: str, offset: int = 0) -> None:
    """Refuse a file that is none of a format by its first bytes, or only stands for one.

    Args:
        path: of the file.
        begin: what it has at ``offset``. A Parquet file ends with it as well.
        what: the format, for the message.
        offset: of those bytes.

    Raises:
        UnreadableError: says what it is instead, as far as that is known.
        OSError: the system refuses.
    """
    with open_file(path) as file:
        found = file.read(max(len(_LFS), offset + len(begin)))
        end = b""
        if file.seek(0, 2) >= len(begin):
            file.seek(-len(begin), 2)
            end = file.read()
    if found.startswith(_LFS):
        raise UnreadableError("only stands for a file that Git LFS keeps; fetch it: git lfs pull")
    if found[offset : offset + len(begin)] != begin:
        raise UnreadableError(f"does not begin like {what}")
    if begin == _MAGIC and end != begin:
        raise UnreadableError(
            "was cut off, or its recorder never finished it (LeRobot's finalize() was not called)"
        )


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(test(kind) for test in tests)


def _as_rows(column: pa.ChunkedArray, key: str) -> Floats:
    """Return (T, D) of a column of numbers or of lists of as many numbers."""
    array: Any = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    while isinstance(array, pa.ExtensionArray):
        array = array.storage
    rows = len(array)
    _check_whole(array, key)
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    while any(test(array.type) for test in lists):
        lengths: Sequence[int] = pc.unique(pc.list_value_length(array)).to_pylist()
        if len(lengths) > 1:
            raise UnreadableError(f"{shown(key)}: has rows of {lengths[0]} and {lengths[1]} values")
        array = array.flatten()
        _check_whole(array, key)
    kind = array.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise UnreadableError(f"{shown(key)}: is {column.type}, expected numbers")
    values: Floats = array.to_numpy(zero_copy_only=False).astype(np.float64)
    return values.reshape(rows, -1) if rows else values.reshape(0, 1)


def _check_whole(array: Any, key: str) -> None:
    if array.null_count:
        row = pc.index(array.is_null(), True).as_py()
        raise UnreadableError(f"{shown(key)}: value {row} and {array.null_count - 1} more are none")
