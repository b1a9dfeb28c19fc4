"""Files that can be made again, kept in the user's cache folder within a bound.

Several processes may share a cache. Its files appear whole or not at all; the least recently used
go first when there are too many. Where the disk refuses, the result is made again each time: that
costs time and nothing else.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SPARED = 1 << 30  # bytes that a cache leaves free on its disk
DRAFT = ".partial"
DRAFT_LIFE = 86_400.0  # s; a draft that has not changed for as long is of a process that died


def cache_folder(name: str) -> Path:
    """Return ``$XDG_CACHE_HOME/cosmos_policy_ros/<name>``; by default below ``~/.cache``."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return cache / "cosmos_policy_ros" / name


class DiskCache:
    """A folder of files by key.

    Attributes:
        folder: made when the first file is.
        limit: bytes that all files together may have.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        """Look at nothing yet."""
        self.folder, self.limit = folder, limit

    def path(self, key: str) -> Path:
        """Return the file of a key, whether it is there or not."""
        return self.folder / key

    def find(self, key: str) -> Path | None:
        """Return the file of a key, which counts as used now; None if there is none."""
        path = self.path(key)
        try:
            os.utime(path)
        except FileNotFoundError:
            return None
        except OSError:  # a cache that may only be read
            return path if path.is_file() else None
        return path

    @contextmanager
    def making(self, key: str) -> Iterator[Path]:
        """Yield the draft of a key's file, which takes its place when the block ends.

        Raises:
            OSError: the disk refused; there is no draft left then.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(DRAFT, f".{key[:16]}-", self.folder)
        os.close(descriptor)
        draft = Path(name)
        try:
            yield draft
            draft.replace(self.path(key))
        except BaseException:
            with suppress(OSError):
                draft.unlink()
            raise

    def make_room(self, needed: int, keep: Collection[str] = ()) -> int:
        """Delete what was used least recently until ``needed`` more bytes fit; return what fits.

        Args:
            needed: bytes that are about to be written.
            keep: keys whose files stay.
        """
        used = 0
        others = []
        for path in self._files():
            with suppress(OSError):
                status = path.stat()
                if not path.name.endswith(DRAFT):
                    used += status.st_size
                    if path.name not in keep:
                        others.append((status.st_mtime, status.st_size, path))
                elif status.st_mtime < time.time() - DRAFT_LIFE:
                    path.unlink()
        for _, size, path in sorted(others):
            if used + needed <= self.limit:
                break
            with suppress(OSError):
                path.unlink()
                used -= size
        return max(min(self.limit - used, self._free() - SPARED), 0)

    def _files(self) -> list[Path]:
        try:
            return [path for path in self.folder.iterdir() if path.is_file()]
        except OSError:
            return []

    def _free(self) -> int:
        existing = next((p for p in (self.folder, *self.folder.parents) if p.exists()), Path("/"))
        return shutil.disk_usage(existing).free
