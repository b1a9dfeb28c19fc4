"""The array type and the unit conversions that every room uses."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

NS_PER_S = 1_000_000_000
GIGABYTE = 1e9  # bytes
SEEDS = 2**32  # of NumPy's generator, which all noise is drawn from
