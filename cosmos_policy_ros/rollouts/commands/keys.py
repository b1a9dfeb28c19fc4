"""One key, one answer: from a terminal without Enter, from a pipe line by line, from a foot pedal.

A pedal is a keyboard with one key. Held down it repeats that key, many times a second: all of it is
one answer.
"""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty
from types import TracebackType
from typing import Any, Literal

from cosmos_policy_ros.errors import RolloutError
from cosmos_policy_ros.rig.config import did_you_mean

Key = Literal["yes", "no", "back", "text", ""]

MEANINGS: dict[str, Key] = {
    **dict.fromkeys(("y", "Y", "\n", "\r", " "), "yes"),
    **dict.fromkeys(("n", "N"), "no"),
    **dict.fromkeys(("b", "B", "\x7f", "\b"), "back"),
    **dict.fromkeys(("t", "T"), "text"),
}
# What terminals send for the keys that pedals come set to; a letter or digit is itself.
PEDALS: dict[str, tuple[str, ...]] = {
    "enter": ("\n", "\r"),
    "space": (" ",),
    "tab": ("\t",),
    "up": ("\x1b[A", "\x1bOA"),
    "down": ("\x1b[B", "\x1bOB"),
    "right": ("\x1b[C", "\x1bOC"),
    "left": ("\x1b[D", "\x1bOD"),
    "pageup": ("\x1b[5~",),
    "pagedown": ("\x1b[6~",),
    "f1": ("\x1bOP", "\x1b[11~", "\x1b[[A"),
    "f2": ("\x1bOQ", "\x1b[12~", "\x1b[[B"),
    "f3": ("\x1bOR", "\x1b[13~", "\x1b[[C"),
    "f4": ("\x1bOS", "\x1b[14~", "\x1b[[D"),
    "f5": ("\x1b[15~", "\x1b[[E"),
    **{f"f{n}": (f"\x1b[{n + 11}~",) for n in (6, 7, 8, 9, 10)},
    **{f"f{n}": (f"\x1b[{n + 12}~",) for n in (11, 12)},
}
ESCAPE, END_OF_INPUT = "\x1b", "\x04"
SEQUENCE_PATIENCE = 0.05  # s; the rest of a function key's sequence is there at once
HELD = 0.75  # s; keyboards repeat a held key after 0.25 to 0.66 s


def pedal_keys(name: str) -> tuple[str, ...]:
    """Return what a pedal's key sends; nothing for the name "".

    Raises:
        RolloutError: neither a single character nor a key that is known by name.
    """
    if not name:
        return ()
    if name.lower() in PEDALS:
        return PEDALS[name.lower()]
    if len(name) == 1:
        return (name,)
    raise RolloutError(
        f"--pedal {name}: is neither one character nor a known key{did_you_mean(name, PEDALS)}"
    )


class Keyboard:
    """Standard input: keys if it is a terminal, lines otherwise. A context manager.

    Within it a terminal shows nothing of what is typed and hands each key over at once; Ctrl-C
    interrupts as ever.
    """

    def __init__(self, pedal: tuple[str, ...] = ()) -> None:
        """Take what the keys of ``pedal`` send for a yes, whatever else they mean."""
        self._pedal = pedal
        self._pedalled = -HELD
        self._terminal = sys.stdin.fileno() if sys.stdin.isatty() else None
        self._usual: list[Any] = []

    def __enter__(self) -> Keyboard:
        if self._terminal is not None:
            self._usual = termios.tcgetattr(self._terminal)
            tty.setcbreak(self._terminal, termios.TCSADRAIN)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._terminal is not None:
            termios.tcsetattr(self._terminal, termios.TCSADRAIN, self._usual)

    def read(self) -> Key:
        """Wait for a key and return what it means, "" when nothing.

        Raises:
            RolloutError: the input has ended.
        """
        if self._terminal is None:
            return MEANINGS.get(self.line()[:1] or "\n", "")
        key = _read_key(self._terminal)
        if key == END_OF_INPUT:
            raise _ended()
        if key not in self._pedal:
            return MEANINGS.get(key, "")
        before, self._pedalled = self._pedalled, time.monotonic()
        return "yes" if self._pedalled - before > HELD else ""

    def line(self) -> str:
        """Wait for a line and return it without its end; a terminal shows it.

        Raises:
            RolloutError: the input has ended.
        """
        if self._terminal is not None:
            termios.tcsetattr(self._terminal, termios.TCSADRAIN, self._usual)
        line = sys.stdin.readline()
        if self._terminal is not None:
            tty.setcbreak(self._terminal, termios.TCSADRAIN)
        if not line:
            raise _ended()
        return line.strip()


def _ended() -> RolloutError:
    return RolloutError("the input ended before the last answer; nothing was written for this one")


def _read_key(descriptor: int) -> str:
    """Return a key, with all of the sequence that stands for one without a character."""
    key = os.read(descriptor, 1).decode(errors="replace") or END_OF_INPUT
    while key.startswith(ESCAPE) and select.select([descriptor], [], [], SEQUENCE_PATIENCE)[0]:
        key += os.read(descriptor, 1).decode(errors="replace")
        if key[2:] and key[-1] != "[" and (key[-1].isalpha() or key[-1] == "~"):
            break
    return key
