"""What the policy sees at one moment. The same code makes it live and from a bag."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Observation:
    """One moment of the rig, in policy units.

    Attributes:
        stamp_ns: the newest source's stamp, nanoseconds of the clock that the sources stamp by.
        images: one (H, W, 3) uint8 RGB array per camera role, in the order of the rig file
            (left_wrist, right_wrist, primary).
        state: (14,) float64: left arm then right arm, six joints [rad] and the gripper
            (0 closed, 1 open) each.
        ages: seconds from each source's stamp to the moment of asking, by camera role and by
            "<arm>/joint_states".
        seen_ns: ``stamp_ns`` on the clock that arms move by; 0 where no arms move.
    """

    stamp_ns: int
    images: Mapping[str, NDArray[np.uint8]]
    state: NDArray[np.float64]
    ages: Mapping[str, float]
    seen_ns: int = 0

    def digest(self) -> str:
        """Return the sha256 (hex) over stamp, state and pixels: what a decision rests on."""
        sha = hashlib.sha256(self.stamp_ns.to_bytes(8, "little", signed=True))
        sha.update(np.ascontiguousarray(self.state).tobytes())
        for role, image in self.images.items():
            sha.update(role.encode())
            sha.update(np.ascontiguousarray(image).data)
        return sha.hexdigest()
