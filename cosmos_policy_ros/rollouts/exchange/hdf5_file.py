"""An HDF5 file to be written on a disk that may be full."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

import h5py


@contextmanager
def new_hdf5(path: Path) -> Iterator[h5py.File]:
    """Create a file and close it at the end.

    Raises:
        OSError: it is there already, or the disk refused; it is not whole then.
    """
    with path.open("xb+", buffering=0) as raw:
        disk = _PatientDisk(raw)
        with h5py.File(disk, "w") as file:
            yield file
        disk.check()


class _PatientDisk:
    """A file that tells HDF5 of no failed write, but :meth:`check` of the first one.

    A write that fails leaves HDF5's library with objects that it can neither write nor forget, and
    the process ends in a segmentation fault some files later.
    """

    def __init__(self, raw: FileIO) -> None:
        self._raw = raw
        self._error: OSError | None = None

    def check(self) -> None:
        """Raise the OSError of the first write that failed, if one did."""
        if self._error is not None:
            raise self._error

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        return self._raw.tell()

    def read(self, size: int = -1) -> bytes:
        """Never called; by it h5py tells a file from a path."""
        return self._raw.read(size) or b""

    def readinto(self, buffer: memoryview) -> int:
        # What was never written reads as zeros, so that a file given up can still be closed.
        count = self._raw.readinto(buffer) or 0
        buffer[count:] = bytes(len(buffer) - count)
        return len(buffer)

    def write(self, data: memoryview) -> int:
        left = memoryview(data)
        try:
            while left and self._error is None:
                left = left[self._raw.write(left) or 0 :]
        except OSError as error:
            self._error = error
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        try:
            return self._raw.truncate(size)
        except OSError as error:
            self._error = self._error or error
        return size or 0

    def flush(self) -> None:
        """Nothing is kept back here."""
