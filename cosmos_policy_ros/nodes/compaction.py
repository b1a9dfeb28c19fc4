"""Scored episodes compacted beside a recorder that records nothing, by a process of its own.

The process has the lowest priority and may be killed at any moment: an episode is the old one or
the new one, whole (``episodes.compact``). What it had not finished is begun again after the next
episode.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

LOWEST_PRIORITY = 19
COMMAND = ("nice", "-n", str(LOWEST_PRIORITY), sys.executable, "-m", "cosmos_policy_ros.cli.cosmos")


class BackgroundCompaction:
    """One process at most, and the episodes that wait for it. Belongs to one thread."""

    def __init__(self, root: Path, logger: Any) -> None:
        """Compact episodes of a folder; ``logger`` is the node's."""
        self._root, self._logger = root, logger
        self._waiting: dict[str, None] = {}  # ids, in order
        self._process: subprocess.Popen[str] | None = None
        self._taken = ""

    def add(self, episode: str) -> None:
        """Have an episode compacted by and by."""
        self._waiting[episode] = None

    def look(self) -> None:
        """Tell how the last one went, if it has ended, and begin the next; call it now and then."""
        if self._process is not None:
            if self._process.poll() is None:
                return
            said, _ = self._process.communicate()
            tell = self._logger.error if self._process.returncode else self._logger.info
            tell(said.strip() or f"{self._taken}: its compaction ended without a word")
            self._waiting.pop(self._taken, None)
            self._process = None
        if not self._waiting:
            return
        self._taken = next(iter(self._waiting))
        arguments = ["episodes", "compact", self._taken, "--root", str(self._root)]
        try:
            self._process = subprocess.Popen(
                [*COMMAND, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        except OSError as error:
            self._waiting.clear()
            self._logger.error(f"scored episodes cannot be compacted: {error}")

    def stop(self) -> None:
        """Kill the process, if there is one; its episode waits on."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None
