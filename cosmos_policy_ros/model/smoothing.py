"""Chunks without a small network's tremble.

Every number of a chunk is generated with an error of its own. The released network's are a
hundredth of a joint's range; those of a network a thousand times smaller are several times that,
and from row to row they would ask the arms for more speed than they have.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from cosmos_policy_ros.core.units import Array

DEGREE = 2  # of the polynomial: position, velocity and acceleration are kept


def smooth(chunks: Array, window: int) -> Array:
    """Replace each row by the value there of a parabola fitted to the rows around it.

    Savitzky and Golay (1964); the rows at either end take the first and last whole window.

    Args:
        chunks: (..., K, d).
        window: rows, odd; 0 leaves the chunks as they are.
    """
    if not window:
        return chunks
    return np.asarray(_weights(chunks.shape[-2], window) @ chunks)


@lru_cache
def _weights(rows: int, window: int) -> Array:
    """Return the (K, K) matrix that smoothing is."""
    window = min(window, rows)
    weights = np.zeros((rows, rows))
    for row in range(rows):
        first = min(max(row - window // 2, 0), rows - window)
        at = np.arange(first, first + window) - row
        powers = at[:, None] ** np.arange(DEGREE + 1)
        weights[row, first : first + window] = np.linalg.pinv(powers.astype(np.float64))[0]
    return weights
