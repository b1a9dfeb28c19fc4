"""File operations whose result is whole and on the disk when they return."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give ``path`` a new content; a reader, or a power cut, meets the old or the new one whole.

    Yields:
        The file to write, beside it. It takes the place of ``path`` when the block ends, and is
        removed when the block raises.
    """
    draft = path.with_name(f".{path.name}.partial")
    try:
        yield draft
        sync(draft)
        draft.replace(path)
    except BaseException:
        with suppress(OSError):
            draft.unlink()
        raise
    sync(path.parent)


def replace_text(path: Path, text: str) -> None:
    """Give a file a new text, whole or not at all."""
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8")


def rename(old: Path, new: Path) -> None:
    """Rename within one file system, replacing nothing: FileExistsError when ``new`` is there."""
    if new.exists():  # rename(2) alone would replace an empty folder
        raise FileExistsError(f"{new} exists already")
    old.rename(new)
    sync(new.parent)


def stands_at(descriptor: int, path: Path) -> bool:
    """Return whether ``path`` is still the file or folder that was opened as ``descriptor``."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except (FileNotFoundError, NotADirectoryError):
        return False


def place_of(descriptor: int) -> Path | None:
    """Return the path of an open file or folder now, also where it was moved; None: deleted."""
    try:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
    except OSError:  # not Linux
        return None
    return path if stands_at(descriptor, path) else None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Wait for the lock of ``folder`` and hold it against other threads and processes."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class FolderLock:
    """The lock of a folder, held until it is released or this process ends, however it ends."""

    def __init__(self, folder: Path) -> None:
        """Take it. Raises BlockingIOError when another one has it."""
        self._descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.release()
            raise

    @property
    def descriptor(self) -> int:
        """File descriptor of the folder; -1 once the lock is released."""
        return self._descriptor

    def release(self) -> None:
        """Release the lock; may be called again."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
