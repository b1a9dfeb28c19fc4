"""Whose trajectories an arm takes: those of the policy node that has armed it, once announced.

A command topic is open to everything on the network. The policy node therefore names in its state
every trajectory before it sends it, and the arm interface takes no other. This stops accidents: a
second policy node, a teleoperation that was left running, a planner's button. It stops no attacker,
who can read the state too; that is what SROS2 is for.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.rig.safety_gate import CHUNK_ID

HOLD = "hold"  # how the ids of trajectories begin that hold arms where they are
REMEMBERED = 16  # announcements; a chunk, its brake and a hold follow each other at most
# Seconds in which an announcement may be overtaken by what it announces: two ticks of 20 ms.
OVERTAKEN = 0.04


@dataclass
class _Announced:
    chunk_id: str
    taken: set[str] = field(default_factory=set)


class Ownership:
    """Follows the states of policy nodes.

    Attributes:
        owner: identity of the policy node that has armed the arms; empty while none has.
        lent: whether the owner lends them to the arm interface, for a person to lead; over as soon
            as the owner names a trajectory of its own.
    """

    def __init__(self, patience: float) -> None:
        """Begin without an owner.

        Args:
            patience: seconds of silence after which another policy node may take over.
        """
        self.owner, self.lent = "", False
        self._patience = patience
        self._heard_ns = 0
        self._run_id = ""
        self._serial = 0
        self._announced: deque[_Announced] = deque(maxlen=REMEMBERED)

    @property
    def armed(self) -> bool:
        """Whether a policy node has armed the arms."""
        return bool(self.owner)

    def age(self, now_ns: int) -> float:
        """Return seconds since the owner was heard of."""
        return (now_ns - self._heard_ns) / NS_PER_S

    def on_state(
        self, identity: str, armed: bool, run_id: str, announced: tuple[int, str], now_ns: int
    ) -> bool:
        """Note a policy node's state; one of another node than the owner changes nothing.

        A policy node that arms while the owner is silent, as after a crash, takes over.

        Args:
            identity: of the policy node; empty for one that commands no arms.
            armed: whether it has armed them.
            run_id: of its run, empty outside one.
            announced: serial number and id of the trajectory that it sends next, or sent last.
            now_ns: a clock that is never set.

        Returns:
            Whether an operator has just disarmed the arms, or armed them anew: what held them is
            over.
        """
        if not identity:
            return False
        ended = False
        if identity != self.owner:
            if not armed or (self.owner and self.age(now_ns) <= self._patience):
                return False
            self.owner, self.lent, self._serial, ended = identity, False, 0, True
            self._announced.clear()
        self._heard_ns, self._run_id = now_ns, run_id
        if not armed:  # a brake that was announced may still be on its way
            self.owner, self.lent, ended = "", False, True
        elif announced[0] > self._serial:
            self._serial, self.lent = announced[0], False
            self.announce(announced[1])
        return ended

    def announce(self, chunk_id: str) -> None:
        """Record the id of the next command, by the owner or by a node that borrows the arms."""
        self._announced.append(_Announced(chunk_id))

    def take(self, output: str, chunk_id: str) -> bool:
        """Return whether a trajectory was announced and has not come on this output before."""
        for each in reversed(self._announced):
            if each.chunk_id == chunk_id and output not in each.taken:
                each.taken.add(output)
                return True
        return False

    def may_come(self, chunk_id: str) -> bool:
        """Return whether the owner might announce such a trajectory: it is of the run under way."""
        return chunk_id.split("/")[0] in {self._run_id, CHUNK_ID, HOLD} - {""}


def describe_stranger(chunk_id: str, topic: str) -> str:
    """Return what to tell the operator of a trajectory that was not announced."""
    called = f"'{chunk_id[:60]}'" if chunk_id else "without an id"
    return (
        f"a trajectory {called} came on {topic} that this policy node has not sent: end what else "
        f"commands the arms (ros2 topic info -v {topic} names its publishers)"
    )
