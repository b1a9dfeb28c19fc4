"""A wall clock that can be set, for nodes of their own process: none may set the machine's."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from cosmos_policy_ros.core.paths import executable

# A node of this package whose ROS time is what a file says it is off the machine's.
_PROGRAM = """\
import sys

if __name__ == "__main__":
    sys.path.insert(0, {tests!r})

    from helpers.wall_clock import follow

    follow({offset!r})
    import runpy

    runpy.run_path({program!r}, run_name="__main__")
"""


class WallClock:
    """The offset of all nodes' wall clocks, in a file that they share."""

    def __init__(self, folder: Path) -> None:
        """Begin with the machine's own time."""
        self._folder, self._file = folder, folder / "wall_clock"
        self._file.write_bytes(bytes(8))

    def set(self, seconds: float) -> None:
        """Set all nodes' clocks at once to so much off the machine's."""
        with self._file.open("r+b") as file:
            file.write(struct.pack("<q", round(seconds * 1e9)))

    def program(self, name: str, path: Path | None = None) -> Path:
        """Return a program that runs a node, by default the shipped one, under this clock."""
        content = _PROGRAM.format(
            tests=str(Path(__file__).parents[1]),
            offset=str(self._file),
            program=str(path or executable(name)),
        )
        wrapper = self._folder / f"{name}.py"
        wrapper.write_text(content)
        return wrapper


def follow(offset: str) -> None:
    """Let ROS and system time of this process be off by what a file says."""
    from rclpy.clock import Clock, ClockType

    with Path(offset).open("r+b") as file:
        shared = mmap.mmap(file.fileno(), 8)
    now = Clock.now

    def stepped(self):  # type: ignore[no-untyped-def]
        time = now(self)
        if self.clock_type == ClockType.STEADY_TIME:
            return time
        (off,) = struct.unpack("<q", shared[:8])
        return type(time)(nanoseconds=max(time.nanoseconds + off, 0), clock_type=time.clock_type)

    Clock.now = stepped  # type: ignore[method-assign]
